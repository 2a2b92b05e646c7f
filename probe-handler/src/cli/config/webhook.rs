//! Configuration of `webhook`, as text and as what it means.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::config_errors::ConfigErrors;
use super::{as_seconds, parse, to_json};
use crate::cli::logging::LogFormat;

/// Flags of `webhook`. Text still: [`WebhookConfig`] is what they mean.
#[derive(Debug, Args)]
pub struct WebhookArgs {
    /// Where to serve admission, over TLS; [::] is IPv4 too
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "PROBE_HANDLER_LISTEN",
        default_value = "[::]:8443"
    )]
    listen: String,

    /// Where to serve health and metrics, or none
    #[arg(
        long,
        value_name = "IP:PORT|none",
        env = "PROBE_HANDLER_ADMIN_ADDR",
        default_value = "[::]:15026"
    )]
    admin_addr: String,

    /// Directory with the settings for all pods, one file each (rewriteAppHTTPProbe, rewritePort,
    /// pathPrefix): a mounted ConfigMap. It is watched; without settings the defaults hold
    #[arg(long, value_name = "PATH", env = "PROBE_HANDLER_CONFIG_DIR")]
    config_dir: Option<String>,

    /// ConfigMap with these settings, watched in the API server: changes count at once
    #[arg(long, value_name = "NAME", env = "PROBE_HANDLER_CONFIG_MAP")]
    config_map: Option<String>,

    /// Directory with tls.crt and tls.key: a mounted Secret of cert-manager, say. It is watched
    #[arg(long, value_name = "PATH", env = "PROBE_HANDLER_CERT_DIR")]
    cert_dir: Option<String>,

    /// Make the certificate, keep it in a Secret, renew it, and have API servers trust it
    #[arg(
        long,
        value_name = "true|false",
        env = "PROBE_HANDLER_SELF_SIGNED",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true
    )]
    self_signed: String,

    /// Namespace of Service, Secret and ConfigMap; the pod's own where not given
    #[arg(long, value_name = "NAME", env = "PROBE_HANDLER_NAMESPACE")]
    namespace: Option<String>,

    /// With --self-signed: name of the Service by which API servers call
    #[arg(
        long,
        value_name = "NAME",
        env = "PROBE_HANDLER_SERVICE",
        default_value = "probe-handler-webhook"
    )]
    service: String,

    /// With --self-signed: name of the Secret
    #[arg(
        long,
        value_name = "NAME",
        env = "PROBE_HANDLER_SECRET",
        default_value = "probe-handler-webhook-tls"
    )]
    secret: String,

    /// With --self-signed: name of the MutatingWebhookConfiguration that is told whom to trust
    #[arg(
        long,
        value_name = "NAME",
        env = "PROBE_HANDLER_WEBHOOK_CONFIGURATION",
        default_value = "10-probe-handler"
    )]
    webhook_configuration: String,

    /// How long requests under way may take to finish after SIGTERM, in seconds (0 to 3600)
    #[arg(
        long,
        value_name = "SECONDS",
        env = "PROBE_HANDLER_DRAIN_TIMEOUT",
        allow_hyphen_values = true,
        default_value = "20"
    )]
    drain_timeout: String,

    /// How log lines look; auto is text on a terminal, else JSON
    #[arg(
        long,
        value_name = "auto|text|json",
        env = "PROBE_HANDLER_LOG_FORMAT",
        default_value = "auto"
    )]
    log_format: String,

    /// What to log: a level (error, warn, info, debug, trace, off), and MODULE=LEVEL pairs after
    /// commas
    #[arg(
        long,
        value_name = "FILTER",
        env = "PROBE_HANDLER_LOG",
        default_value = "info"
    )]
    log: String,
}

/// Where the settings for all pods come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SettingsSource {
    /// Nowhere: the defaults hold.
    Defaults,
    /// A directory with a file for each.
    Dir(PathBuf),
    /// The ConfigMap of this name.
    ConfigMap(String),
}

