//! The kernel path, in a pod: rules of ours that keep the kubelet's own connections out of a mesh's redirect.
//!
//! The rules ask our program `exempt`, by netfilter's match xt_bpf, about each SYN that comes in. It knows the
//! connections that the kubelet is making just now, by address and port of both ends, from our program `sock_ops`. What
//! it says yes to is not redirected: the app answers it or, where nobody listens, the pod's own kernel.
//!
//! The rules hold the program, and the program its map. They end with the pod's namespace.

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

/// Puts our rules into pods.
#[derive(Debug)]
pub struct Exemption {
    program: OwnedFd,
    named: Program,
}

impl Exemption {
    /// With the program `exempt`, which rules name by this descriptor.
    pub(super) fn new(program: OwnedFd) -> Self {
        let named = Program::Descriptor(program.as_raw_fd());
        Self { program, named }
    }

    /// Pins the program, in place of one that is pinned there. Rules name it by that path from now on.
    ///
    /// # Errors
    /// [`pins::Error`]; [`io::ErrorKind::InvalidFilename`] in it for a path that is too long for a rule. Then rules
    /// name it as before.
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

    /// How rules name the program.
    pub fn program(&self) -> &Program {
        &self.named
    }

    /// Puts our rules of one family into a pod, in place of those that are there: by one transaction, so that there is
    /// no moment without rules.
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

/// Removes our rules of one family from a pod, by one transaction; whether it had any.
///
/// A kernel without nftables has none either: both are ENOENT or the like.
///
/// # Errors
/// [`Error`]. Then they are there as before.
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
