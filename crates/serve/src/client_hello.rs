//! Decides by the ClientHello whether a TLS client may be a probe of the kubelet.

use rustls::server::Acceptor;

/// Whether a connection that begins with `bytes` of a TLS handshake may be a probe. `None` while the
/// ClientHello is incomplete.
///
/// The kubelet dials an IP address, for which Go sends no server_name (crypto/tls `hostnameInSNI`), whatever
/// Host header the probe has. Other components in the kubelet's process do send one: an API server there names
/// the Service when it calls a webhook or an aggregated API.
pub(super) fn may_be_probe(mut bytes: &[u8]) -> Option<bool> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if !matches!(acceptor.read_tls(&mut bytes), Ok(1..)) {
            return Some(false);
        }
    }
    match acceptor.accept() {
        Ok(None) => None,
        Ok(Some(accepted)) => Some(accepted.client_hello().server_name().is_none()),
        Err(_) => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::client_hello;
    use super::*;

    #[test]
    fn a_client_hello_with_a_server_name_is_no_probe() {
        for (server, probe) in [
            ("10.0.0.7", true),
            ("fd00::7", true),
            ("cart.shop.svc", false),
        ] {
            let hello = client_hello(server);
            assert_eq!(may_be_probe(&hello), Some(probe), "{server}");
            for end in [1, 5, 6, hello.len() - 1] {
                assert_eq!(may_be_probe(&hello[..end]), None, "{server}, {end} bytes");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_client_hello_are_no_probe() {
        assert_eq!(may_be_probe(b"\x16\x03\x01\x00\x05hello"), Some(false));
        assert_eq!(may_be_probe(b"\x16\x03\x01\xff\xff"), Some(false));
    }
}