/// Where the certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateSource {
    /// A directory with `tls.crt` and `tls.key`.
    Dir(PathBuf),
    /// We make it.
    SelfSigned {
        /// By which API servers call.
        service: String,
        /// Where it is kept.
        secret: String,
        /// Name of the MutatingWebhookConfiguration.
        configuration: String,
    },
}

/// The webhook's configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WebhookConfig {
    /// Where admission is served.
    pub listen: SocketAddr,
    /// Where health and metrics are served; None: nowhere.
    pub admin_addr: Option<SocketAddr>,
    /// Namespace of Service, Secret and ConfigMap; None: the pod's own.
    pub namespace: Option<String>,
    /// Where the settings come from.
    pub settings: SettingsSource,
    /// Where the certificate comes from.
    pub certificate: CertificateSource,
    /// How long a drain may take.
    #[serde(rename = "drain_timeout_seconds", serialize_with = "as_seconds")]
    pub drain_timeout: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log: String,
}

impl WebhookConfig {
    /// For the log.
    pub fn to_json(&self) -> String {
        to_json(self)
    }

    fn check(args: &WebhookArgs, mistakes: &mut ConfigErrors) -> Option<Self> {
        let listen = mistakes.check("listen", &args.listen, parse::address);
        let admin_addr = mistakes.check("admin-addr", &args.admin_addr, parse::admin_addr);
        let namespace = match &args.namespace {
            Some(namespace) => mistakes
                .check("namespace", namespace, parse::object_name)
                .map(Some),
            None => Some(None),
        };
        let settings = Self::settings(args, mistakes);
        let certificate = Self::certificate(args, mistakes);
        let drain_timeout = mistakes.check("drain-timeout", &args.drain_timeout, parse::seconds);
        let log_format = mistakes.check("log-format", &args.log_format, parse::log_format);
        let log = mistakes.check("log", &args.log, parse::log_filter);
        Some(Self {
            listen: listen?,
            admin_addr: admin_addr?,
            namespace: namespace?,
            settings: settings?,
            certificate: certificate?,
            drain_timeout: drain_timeout?,
            log_format: log_format?,
            log: log?,
        })
    }

    fn settings(args: &WebhookArgs, mistakes: &mut ConfigErrors) -> Option<SettingsSource> {
        let dir = args
            .config_dir
            .as_ref()
            .map(|path| mistakes.check("config-dir", path, parse::existing_directory));
        let map = args
            .config_map
            .as_ref()
            .map(|name| mistakes.check("config-map", name, parse::object_name));
        match (dir, map) {
            (None, None) => Some(SettingsSource::Defaults),
            (Some(dir), None) => dir.map(SettingsSource::Dir),
            (None, Some(map)) => map.map(SettingsSource::ConfigMap),
            (Some(_), Some(map)) => {
                let both = |_: &str| parse::both("--config-dir");
                mistakes.check("config-map", &map?, both)
            }
        }
    }

    fn certificate(args: &WebhookArgs, mistakes: &mut ConfigErrors) -> Option<CertificateSource> {
        let self_signed = mistakes.check("self-signed", &args.self_signed, parse::flag);
        let dir = match &args.cert_dir {
            Some(path) => mistakes
                .check("cert-dir", path, parse::existing_directory)
                .map(Some),
            None => Some(None),
        };
        let mut name = |flag, name: &String| mistakes.check(flag, name, parse::object_name);
        let service = name("service", &args.service);
        let secret = name("secret", &args.secret);
        let configuration = name("webhook-configuration", &args.webhook_configuration);
        match (self_signed?, dir?) {
            (false, Some(dir)) => Some(CertificateSource::Dir(dir)),
            (true, None) => Some(CertificateSource::SelfSigned {
                service: service?,
                secret: secret?,
                configuration: configuration?,
            }),
            (false, None) => mistakes.missing("cert-dir", parse::CERTIFICATE_REMEDY),
            (true, Some(dir)) => {
                let both = |_: &str| parse::both("--self-signed");
                mistakes.check("cert-dir", &dir.to_string_lossy(), both)
            }
        }
    }
}

