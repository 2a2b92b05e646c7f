//! Configuration of `webhook`: the flags as text, and the parsed values.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::config_errors::ConfigErrors;
use super::{as_seconds, parse, to_text};
use crate::cli::logging::LogFormat;

/// Flags of `webhook`, as text; [`WebhookConfig`] has the parsed values.
#[derive(Debug, Args)]
pub struct WebhookArgs {
    /// Address of the admission server, over TLS; [::] includes IPv4
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "PROBE_HANDLER_LISTEN",
        default_value = "[::]:8443"
    )]
    listen: String,

    /// Address of health and metrics, or none
    #[arg(
        long,
        value_name = "IP:PORT|none",
        env = "PROBE_HANDLER_ADMIN_ADDR",
        default_value = "[::]:15026"
    )]
    admin_addr: String,

    /// Directory with the settings for all pods, one file each (rewriteAppHTTPProbe, rewritePort,
    /// pathPrefix), such as a mounted ConfigMap. It is watched; missing settings have their defaults
    #[arg(long, value_name = "PATH", env = "PROBE_HANDLER_CONFIG_DIR")]
    config_dir: Option<String>,

    /// ConfigMap with these settings, watched at the API server: changes apply at once
    #[arg(long, value_name = "NAME", env = "PROBE_HANDLER_CONFIG_MAP")]
    config_map: Option<String>,

    /// Directory with tls.crt and tls.key, such as a mounted Secret of cert-manager. It is watched
    #[arg(long, value_name = "PATH", env = "PROBE_HANDLER_CERT_DIR")]
    cert_dir: Option<String>,

    /// Create the certificate, store it in a Secret, renew it, and write its authority into caBundle
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

    /// Namespace of Service, Secret and ConfigMap [default: the pod's own]
    #[arg(long, value_name = "NAME", env = "PROBE_HANDLER_NAMESPACE")]
    namespace: Option<String>,

    /// With --self-signed: name of the Service that API servers call
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

    /// With --self-signed: name of the MutatingWebhookConfiguration whose caBundle is updated
    #[arg(
        long,
        value_name = "NAME",
        env = "PROBE_HANDLER_WEBHOOK_CONFIGURATION",
        default_value = "10-probe-handler"
    )]
    webhook_configuration: String,

    /// Seconds that in-flight requests may take to finish after SIGTERM (0 to 3600)
    #[arg(
        long,
        value_name = "SECONDS",
        env = "PROBE_HANDLER_DRAIN_TIMEOUT",
        allow_hyphen_values = true,
        default_value = "20"
    )]
    drain_timeout: String,

    /// Format of log lines; auto is text on a terminal, else JSON
    #[arg(
        long,
        value_name = "auto|text|json",
        env = "PROBE_HANDLER_LOG_FORMAT",
        default_value = "auto"
    )]
    log_format: String,

    /// What to log: a level (error, warn, info, debug, trace, off), then MODULE=LEVEL pairs, separated by
    /// commas
    #[arg(
        long,
        value_name = "FILTER",
        env = "PROBE_HANDLER_LOG",
        default_value = "info"
    )]
    log: String,
}

/// Source of the settings for all pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SettingsSource {
    /// `None`: the defaults apply.
    Defaults,
    /// A directory with a file for each setting.
    Dir(PathBuf),
    /// The ConfigMap of this name.
    ConfigMap(String),
}

/// Source of the certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateSource {
    /// A directory with `tls.crt` and `tls.key`.
    Dir(PathBuf),
    /// The webhook creates it.
    SelfSigned {
        /// Name of the Service that API servers call.
        service: String,
        /// Name of the Secret that stores it.
        secret: String,
        /// Name of the MutatingWebhookConfiguration.
        configuration: String,
    },
}

/// The webhook's configuration, validated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WebhookConfig {
    /// Address of the admission server.
    pub listen: SocketAddr,
    /// Address of health and metrics; `None`: disabled.
    pub admin_addr: Option<SocketAddr>,
    /// Namespace of Service, Secret and ConfigMap; `None`: the pod's own.
    pub namespace: Option<String>,
    /// Source of the settings.
    pub settings: SettingsSource,
    /// Source of the certificate.
    pub certificate: CertificateSource,
    /// Maximum time of a drain.
    #[serde(rename = "drain_timeout_seconds", serialize_with = "as_seconds")]
    pub drain_timeout: Duration,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// Filter of log lines.
    pub log: String,
}

impl WebhookConfig {
    /// The configuration as text, for the log.
    pub fn to_text(&self) -> String {
        to_text(self)
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
    fn exactly_one_source_of_the_certificate_is_required() {
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
    fn two_sources_of_settings_are_rejected() {
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
    fn all_mistakes_are_reported_together() {
        let reported = config(&[
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
            assert!(
                reported.contains(&format!("  {flag}")),
                "{flag} not in\n{reported}"
            );
        }
        assert!(
            reported.starts_with("probe-handler: 12 mistakes"),
            "{reported}"
        );
    }
}
