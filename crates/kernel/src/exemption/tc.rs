//! tc filters in a pod: program `classify` at the ingress of the pod's interfaces, for kernels without netfilter's match xt_bpf.
//!
//! The filters keep the program loaded, and the program keeps its maps. They are removed with the interface. They are in qdisc
//! `clsact`, which exists at most once for an interface, and which another program may have created. This module changes only
//! our own filters there.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
    TcOption,
};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::error::{Error, Missing};
use super::rules::LOOPBACK;
use crate::netlink::Netlink;
use crate::netns::Netns;

/// The handle of our filter, which distinguishes it from others of the same priority.
pub const HANDLE: u32 = 0x7068_0001;
/// The name of our filter.
const NAME: &str = "probe_handler";
/// The name of our filter if we created the qdisc, which is then removed with the filter.
const NAME_WITH_QDISC: &str = "probe_handler+clsact";
/// The names of the qdiscs that have filters at ingress.
const CLSACT: &str = "clsact";
const INGRESS: &str = "ingress";
/// `ETH_P_ALL`: a filter for packets of all protocols.
const ALL_PROTOCOLS: u16 = 3;
/// Maximum number of interfaces that get a filter, because a process that may configure the pod's network can
/// add any number of interfaces.
const INTERFACES: usize = 8;
/// Maximum time for listing filters, because such a process can also add any number of filters.
const LISTS: Duration = Duration::from_secs(1);

/// Interfaces through which connections to the pod may arrive: those with an address, except `lo`.
///
/// # Errors
/// [`Error::Socket`], [`Error::NoInterface`].
pub(super) fn interfaces(netns: &Netns) -> Result<Vec<u32>, Error> {
    let mut indices = BTreeSet::new();
    let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let listed = Netlink::within(netns, NETLINK_ROUTE).and_then(|netlink| {
        netlink.dump(all, |message| {
            if let RouteNetlinkMessage::NewAddress(address) = message
                && address.header.index != LOOPBACK
            {
                let _ = indices.insert(address.header.index);
            }
        })
    });
    listed.map_err(Error::Socket)?;
    if indices.is_empty() {
        return Err(Error::NoInterface);
    }
    Ok(indices.into_iter().take(INTERFACES).collect())
}

/// Attaches `program` to the ingress of `interfaces`, in place of our earlier filters. It can read `class`.
///
/// # Errors
/// [`Error`]. Then an earlier filter may have been replaced, and some interfaces may have one.
pub(super) fn put(
    netns: &Netns,
    program: BorrowedFd<'_>,
    class: u16,
    interfaces: &[u32],
) -> Result<(), Error> {
    let tc = Tc::within(netns)?;
    let begun = Instant::now();
    for interface in interfaces {
        if begun.elapsed() > LISTS {
            let source = io::ErrorKind::TimedOut.into();
            return Err(refused("the list of filters", *interface, source));
        }
        let filters = tc.filters(*interface, TcHandle::MIN_INGRESS);
        let filters =
            filters.map_err(|source| refused("the list of filters", *interface, source))?;
        let (priority, made_qdisc) = match ours(&filters) {
            Some(filter) => (filter.priority, filter.made_qdisc()),
            None => (free_priority(&filters), tc.add_qdisc(*interface)?),
        };
        tc.put_filter(*interface, priority, program, class, made_qdisc)?;
    }
    Ok(())
}

/// Removes our filters from all interfaces of `netns`, and the qdiscs that we created, unless other filters use them. Returns
/// whether there were any.
///
/// # Errors
/// [`Error`].
pub(super) fn remove(netns: &Netns) -> Result<bool, Error> {
    let tc = Tc::within(netns)?;
    let mut any = false;
    for interface in tc.interfaces_with_filters()? {
        any |= tc
            .remove(interface)
            .or_else(|error| match error.raw_os_error() {
                // Another process has removed the filter or the interface.
                Some(libc::ENOENT | libc::ENODEV | libc::EINVAL) => Ok(false),
                _ => Err(refused("the removal of our filter", interface, error)),
            })?;
    }
    Ok(any)
}

/// A filter at an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Filter {
    priority: u16,
    protocol: u16,
    handle: u32,
    chain: u32,
    kind: String,
    name: String,
}

