//! The certificate that the webhook serves: from files that somebody else renews, or made and renewed by
//! ourselves.
//!
//! Either way it is swapped in place: connections that stand go on, the next handshake gets the new one. What
//! can't be used never replaces what can.

pub mod authority;
pub mod cert_manager;
pub mod files;
pub mod pair;
pub mod store;
pub mod trust;

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use pair::Pair;

/// The certificate of the moment. Whatever name a client asks for, and whether it does: there is one only.
#[derive(Default)]
pub struct Serving(RwLock<Option<Arc<CertifiedKey>>>);

impl Serving {
    /// Serves `pair` from now on.
    pub fn install(&self, pair: &Pair) {
        *self.0.write() = Some(pair.certified());
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().clone()
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = self.0.read().is_some();
        f.debug_struct("Serving")
            .field("certificate", &has)
            .finish()
    }
}

#[cfg(test)]
mod tests;
