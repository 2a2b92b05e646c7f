//! How the programs treat connections to a probed address and port.

/// Value of `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointValue {
    /// The pod's network namespace, as an nsid of the kubelet's network namespace
    /// (rtnetlink `RTM_GETNSID`), at least 0.
    pub netns_id: i32,
    /// [`GATE`], [`REDIRECT`], [`KERNEL`], [`LOCALHOST`], [`READ_HTTP`] and [`READ_GRPC`].
    pub flags: u32,
    /// The mesh's inbound port (15006 for Istio), host byte order; 0: no mesh.
    pub mesh_port: u32,
}

const _: () = assert!(size_of::<EndpointValue>() == 12);

// SAFETY: `EndpointValue` is `repr(C)`, contains only 4-byte integers, 12 bytes without padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for EndpointValue {}

/// First check whether the app listens in the pod's network namespace.
pub const GATE: u32 = 1;
/// Redirect the connection to the handler.
pub const REDIRECT: u32 = 1 << 1;
/// Leave the destination unchanged, and exempt the connection from the mesh's redirect by our rules in the pod. Together
/// with [`REDIRECT`], this applies only while the handler does not answer.
pub const KERNEL: u32 = 1 << 2;
/// The mesh connects to the app at the pod's loopback address: [`GATE`] checks that address instead of the endpoint's.
pub const LOCALHOST: u32 = 1 << 3;
/// On the kernel path the app's answers are read as HTTP/1.
pub const READ_HTTP: u32 = 1 << 4;
/// On the kernel path the app's answers are read as those of gRPC health checks.
pub const READ_GRPC: u32 = 1 << 5;
