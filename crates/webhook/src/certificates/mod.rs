//! The certificate that the webhook serves: from files that another program renews, or issued and renewed by
//! the webhook itself.
//!
//! In both cases a new certificate takes effect without a restart: open connections continue, the next handshake
//! uses the new one. An unusable certificate never replaces a usable one.

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

/// The current certificate. It is the only one, so it is used whether or not a client sends a server name.
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
