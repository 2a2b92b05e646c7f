//! `testbed probe`: makes one probe manually, as the kubelet or as another process.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use url::{Host, Url};

use crate::kubelet::{Dialer, Probe, execute, request_probe};

/// Options of `testbed probe`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Control socket of a stand-in kubelet, as printed by `testbed demo --keep`, which makes the probe [default:
    /// this process makes it, as any process on the node]
    #[arg(long, value_name = "SOCKET")]
    kubelet: Option<PathBuf>,
    /// Call a lifecycle hook instead: another user agent, any status passes
    #[arg(long)]
    hook: bool,
    /// http://IP:PORT/PATH, https://IP:PORT/PATH, tcp://IP:PORT or grpc://IP:PORT/SERVICE
    url: String,
}

/// Makes the probe and prints its result as JSON.
///
/// # Errors
/// When the URL is invalid, no kubelet answers at the socket, or the probe fails.
pub fn main(args: &Args) -> Result<()> {
    let url = Url::parse(&args.url).with_context(|| args.url.clone())?;
    let ip: IpAddr = match url.host() {
        Some(Host::Ipv4(ip)) => ip.into(),
        Some(Host::Ipv6(ip)) => ip.into(),
        // The parser does not parse the host of schemes that it does not know.
        Some(Host::Domain(text)) => text
            .parse()
            .with_context(|| format!("{text} is not an IP address"))?,
        None => bail!("{url} has no host"),
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
        other => bail!("invalid scheme {other}: expected http, https, tcp or grpc"),
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
        bail!("the probe failed");
    }
    Ok(())
}