impl Filter {
    fn of(message: &TcMessage) -> Self {
        let info = message.header.info;
        let mut filter = Self {
            priority: (info >> 16) as u16,
            protocol: u16::from_be(info as u16),
            handle: message.header.handle.into(),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                TcAttribute::Kind(kind) => filter.kind.clone_from(kind),
                TcAttribute::Chain(chain) => filter.chain = *chain,
                TcAttribute::Options(options) => {
                    for option in options {
                        if let TcOption::Bpf(TcFilterBpfOption::ProgName(name)) = option {
                            filter.name.clone_from(name);
                        }
                    }
                }
                _ => {}
            }
        }
        filter
    }

    fn is_ours(&self) -> bool {
        self.kind == TcFilterBpf::KIND
            && self.handle == HANDLE
            && self.chain == 0
            && [NAME, NAME_WITH_QDISC].contains(&self.name.as_str())
    }

    fn made_qdisc(&self) -> bool {
        self.name == NAME_WITH_QDISC
    }
}

fn ours(filters: &[Filter]) -> Option<&Filter> {
    filters.iter().find(|filter| filter.is_ours())
}

/// The priority for our filter: the first at which filters of our kind may be added. The kernel puts a new filter before others
/// of its priority.
fn free_priority(filters: &[Filter]) -> u16 {
    let is_free = |priority: &u16| {
        let of_it = |filter: &&Filter| filter.chain == 0 && filter.priority == *priority;
        filters
            .iter()
            .filter(of_it)
            .all(|filter| filter.kind == TcFilterBpf::KIND && filter.protocol == ALL_PROTOCOLS)
    };
    (1..u16::MAX).find(is_free).unwrap_or(u16::MAX)
}

fn refused(what: &'static str, interface: u32, source: io::Error) -> Error {
    Error::Tc {
        what,
        interface,
        source,
    }
}

/// tc in one namespace.
struct Tc(Netlink);

impl Tc {
    fn within(netns: &Netns) -> Result<Self, Error> {
        Netlink::within(netns, NETLINK_ROUTE)
            .map(Self)
            .map_err(Error::Socket)
    }

    /// The filters of `interface` at ingress or egress.
    fn filters(&self, interface: u32, hook: u16) -> io::Result<Vec<Filter>> {
        let mut filters = Vec::new();
        let query = message(interface, TcHandle::UNSPEC, hook, 0, Vec::new());
        self.0
            .dump(RouteNetlinkMessage::GetTrafficFilter(query), |answer| {
                if let RouteNetlinkMessage::NewTrafficFilter(filter) = answer {
                    filters.push(Filter::of(&filter));
                }
            })?;
        Ok(filters)
    }

    /// The interfaces that have a qdisc with filters at ingress.
    fn interfaces_with_filters(&self) -> Result<Vec<u32>, Error> {
        let mut interfaces = Vec::new();
        let all = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let listed = self.0.dump(all, |answer| {
            if let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = answer
                && qdisc.attributes.iter().any(|attribute| {
                    matches!(attribute, TcAttribute::Kind(kind) if kind == CLSACT || kind == INGRESS)
                })
            {
                interfaces.push(qdisc.header.index.cast_unsigned());
            }
        });
        match listed {
            // The kernel does not support tc.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
            Err(error) => Err(Error::Socket(error)),
            Ok(()) => Ok(interfaces),
        }
    }

    /// Adds qdisc `clsact`, unless `interface` already has it or qdisc `ingress`, which has the same filters. Returns whether
    /// it was added.
    fn add_qdisc(&self, interface: u32) -> Result<bool, Error> {
        let added = self.ask(
            RouteNetlinkMessage::NewQueueDiscipline,
            NLM_F_CREATE | NLM_F_EXCL,
            qdisc(interface),
        );
        match added {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EEXIST) => Ok(false),
                Some(libc::ENOENT | libc::EOPNOTSUPP) => Err(Error::MissingForTc(Missing::Clsact)),
                _ => Err(refused("qdisc clsact", interface, error)),
            },
        }
    }

    /// Adds our filter, or replaces it.
    fn put_filter(
        &self,
        interface: u32,
        priority: u16,
        program: BorrowedFd<'_>,
        class: u16,
        made_qdisc: bool,
    ) -> Result<(), Error> {
        let name = match made_qdisc {
            true => NAME_WITH_QDISC,
            false => NAME,
        };
        let options = [
            TcFilterBpfOption::ClassId(TcHandle {
                major: 0,
                minor: class,
            }),
            TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        let attributes = vec![
            TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
            TcAttribute::Options(options.map(TcOption::Bpf).into()),
        ];
        self.ask(
            RouteNetlinkMessage::NewTrafficFilter,
            NLM_F_CREATE,
            filter(interface, priority, attributes),
        )
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => Error::MissingForTc(Missing::ClsBpf),
            _ => refused("our filter", interface, error),
        })
    }

    /// Removes our filter from `interface`, and the qdisc if we created it and it has no other filter. Returns whether there
    /// was one.
    fn remove(&self, interface: u32) -> io::Result<bool> {
        let filters = self.filters(interface, TcHandle::MIN_INGRESS)?;
        let Some(ours) = ours(&filters) else {
            return Ok(false);
        };
        let kind = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())];
        self.ask(
            RouteNetlinkMessage::DelTrafficFilter,
            0,
            filter(interface, ours.priority, kind),
        )?;
        let is_empty = |hook| self.filters(interface, hook).map(|left| left.is_empty());
        if ours.made_qdisc() && is_empty(TcHandle::MIN_INGRESS)? && is_empty(TcHandle::MIN_EGRESS)?
        {
            self.ask(RouteNetlinkMessage::DelQueueDiscipline, 0, qdisc(interface))?;
        }
        Ok(true)
    }

    fn ask(
        &self,
        kind: fn(TcMessage) -> RouteNetlinkMessage,
        flags: u16,
        message: TcMessage,
    ) -> io::Result<()> {
        self.0.ask(kind(message), NLM_F_ACK | flags).map(drop)
    }
}

