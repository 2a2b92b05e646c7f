//! `testbed probe`: one probe by hand, as the kubelet or as anyone else.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use url::{Host, Url};

use crate::kubelet::{Dialer, Probe, execute, request_probe};

/// Options of `testbed probe`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Socket of a stand-in kubelet, as `testbed demo --keep` names it, which is to make the probe [default: this
    /// program makes it, as any process of the node]
    #[arg(long, value_name = "SOCKET")]
    kubelet: Option<PathBuf>,
    /// Probe a lifecycle hook instead: another user agent, any status passes
    #[arg(long)]
    hook: bool,
    /// http://IP:PORT/PATH, https://IP:PORT/PATH, tcp://IP:PORT or grpc://IP:PORT/SERVICE
    url: String,
}

/// Makes the probe and prints its result as JSON.
///
/// # Errors
/// When the URL is none of these, no kubelet answers at the socket, or the probe fails.
pub fn main(args: &Args) -> Result<()> {
    let url = Url::parse(&args.url).with_context(|| args.url.clone())?;
    let ip: IpAddr = match url.host() {
        Some(Host::Ipv4(ip)) => ip.into(),
        Some(Host::Ipv6(ip)) => ip.into(),
        // Of schemes that it does not know, the parser leaves the host as it is.
        Some(Host::Domain(text)) => text
            .parse()
            .with_context(|| format!("{text} is no IP address"))?,
        None => bail!("{url} names no host"),
    };
    let port = url
        .port_or_known_default()
        .context("the URL needs a port")?;
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let probe = match url.scheme() {
        "http" if args.hook => Probe::hook(ip, port, path),
        "http" => Probe::http(ip, port, path),
        "https" => Probe::https(ip, port, path),
        "tcp" => Probe::tcp(ip, port),
        "grpc" => Probe::grpc(ip, port, path.trim_start_matches('/')),
        other => bail!("scheme {other}: give http, https, tcp or grpc"),
    };
    let result = match &args.kubelet {
        Some(path) => request_probe(path, &probe)?,
        None => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(execute(&probe, Dialer::default())),
    };
    println!("{}", serde_json::to_string_pretty(&result)?);
    if !result.passed() {
        bail!("the probe fails");
    }
    Ok(())
}
