//! How a probed (address, port) is to be treated.

/// Value of `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointValue {
    /// The pod's network namespace, as an nsid of the kubelet's network namespace
    /// (rtnetlink `RTM_GETNSID`), at least 0.
    pub netns_id: i32,
    /// [`GATE`], [`REDIRECT`] and [`KERNEL`].
    pub flags: u32,
    /// The mesh's inbound port (15006 for Istio), host byte order; 0: no mesh.
    pub mesh_port: u32,
}

const _: () = assert!(size_of::<EndpointValue>() == 12);

// SAFETY: `EndpointValue` is `repr(C)`, made of 4-byte integers only, 12 bytes with no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for EndpointValue {}

/// Look for the app's listening socket in the pod's network namespace first.
pub const GATE: u32 = 1;
/// Send the connection to the handler.
pub const REDIRECT: u32 = 1 << 1;
/// Leave the connection as it is, and keep it out of the mesh's redirect: rules of ours in the pod ask for it. Together
/// with [`REDIRECT`], that is for when the handler does not answer.
pub const KERNEL: u32 = 1 << 2;
