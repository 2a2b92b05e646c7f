//! The kernel path, in a pod: rules that exempt the kubelet's connections from the mesh's redirect.
//!
//! For each incoming SYN the rules run program `exempt`, by netfilter's match xt_bpf. The program looks the SYN's two
//! addresses and ports up in map `CONNECTING`, to which program `sock_ops` adds each connection that the kubelet is
//! opening. A SYN in the map is not redirected: the app answers it or, without a listener, the pod's network stack.
//!
//! The rules keep the program loaded, and the program keeps its map. The rules are removed with the pod's namespace.

mod error;
mod everywhere;
mod expression;
mod message;
mod rules;
mod transaction;
mod trial;
mod watch;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

pub use error::{Error, Missing};
pub use everywhere::{Removed, remove_everywhere};
pub use expression::Program;
pub use message::Part;
pub use rules::{CONNECTION_MARK, Family, TABLE};
pub use trial::{Trial, trial};
pub use watch::RulesWatch;

use probe_handler_common::programs;

use crate::netns::Netns;
use crate::pins::{self, Pins};

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

    /// Pins the program, and replaces an existing pin. From now on rules refer to it by that path.
    ///
    /// # Errors
    /// [`pins::Error`]; [`io::ErrorKind::InvalidFilename`] in it for a path that is too long for a rule. Then rules
    /// refer to it as before.
    pub fn pin(&mut self, pins: &Pins) -> Result<(), pins::Error> {
        let path = pins.path(programs::EXEMPT);
        let Some(named) = Program::pinned(&path) else {
            let source = io::Error::from(io::ErrorKind::InvalidFilename);
            return Err(pins::Error::Other { path, source });
        };
        let _path = pins.replace(self.program.as_fd(), programs::EXEMPT)?;
        self.named = named;
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
        match transaction::commit(netns, family, &rules::create(family, &self.named)) {
            Err(error) if error.is_there_already() => {
                transaction::commit(netns, family, &rules::replace(family, &self.named))
            }
            put => put,
        }
    }
}

/// Removes the rules of one family from a pod in one transaction; whether there were any. A kernel without nftables has none.
///
/// # Errors
/// [`Error`]. Then the rules are unchanged.
pub fn remove(netns: &Netns, family: Family) -> Result<bool, Error> {
    match transaction::commit(netns, family, &rules::remove(family)) {
        Ok(()) => Ok(true),
        Err(Error::Missing {
            missing: Missing::NfTables,
            ..
        }) => Ok(false),
        Err(error) => Err(error),
    }
}