impl TryFrom<WebhookArgs> for WebhookConfig {
    type Error = ConfigErrors;

    fn try_from(args: WebhookArgs) -> Result<Self, ConfigErrors> {
        let mut mistakes = ConfigErrors::default();
        let config = Self::check(&args, &mut mistakes);
        match config {
            Some(config) if mistakes.0.is_empty() => Ok(config),
            _ => Err(mistakes),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: WebhookArgs,
    }

    fn config(args: &[&str]) -> Result<WebhookConfig, String> {
        let args = std::iter::once("webhook").chain(args.iter().copied());
        let command = Command::try_parse_from(args).expect("clap takes any text");
        WebhookConfig::try_from(command.args).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_manifests() {
        let config = config(&["--self-signed"]).expect("good");
        assert_eq!(config.listen, "[::]:8443".parse().expect("address"));
        assert_eq!(config.admin_addr, "[::]:15026".parse().ok());
        let CertificateSource::SelfSigned {
            service,
            secret,
            configuration,
        } = config.certificate
        else {
            panic!("{:?}", config.certificate);
        };
        assert_eq!(config.namespace, None);
        assert_eq!(config.settings, SettingsSource::Defaults);
        assert_eq!(service, "probe-handler-webhook");
        assert_eq!(secret, "probe-handler-webhook-tls");
        assert!(
            *configuration < *"istio-revision-tag-default",
            "it runs before Istio's injector: {configuration}"
        );
    }

    #[test]
    fn the_certificate_comes_from_one_place() {
        let neither = config(&[]).expect_err("neither");
        assert!(
            neither.contains("--cert-dir") && neither.contains("--self-signed"),
            "{neither}"
        );
        let both = config(&["--self-signed", "--cert-dir=/"]).expect_err("both");
        assert!(
            both.contains("--cert-dir") && both.contains("--self-signed"),
            "{both}"
        );
        let dir = config(&["--cert-dir=/"]).expect("good").certificate;
        assert_eq!(dir, CertificateSource::Dir("/".into()));
    }

    #[test]
    fn the_settings_come_from_one_place() {
        let settings = |args: &[&str]| {
            let args = [&["--self-signed"], args].concat();
            config(&args).map(|config| config.settings)
        };
        let map = settings(&["--config-map=probe-handler"]);
        assert_eq!(map, Ok(SettingsSource::ConfigMap("probe-handler".into())));
        let dir = settings(&["--config-dir=/"]);
        assert_eq!(dir, Ok(SettingsSource::Dir("/".into())));
        let both = settings(&["--config-map=probe-handler", "--config-dir=/"]).expect_err("both");
        assert!(
            both.contains("--config-map") && both.contains("--config-dir"),
            "{both}"
        );
    }

    #[test]
    fn all_mistakes_are_told_together() {
        let told = config(&[
            "--listen=8443",
            "--admin-addr=x",
            "--config-dir=/nonexistent",
            "--cert-dir=/nonexistent",
            "--self-signed=perhaps",
            "--namespace=A",
            "--service=a/b",
            "--secret=",
            "--webhook-configuration=..",
            "--drain-timeout=-1",
            "--log=loud",
            "--log-format=xml",
        ])
        .expect_err("bad");
        for flag in [
            "--listen ",
            "--admin-addr",
            "--config-dir",
            "--cert-dir",
            "--self-signed",
            "--namespace",
            "--service",
            "--secret",
            "--webhook-configuration",
            "--drain-timeout",
            "--log ",
            "--log-format",
        ] {
            assert!(told.contains(&format!("  {flag}")), "{flag} not in\n{told}");
        }
        assert!(told.starts_with("probe-handler: 12 mistakes"), "{told}");
    }
}
