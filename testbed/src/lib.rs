//! The test environment of probe-handler: real network namespaces and mesh rules, sidecars that accept only
//! mTLS, apps and a stand-in kubelet.
//!
//! A test creates a [`run::Run`], then pods with [`pod::PodSpec`], a [`kubelet::Kubelet`] in its own
//! cgroup, and a [`daemon::Daemon`]. All calls block, and everything is removed on `Drop`; the next run
//! removes the leftovers of a killed run. Apps, sidecars and kubelets are child processes (of the same
//! program), which end when their standard input closes.

pub mod app;
pub mod bpf;
pub mod cgroup;
pub mod chaos;
pub mod command;
pub mod daemon;
pub mod demo;
pub mod envoy;
pub mod freeze;
pub mod guest;
pub mod in_pod;
pub mod interrupt;
pub mod kubelet;
pub mod manifests;
pub mod mesh;
pub mod metrics;
pub mod netns;
pub mod node;
pub mod pace;
pub mod pod;
pub mod port_guesser;
pub mod probe;
pub mod promtool;
pub mod rpc;
pub mod rules;
pub mod run;
pub mod sandbox;
pub mod selfcheck;
pub mod sidecar;
pub mod signal;
pub mod suite;
pub mod table;
pub mod tc;
mod userns;
pub mod verifier;
pub mod wait;
pub mod webhook;
pub mod without_inotify;
pub mod worker;
