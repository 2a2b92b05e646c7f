//! The real-thing test environment of probe-handler: network namespaces, mesh rules, mTLS-only
//! sidecars, apps and a stand-in kubelet, none of them simulated.
//!
//! A test makes a [`run::Run`], then pods with [`pod::PodSpec`], a [`kubelet::Kubelet`] in a cgroup
//! of its own, and a [`daemon::Daemon`]. Everything is blocking and removed on `Drop`; what a killed
//! run left behind is removed by the next one. Apps, sidecars and kubelets are child processes (this
//! same binary), which end when their standard input closes.

pub mod app;
pub mod bench;
pub mod bpf;
pub mod cgroup;
pub mod command;
pub mod daemon;
pub mod demo;
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
pub mod rpc;
pub mod rules;
pub mod run;
pub mod sandbox;
pub mod selfcheck;
pub mod sidecar;
pub mod suite;
pub mod table;
pub mod verifier;
pub mod wait;
pub mod webhook;
pub mod without_inotify;
pub mod worker;
