//! tc in a pod: attaches foreign programs to the ingress of its interfaces, and lists what is attached there.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use kernel::netlink::Netlink;
use kernel::netns::Netns;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::net::if_::if_nametoindex;

use crate::bpf;
use crate::netns::NetNs;

/// The effect of a foreign program on each packet.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// The priority that it sets, as a sender could if the network keeps priorities.
    pub priority: Option<u32>,
    /// Whether it stops further programs from running for the packet (`TC_ACT_OK`, `TCX_PASS`).
    pub ends: bool,
}

impl Foreign {
    fn load(self) -> Result<OwnedFd> {
        let mut code = Vec::new();
        if let Some(priority) = self.priority {
            // r2 = priority; *(u32 *)(r1 + 32) = r2: `priority` of `struct __sk_buff`.
            code.push(u64::from(priority) << 32 | 0x02b4);
            code.push(0x0000_0000_0020_2163);
        }
        // r0 = 0 (OK, PASS) or -1 (UNSPEC, NEXT); exit.
        code.push(if self.ends {
            0xb7
        } else {
            0xffff_ffff_0000_00b7
        });
        code.push(0x95);
        bpf::load_classifier(&code)
    }

    /// Attaches it as a filter of this priority (1: the first) and handle at the ingress of `interface`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(self, ns: &NetNs, interface: &str, order: u16, handle: u32) -> Result<()> {
        let program = self.load()?;
        let index = index(ns, interface)?;
        let netlink = netlink(ns)?;
        let create = NLM_F_ACK | NLM_F_CREATE;
        let _ack = netlink.ask(Message::NewQueueDiscipline(clsact(index)), create)?;
        let options = vec![
            TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName("foreign".to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        let info = u32::from(order) << 16 | u32::from(3_u16.to_be());
        let filter = message(index, handle, 0xffff_fff2, info, "bpf", options);
        let _ack = netlink.ask(Message::NewTrafficFilter(filter), create)?;
        Ok(())
    }

    /// Attaches it by tcx, before all filters, until the returned link is dropped.
    ///
    /// # Errors
    /// When the kernel refuses, as before Linux 6.6.
    pub fn attach_tcx(self, ns: &NetNs, interface: &str) -> Result<OwnedFd> {
        let (program, index) = (self.load()?, index(ns, interface)?);
        ns.run(|| bpf::link_tcx(program.as_fd(), index.cast_unsigned()))
    }
}

/// The filters at the ingress of `interface`, in their order: the handle and name of each.
///
/// # Errors
/// When the kernel refuses.
pub fn filters(ns: &NetNs, interface: &str) -> Result<Vec<(u32, String)>> {
    let query = message(index(ns, interface)?, 0, 0xffff_fff2, 0, "", Vec::new());
    let mut found = Vec::new();
    netlink(ns)?.dump(Message::GetTrafficFilter(query), |answer| {
        if let Message::NewTrafficFilter(filter) = answer
            && let Some(name) = name(&filter)
        {
            found.push((filter.header.handle.into(), name));
        }
    })?;
    Ok(found)
}

fn name(filter: &TcMessage) -> Option<String> {
    let options = filter.attributes.iter().filter_map(|one| match one {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    })
}

/// Whether any interface of the pod has qdisc `clsact`.
///
/// # Errors
/// When the kernel refuses.
pub fn has_clsact(ns: &NetNs) -> Result<bool> {
    let mut has = false;
    let all = Message::GetQueueDiscipline(TcMessage::default());
    netlink(ns)?.dump(all, |answer| {
        if let Message::NewQueueDiscipline(qdisc) = answer {
            let clsact = TcAttribute::Kind("clsact".to_owned());
            has |= qdisc.attributes.contains(&clsact);
        }
    })?;
    Ok(has)
}

/// Removes qdisc `clsact` of `interface`, with all filters.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_clsact(ns: &NetNs, interface: &str) -> Result<()> {
    let qdisc = Message::DelQueueDiscipline(clsact(index(ns, interface)?));
    let _ack = netlink(ns)?.ask(qdisc, NLM_F_ACK)?;
    Ok(())
}

fn clsact(index: i32) -> TcMessage {
    message(index, 0xffff_0000, 0xffff_fff1, 0, "clsact", Vec::new())
}

fn netlink(ns: &NetNs) -> Result<Netlink> {
    let netns = Netns::open(&ns.path())?;
    Ok(Netlink::within(&netns, NETLINK_ROUTE)?)
}

fn index(ns: &NetNs, interface: &str) -> Result<i32> {
    ns.run(|| {
        let index = if_nametoindex(interface).with_context(|| interface.to_owned())?;
        Ok(index.cast_signed())
    })
}

fn message(
    index: i32,
    handle: u32,
    parent: u32,
    info: u32,
    kind: &str,
    options: Vec<TcFilterBpfOption>,
) -> TcMessage {
    let header = TcHeader {
        index,
        handle: TcHandle::from(handle),
        parent: TcHandle::from(parent),
        info,
        ..TcHeader::default()
    };
    let mut attributes = Vec::new();
    if !kind.is_empty() {
        attributes.push(TcAttribute::Kind(kind.to_owned()));
    }
    if !options.is_empty() {
        let options = options.into_iter().map(TcOption::Bpf).collect();
        attributes.push(TcAttribute::Options(options));
    }
    TcMessage::from_parts(header, attributes)
}
