//! The kernel path, in a pod: rules that exempt the kubelet's connections from the mesh's redirect.
//!
//! For each incoming SYN the rules run program `exempt`, by netfilter's match xt_bpf. The program looks up the SYN's
//! two addresses and ports in map `CONNECTING`, to which program `sock_ops` adds each connection that the kubelet is
//! opening. A SYN in the map is not redirected: the app answers it or, without a listener, the pod's network stack.
//!
//! The rules keep the program loaded, and the program keeps its map. The rules are removed with the pod's namespace.
//!
//! Where the kernel lacks xt_bpf, program `classify` makes the same decision at tc ingress of the pod's interfaces. It sets the
//! packet's priority, and the rules compare that. The tc filters keep the program then.

mod error;
mod everywhere;
mod expression;
pub(crate) mod message;
mod rules;
mod tc;
mod transaction;
pub mod trial;
mod watch;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::maps::{Array, MapData};

pub use error::{Error, Missing};
pub use everywhere::{Removed, remove_everywhere};
pub use expression::Program;
pub use message::Part;
pub use rules::{CONNECTION_MARK, Family, TABLE};
pub use tc::HANDLE;
pub use trial::Trial;
pub use watch::RulesWatch;

use expression::{Classified, Match};
use probe_handler_common::priority::{Key, class, priority};
use probe_handler_common::programs;

use crate::netns::Netns;
use crate::pins::{self, Pins};

/// What matches exempt connections in the rules of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matcher {
    /// Netfilter's match xt_bpf.
    XtBpf,
    /// A tc filter.
    Tc,
}

/// Installs the rules in pods.
pub struct Exemption {
    program: OwnedFd,
    named: Program,
    /// Program `classify`, or why the kernel does not load it.
    classifier: Result<Classifier, String>,
}

/// Program `classify`, and its key.
pub(super) struct Classifier {
    pub program: OwnedFd,
    pub key: Array<MapData, Key>,
}

impl Exemption {
    /// Installs rules that call program `exempt`. They refer to it by this descriptor.
    pub(super) fn new(program: OwnedFd, classifier: Result<Classifier, String>) -> Self {
        let named = Program::Descriptor(program.as_raw_fd());
        Self {
            program,
            named,
            classifier,
        }
    }

    /// Pins the program, and replaces an existing pin. From now on rules refer to it by that path.
    ///
    /// # Errors
    /// [`pins::Error`]; [`io::ErrorKind::InvalidFilename`] in it for a path that is too long for a rule. Then rules
    /// refer to it as before.
    pub fn pin(&mut self, pins: &Pins) -> Result<(), pins::Error> {
        let path = pins.path(programs::EXEMPT_PIN);
        let Some(named) = Program::pinned(&path) else {
            let source = io::Error::from(io::ErrorKind::InvalidFilename);
            return Err(pins::Error::Other { path, source });
        };
        let _path = pins.replace(self.program.as_fd(), programs::EXEMPT_PIN)?;
        self.named = named;
        Ok(())
    }

    /// How rules refer to the program.
    pub fn program(&self) -> &Program {
        &self.named
    }

    /// Installs the rules of these families in a pod. Replaces existing ones of a family in one transaction, so that the pod is
    /// never without rules.
    ///
    /// # Errors
    /// [`Error`]. Then the rules of at least one family are unchanged.
    pub fn put(&self, netns: &Netns, families: &[Family], matcher: Matcher) -> Result<(), Error> {
        match matcher {
            Matcher::XtBpf => self.put_by_match(netns, families),
            Matcher::Tc => self.put_by_tc(netns, families, &tc::interfaces(netns)?),
        }
    }

    /// Tries what [`Exemption::put`] does in a namespace without addresses, which is not used for anything else.
    ///
    /// # Errors
    /// [`Error`].
    pub fn try_in(&self, netns: &Netns, matcher: Matcher) -> Result<(), Error> {
        match matcher {
            Matcher::XtBpf => self.put_by_match(netns, &Family::ALL),
            Matcher::Tc => self.put_by_tc(netns, &Family::ALL, &[rules::LOOPBACK]),
        }
    }

    fn put_by_match(&self, netns: &Netns, families: &[Family]) -> Result<(), Error> {
        let mut replaced = false;
        for family in families {
            let put = put_rules(netns, *family, Match::Program(&self.named));
            replaced |= put.map_err(|error| error.or_no_pin(&self.named))?;
        }
        // The replaced rules may have been those for tc. The filters have no effect any more.
        if replaced && let Err(error) = tc::remove(netns) {
            tracing::debug!(%error, "unused tc filters remain in a pod");
        }
        Ok(())
    }

    /// Installs the filters before the rules: filters have no effect without rules, while rules without
    /// filters match nothing.
    fn put_by_tc(
        &self,
        netns: &Netns,
        families: &[Family],
        interfaces: &[u32],
    ) -> Result<(), Error> {
        let Classifier { program, key } = self
            .classifier
            .as_ref()
            .map_err(|why| Error::NotLoaded(why.clone()))?;
        // Reads the key again, because another daemon may have set it meanwhile.
        let key = key.get(&0, 0).map_err(Error::Key)?;
        let class = class(key, netns.id().inode);
        let priority = priority(key, class)
            .ok_or_else(|| Error::NotLoaded("its key is not set".to_owned()))?;
        tc::put(netns, program.as_fd(), class, interfaces)?;
        for family in families {
            let classified = Classified {
                priority,
                interfaces,
            };
            let _replaced = put_rules(netns, *family, Match::Priority(classified))?;
        }
        Ok(())
    }
}

/// Installs the rules of one family in one transaction; returns whether they replaced others.
fn put_rules(netns: &Netns, family: Family, how: Match<'_>) -> Result<bool, Error> {
    match transaction::commit(netns, family, &rules::create(family, how)) {
        Err(error) if error.is_existing_table() => {
            transaction::commit(netns, family, &rules::replace(family, how)).map(|()| true)
        }
        put => put.map(|()| false),
    }
}

/// Removes the rules of both families and the tc filters from a pod. Returns whether there were any.
///
/// # Errors
/// [`Error`]. Then some rules or filters may remain.
pub fn remove_all(netns: &Netns) -> Result<bool, Error> {
    let mut any = false;
    for family in Family::ALL {
        any |= remove(netns, family)?;
    }
    any |= tc::remove(netns)?;
    Ok(any)
}

/// Removes the rules of one family from a pod in one transaction. Returns whether there were any: on a kernel without
/// nftables there are none.
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