/// The message that names qdisc `clsact` of `interface`.
fn qdisc(interface: u32) -> TcMessage {
    let handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    let kind = vec![TcAttribute::Kind(CLSACT.to_owned())];
    message(interface, handle, TcHandle::CLSACT.minor, 0, kind)
}

/// The message that names our filter at `interface`.
fn filter(interface: u32, priority: u16, attributes: Vec<TcAttribute>) -> TcMessage {
    let info = u32::from(priority) << 16 | u32::from(ALL_PROTOCOLS.to_be());
    message(
        interface,
        HANDLE.into(),
        TcHandle::MIN_INGRESS,
        info,
        attributes,
    )
}

fn message(
    interface: u32,
    handle: TcHandle,
    parent: u16,
    info: u32,
    attributes: Vec<TcAttribute>,
) -> TcMessage {
    let header = TcHeader {
        index: interface.cast_signed(),
        handle,
        parent: TcHandle {
            major: TcHandle::CLSACT.major,
            minor: parent,
        },
        info,
        ..TcHeader::default()
    };
    TcMessage::from_parts(header, attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str, priority: u16) -> Filter {
        Filter {
            kind: kind.to_owned(),
            priority,
            protocol: ALL_PROTOCOLS,
            ..Filter::default()
        }
    }

    #[test]
    fn our_filter_goes_before_others_where_the_kernel_allows_it() {
        assert_eq!(free_priority(&[]), 1);
        assert_eq!(free_priority(&[of("bpf", 1), of("u32", 2)]), 1);
        let ip_only = Filter {
            protocol: 0x0800,
            ..of("bpf", 2)
        };
        assert_eq!(free_priority(&[of("u32", 1), ip_only]), 3);
        let another_chain = Filter {
            chain: 7,
            ..of("u32", 1)
        };
        assert_eq!(free_priority(&[another_chain]), 1);
    }

    #[test]
    fn only_a_filter_with_our_handle_and_name_is_ours() {
        let ours = Filter {
            handle: HANDLE,
            name: NAME.to_owned(),
            ..of("bpf", 1)
        };
        assert!(ours.is_ours() && !ours.made_qdisc());
        let with_qdisc = Filter {
            name: NAME_WITH_QDISC.to_owned(),
            ..ours.clone()
        };
        assert!(with_qdisc.is_ours() && with_qdisc.made_qdisc());
        for others in [
            Filter {
                handle: 1,
                ..ours.clone()
            },
            Filter {
                name: "other".to_owned(),
                ..ours.clone()
            },
            Filter { chain: 1, ..ours },
        ] {
            assert!(!others.is_ours(), "{others:?}");
        }
    }

    #[test]
    fn a_filter_is_read_from_the_message_that_describes_it() {
        let options = [
            TcFilterBpfOption::ClassId(0x1234_u32.into()),
            TcFilterBpfOption::ProgName(NAME.to_owned()),
        ];
        let attributes = vec![
            TcAttribute::Kind("bpf".to_owned()),
            TcAttribute::Options(options.map(TcOption::Bpf).into()),
        ];
        let read = Filter::of(&filter(2, 7, attributes));
        assert!(read.is_ours());
        assert_eq!((read.priority, read.protocol), (7, ALL_PROTOCOLS));
    }
}
