//! A whole probe as the kubelet makes it, for checks without a request of the kubelet that could be passed on.

use std::net::{IpAddr, SocketAddr};

use tokio::time::{Instant, timeout};

use crate::dial::{Dial, dial};
use crate::http::HttpCheck;
use crate::request::Head;
use crate::verdict::{Reason, Verdict};
use crate::{Finding, grpc, tcp};
use model::{Action, Probe};

/// User-Agent of these checks. Apps and meshes recognise the kubelet by the part before the slash.
const USER_AGENT: &str = "kube-probe/observe";

/// Makes `probe` at its port of `ip`, within the probe's timeout. Not for lifecycle hooks, which an app must get once.
pub async fn check(dialer: &dyn Dial, ip: IpAddr, probe: &Probe) -> Verdict {
    let since = Instant::now();
    let address = SocketAddr::new(ip, probe.action.port());
    let deadline = probe.timeout.map(|timeout| since + timeout);
    let check = async {
        match &probe.action {
            Action::Tcp { .. } => tcp::check(dialer, address).await,
            Action::Grpc { service, .. } => {
                let agent = Some(USER_AGENT.as_bytes());
                grpc::check(dialer, address, service, agent, deadline, true).await
            }
            Action::Http {
                scheme,
                target,
                headers,
                ..
            } => {
                let check = HttpCheck {
                    dialer,
                    address,
                    scheme: *scheme,
                    head: &head(address, target, headers),
                    hook: false,
                    deadline,
                };
                let connection = dial(dialer, address).await;
                let mut spent = None;
                check.run(connection, &mut spent).await
            }
        }
    };
    let found = match probe.timeout {
        Some(limit) => timeout(limit, check).await.ok(),
        None => Some(check.await),
    };
    let found = found.unwrap_or_else(|| {
        Finding::without_answer(
            Reason::TimedOut,
            "no complete answer within the probe's timeout",
        )
    });
    found.verdict(since)
}

/// The request head: that of kubernetes pkg/probe/http/request.go as Go sends it, except for the User-Agent.
fn head(address: SocketAddr, target: &str, headers: &[(String, String)]) -> Vec<u8> {
    let declared = |name: &str| {
        let mut found = headers
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.trim())
    };
    let mut head = Head::get(target.as_bytes());
    let host = declared("host").filter(|host| !host.is_empty());
    match host {
        Some(host) => head.header("Host", host.as_bytes()),
        None => head.header("Host", address.to_string().as_bytes()),
    }
    // An empty declared value removes the header.
    for (name, default) in [("User-Agent", USER_AGENT), ("Accept", "*/*")] {
        match declared(name) {
            Some("") => {}
            Some(value) => head.header(name, value.as_bytes()),
            None => head.header(name, default.as_bytes()),
        }
    }
    for (name, value) in headers {
        let special = ["host", "user-agent", "accept", "connection"];
        if !special.iter().any(|one| name.eq_ignore_ascii_case(one)) {
            head.header(name, value.trim().as_bytes());
        }
    }
    head.header("Connection", b"close");
    head.finish()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use socket2::{Domain, Socket, Type};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use model::{ProbeKind, Schedule, Scheme};

    struct Plain;

    impl Dial for Plain {
        fn socket(&self, to: SocketAddr) -> io::Result<Socket> {
            Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)
        }
    }

    fn text(headers: &[(&str, &str)]) -> String {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let address = "10.0.0.1:8080".parse().expect("an address");
        String::from_utf8(head(address, "/live", &headers)).expect("text")
    }

    #[test]
    fn the_head_is_the_kubelets() {
        assert_eq!(
            text(&[]),
            "GET /live HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: kube-probe/observe\r\nAccept: */*\r\n\
             Connection: close\r\n\r\n"
        );
        assert_eq!(
            text(&[
                ("host", "app.example"),
                ("user-agent", ""),
                ("ACCEPT", "text/plain"),
                ("X-Key", " 1 "),
                ("x-key", "2"),
            ]),
            "GET /live HTTP/1.1\r\nHost: app.example\r\nAccept: text/plain\r\nX-Key: 1\r\nx-key: 2\r\n\
             Connection: close\r\n\r\n"
        );
    }

    fn probe(port: u16, action: impl FnOnce(u16) -> Action) -> Probe {
        Probe {
            container: "app".to_owned(),
            kind: ProbeKind::Liveness,
            action: action(port),
            timeout: Some(Duration::from_millis(300)),
            schedule: Schedule::default(),
        }
    }

    fn http(port: u16) -> Action {
        Action::Http {
            scheme: Scheme::Http,
            port,
            target: "/live".to_owned(),
            headers: Vec::new(),
        }
    }

    #[tokio::test]
    async fn each_result_of_an_http_probe_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let at = listener.local_addr().expect("address");
        let probe = probe(at.port(), http);
        let answer = |answer: &'static [u8]| async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let _ = stream.read(&mut [0; 512]).await.expect("a request");
            stream.write_all(answer).await.expect("write");
        };
        for (bytes, reason) in [
            (&b"HTTP/1.1 204 No Content\r\n\r\n"[..], Reason::Healthy),
            (
                b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
                Reason::HttpStatus,
            ),
            (b"", Reason::ConnectionClosed),
        ] {
            let (verdict, ()) = tokio::join!(check(&Plain, at.ip(), &probe), answer(bytes));
            assert_eq!(verdict.reason, reason);
        }
        // The kernel accepts the connection, and nobody answers.
        assert_eq!(
            check(&Plain, at.ip(), &probe).await.reason,
            Reason::TimedOut
        );
        drop(listener);
        assert_eq!(check(&Plain, at.ip(), &probe).await.reason, Reason::Refused);
    }

    #[tokio::test]
    async fn a_tcp_probe_passes_if_the_port_is_open() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let at = listener.local_addr().expect("address");
        let probe = probe(at.port(), |port| Action::Tcp { port });
        assert_eq!(check(&Plain, at.ip(), &probe).await.reason, Reason::Healthy);
        drop(listener);
        assert_eq!(check(&Plain, at.ip(), &probe).await.reason, Reason::Refused);
    }
}
