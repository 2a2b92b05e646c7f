//! The kernel path, in a pod: rules that exempt the kubelet's connections from the mesh's redirect.
//!
//! For each incoming SYN the rules run program `exempt`, by netfilter's match xt_bpf. The program looks the SYN's two
//! addresses and ports up in map `CONNECTING`, to which program `sock_ops` adds each connection that the kubelet is
//! opening. A SYN in the map is not redirected: the app answers it or, without a listener, the pod's network stack.
//!
//! The rules keep the program loaded, and the program keeps its map. The rules are removed with the pod's namespace.

mod error;
mod expression;
mod message;
mod pin;
mod rules;
mod transaction;
mod trial;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

pub use error::{Error, Missing};
pub use expression::Program;
pub use message::Part;
pub use pin::PinError;
pub use rules::{CONNECTION_MARK, Family, TABLE};
pub use trial::{Trial, trial};

use crate::netns::Netns;

/// Installs the rules in pods.
#[derive(Debug)]
pub struct Exemption {
    program: OwnedFd,
    named: Program,
}

impl Exemption {
    /// For the program `exempt`. Rules refer to it by this descriptor.
    pub(super) fn new(program: OwnedFd) -> Self {
        let named = Program::Descriptor(program.as_raw_fd());
        Self { program, named }
    }

    /// Pins the program in `directory`, and replaces an existing pin. From now on rules refer to it by that path.
    ///
    /// # Errors
    /// [`PinError`]. Then rules refer to it as before.
    pub fn pin(&mut self, directory: &Path) -> Result<(), PinError> {
        self.named = pin::pin(&self.program, directory)?;
        Ok(())
    }

    /// How rules refer to the program.
    pub fn program(&self) -> &Program {
        &self.named
    }

    /// Installs the rules of one family in a pod. Replaces existing ones in the same transaction, so that the pod is never
    /// without rules.
    ///
    /// # Errors
    /// [`Error`]. Then nothing has changed in the pod.
    pub fn put(&self, netns: &Netns, family: Family) -> Result<(), Error> {
        transaction::commit(netns, family, &rules::put(family, &self.named))
    }
}

/// Removes the rules of one family from a pod, if it has any, in one transaction.
///
/// # Errors
/// [`Error`]. Then the rules are unchanged.
pub fn remove(netns: &Netns, family: Family) -> Result<(), Error> {
    transaction::commit(netns, family, &rules::remove(family))
}
