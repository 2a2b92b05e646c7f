//! The ports of a pod whose connections the pod's own rules redirect. The daemon does not serve these ports: the
//! kubelet's connections to them are unchanged.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// Ports, by address family, with the address and port to which the pod's own rules redirect them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirects(BTreeMap<Port, SocketAddr>);

/// A port in one address family, because rules differ by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The family.
    pub is_ipv4: bool,
    /// The port.
    pub number: u16,
}

impl fmt::Display for Redirects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |(port, to): (&Port, &SocketAddr)| {
            let family = if port.is_ipv4 { "IPv4" } else { "IPv6" };
            format!("{family} {} to {to}", port.number)
        };
        let all: Vec<_> = self.0.iter().map(one).collect();
        f.write_str(&all.join(", "))
    }
}

impl From<SocketAddr> for Port {
    fn from(at: SocketAddr) -> Self {
        Self {
            is_ipv4: at.ip().to_canonical().is_ipv4(),
            number: at.port(),
        }
    }
}

impl Redirects {
    /// Where the pod's own rules redirect connections to `at`, if they do.
    pub fn leads(&self, at: SocketAddr) -> Option<SocketAddr> {
        self.0.get(&Port::from(at)).copied()
    }

    /// Sets where connections to `at` are redirected; returns whether that has changed.
    pub fn set(&mut self, at: SocketAddr, to: Option<SocketAddr>) -> bool {
        let port = Port::from(at);
        let before = match to {
            Some(to) => self.0.insert(port, to),
            None => self.0.remove(&port),
        };
        before != to
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (Port, SocketAddr)> {
        self.0.iter().map(|(port, to)| (*port, *to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_family_has_its_own_redirects() {
        let at = |text: &str| -> SocketAddr { text.parse().expect("an address and a port") };
        let mut redirects = Redirects::default();
        assert!(redirects.set(at("10.0.0.5:80"), Some(at("10.0.0.5:8080"))));
        assert!(!redirects.set(at("10.0.0.5:80"), Some(at("10.0.0.5:8080"))));
        assert_eq!(
            redirects.leads(at("10.0.0.6:80")),
            Some(at("10.0.0.5:8080"))
        );
        assert_eq!(redirects.leads(at("[fd00::5]:80")), None);
        assert_eq!(redirects.leads(at("10.0.0.5:81")), None);
        assert!(redirects.set(at("10.0.0.5:80"), None));
        assert!(redirects.is_empty());
    }
}
