//! Loads the eBPF programs, attaches them to the kubelet's cgroup, and detaches them.

mod in_pods;
mod outliving;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::Map;
use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError,
    SchedClassifier, SockOps, SocketFilter,
};
use aya::{Ebpf, EbpfError, EbpfLoader};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use probe_handler_common::config::Config;
use probe_handler_common::{globals, maps, programs};

use crate::heartbeat::Heartbeat;
use crate::maps::{ConnectingMap, CounterMap, EndpointMap, FlowMap, OutcomeRing, ProgramConfig};
use crate::pins::Pins;
use crate::{attach_conflicts, capabilities};

/// The eBPF object that `cargo xtask build-ebpf` built; empty in a development build without it.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe-handler.bpf.o"));

/// Loading or attaching failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A development build without eBPF programs.
    #[error(
        "this binary was built without its eBPF programs: run `cargo xtask build-ebpf`, then build again"
    )]
    NoObject,
    /// The object can't be read, or its maps can't be created.
    #[error("cannot load the eBPF object")]
    Load(#[source] Box<EbpfError>),
    /// The object lacks a program or map that the daemon needs.
    #[error(
        "the eBPF object has no {what} {name}: daemon and object have different versions; run `cargo xtask build-ebpf`, then build again"
    )]
    Missing {
        /// "program" or "map".
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The layout of a map differs from the daemon's types.
    #[error("map {name} does not have the expected type")]
    Map {
        /// Its name.
        name: &'static str,
        /// The error that aya returns.
        #[source]
        source: aya::maps::MapError,
    },
    /// The kernel's verifier rejects a program.
    #[error("the kernel refuses program {program}")]
    Verify {
        /// The program.
        program: &'static str,
        /// The kernel's error and the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// Program `heartbeat` can't be attached to its socket.
    #[error("cannot attach program heartbeat to a socket of this process")]
    Heartbeat(#[source] Box<ProgramError>),
    /// The cgroup directory can't be opened.
    #[error("cannot open the kubelet's cgroup {}", path.display())]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refuses to attach a program to the cgroup.
    #[error("cannot attach {program} to {}", path.display())]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: Box<ProgramError>,
    },
}

impl Error {
    /// What to do about the error, if that depends on the machine.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Load(_) | Self::Verify { .. } => Some(loading_remedy()),
            Self::Attach { path, source, .. } => {
                let forbidden = matches!(&**source, ProgramError::SyscallError(syscall)
                    if syscall.io_error.raw_os_error() == Some(libc::EPERM));
                forbidden.then(|| attach_conflicts::remedy(path))
            }
            _ => None,
        }
    }

    /// The message for the operator: the error with its causes, and what to do.
    pub fn message(self) -> String {
        let remedy = self.remedy();
        let error = anyhow::Error::from(self);
        match remedy {
            Some(remedy) => format!("{error:#}; {remedy}"),
            None => format!("{error:#}"),
        }
    }
}

/// What to do if the kernel rejects the maps or programs.
fn loading_remedy() -> String {
    let needs = "loading requires a kernel with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF, and the capabilities that \
                 `probe-handler preflight` lists";
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((limit, _)) if limit != RLIM_INFINITY => {
            let [need] = &capabilities::AT_START;
            format!(
                "{needs}; before Linux 5.11 also an RLIMIT_MEMLOCK above {limit} bytes, or {} to raise it",
                need.capability
            )
        }
        _ => needs.to_owned(),
    }
}

/// Options for loading.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The capacity of `ENDPOINTS`.
    pub endpoints_capacity: u32,
    /// The directory of the pins that outlive this process; `None`: nothing outlives it.
    pub pins: Option<Pins>,
    /// Whether the optional programs `answer` and `classify` are loaded, which only the kernel path needs.
    pub kernel_path: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            endpoints_capacity: maps::ENDPOINTS_CAPACITY,
            pins: None,
            kernel_path: true,
        }
    }
}

/// The maps, one field for each part of the daemon.
pub struct Maps {
    /// For the registry.
    pub endpoints: EndpointMap,
    /// For the handler.
    pub flows: Arc<FlowMap>,
    /// For the handler.
    pub heartbeat: Arc<Heartbeat>,
    /// For the tasks that set the handler's ports and the kubelet's process.
    pub config: ProgramConfig,
    /// For metrics and `status`.
    pub counters: Arc<CounterMap>,
    /// For the verdicts of probes that the handler does not see.
    pub outcomes: OutcomeRing,
    /// For trial connections.
    pub connecting: Arc<ConnectingMap>,
}

/// The loaded programs and their attachments. Dropping it removes all of them from the kernel.
pub struct Programs {
    ebpf: Ebpf,
    refuses_with_econnrefused: bool,
    /// Why program `answer` is not loaded or not attached, though it should be.
    answer_trouble: Option<String>,
    /// Why program `classify` is not loaded, though it should be.
    classify_trouble: Option<String>,
    links: Vec<Attached>,
    cgroup: Option<PathBuf>,
    connecting: Arc<ConnectingMap>,
    /// The directory of the pins that outlive this process; and whether this daemon has replaced the pins
    /// there with its own.
    pins: Option<Pins>,
    adopted: bool,
    /// [`Pins::number`] of the first attachment that we have pinned.
    pinned: Option<u64>,
    /// [`Pins::number`] of the heartbeat that we have pinned.
    pinned_heartbeat: Option<u64>,
    /// What could not be pinned, and why; that is logged.
    pins_failed: Option<String>,
    /// The maps that are pinned.
    heartbeat_fd: OwnedFd,
    connecting_fd: OwnedFd,
    key_fd: OwnedFd,
}

/// Whether program `answer` is attached with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerIs {
    /// It is attached, if it is loaded.
    Attached,
    /// It is not attached, because no connection of this kubelet takes the kernel path.
    LeftOut,
}

struct Attached {
    program: &'static str,
    /// Dropping it detaches the program, unless it is pinned.
    link: FdLink,
}

/// The eBPF object that this build loads; empty in a development build without it.
pub fn object() -> &'static [u8] {
    OBJECT
}

/// Whether this build contains the eBPF programs.
fn built_in() -> bool {
    !OBJECT.is_empty()
}

impl Programs {
    /// Loads all programs and creates their maps. Attaches nothing.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::Load`], [`Error::Missing`], [`Error::Verify`].
    pub fn load(options: &LoadOptions) -> Result<(Self, Maps), Error> {
        if !built_in() {
            return Err(Error::NoObject);
        }
        // Before Linux 5.11 maps are charged to this limit. If it can't be raised and is too low, loading fails with
        // an error that names it.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        // Tries both instead of comparing kernel versions, because distributions backport features.
        match Self::load_with(options, true) {
            Err(Error::Verify { .. }) => Self::load_with(options, false),
            loaded => loaded,
        }
    }

    /// Like [`Programs::load`]. If the pins can't be used, loads without them, and also returns the reason.
    ///
    /// # Errors
    /// Those of [`Programs::load`].
    pub fn load_or_without_pins(
        mut options: LoadOptions,
    ) -> Result<(Self, Maps, Option<String>), Error> {
        let trouble = match options.pins.as_ref().map(outliving::usable) {
            None => None,
            Some(Ok(())) => match Self::load(&options) {
                Ok((programs, maps)) => return Ok((programs, maps, None)),
                Err(error) => Some(error.message()),
            },
            Some(Err(why)) => Some(why),
        };
        let remain = options.pins.as_ref().and_then(Pins::remain);
        let trouble = trouble.map(|why| {
            [Some(why), remain]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("; ")
        });
        options.pins = None;
        let (programs, maps) = Self::load(&options)?;
        Ok((programs, maps, trouble))
    }

    fn load_with(options: &LoadOptions, set_retval: bool) -> Result<(Self, Maps), Error> {
        let per_cpu = lru_capacity_per_all_cpus();
        let mut loader = EbpfLoader::new();
        if let Some(pins) = &options.pins {
            // All daemons share this map, so that the rules in every pod match a connection that any daemon
            // has recorded.
            let _ = loader.map_pin_path(maps::CONNECTING, pins.path(maps::CONNECTING_PIN));
            // Shared too, so that the rules in a pod remain valid when another daemon replaces the tc filters.
            let _ = loader.map_pin_path(maps::CLASSIFY_KEY, pins.path(maps::CLASSIFY_KEY_PIN));
        }
        let mut ebpf = loader
            .map_max_entries(maps::SOCKETS, maps::SOCKETS_CAPACITY.max(per_cpu))
            .map_max_entries(maps::FLOWS, maps::FLOWS_CAPACITY.max(per_cpu))
            .override_global(globals::HAS_SET_RETVAL, &u8::from(set_retval), true)
            .map_max_entries(maps::ENDPOINTS, options.endpoints_capacity)
            .load(OBJECT)
            .map_err(|error| Error::Load(Box::new(error)))?;
        for program in programs::ATTACH_ORDER {
            load_program(&mut ebpf, program)?;
        }
        let [answer, classify] =
            [programs::ANSWER, programs::CLASSIFY].map(|program| match options.kernel_path {
                true => load_program(&mut ebpf, program),
                false => Ok(()),
            });
        let heartbeat_fd = map_fd(&ebpf, maps::HEARTBEAT)?;
        let connecting_fd = map_fd(&ebpf, maps::CONNECTING)?;
        let key_fd = map_fd(&ebpf, maps::CLASSIFY_KEY)?;
        let heartbeat = Arc::new(heartbeat(&mut ebpf)?);
        load_socket_filter(&mut ebpf, programs::EXEMPT)?;
        let connecting = take_map(&mut ebpf, maps::CONNECTING)?;
        let connecting = Arc::new(ConnectingMap {
            map: Mutex::new(connecting),
            clock: Arc::clone(&heartbeat),
        });
        let maps = Maps {
            connecting: Arc::clone(&connecting),
            heartbeat: Arc::clone(&heartbeat),
            endpoints: EndpointMap(take_map(&mut ebpf, maps::ENDPOINTS)?),
            flows: Arc::new(FlowMap(Mutex::new(take_map(&mut ebpf, maps::FLOWS)?))),
            config: ProgramConfig(Arc::new(Mutex::new((
                Config::default(),
                take_map(&mut ebpf, maps::CONFIG)?,
            )))),
            counters: Arc::new(CounterMap(take_map(&mut ebpf, maps::COUNTERS)?)),
            outcomes: OutcomeRing::new(take_map(&mut ebpf, maps::OUTCOMES)?),
        };
        let programs = Self {
            ebpf,
            refuses_with_econnrefused: set_retval,
            answer_trouble: answer.err().map(Error::message),
            classify_trouble: classify.err().map(Error::message),
            links: Vec::new(),
            cgroup: None,
            connecting,
            pins: options.pins.clone(),
            adopted: false,
            pinned: None,
            pinned_heartbeat: None,
            pins_failed: None,
            heartbeat_fd,
            connecting_fd,
            key_fd,
        };
        Ok((programs, maps))
    }

    /// Whether `connect` fails with ECONNREFUSED for a refused connection (else EPERM, because this kernel
    /// has no `bpf_set_retval` for connect programs).
    pub fn refuses_with_econnrefused(&self) -> bool {
        self.refuses_with_econnrefused
    }

    /// Attaches all programs to `cgroup`, and detaches them from the previous cgroup, if any. The new
    /// attachment is in place before the old one is removed. Program `answer` is attached if it is `wanted`; the others work
    /// without it.
    ///
    /// # Errors
    /// [`Error::Cgroup`], [`Error::Attach`]; then the old attachment is unchanged.
    pub fn attach(&mut self, cgroup: &Path, wanted: AnswerIs) -> Result<(), Error> {
        let directory = File::open(cgroup).map_err(|source| Error::Cgroup {
            path: cgroup.to_owned(),
            source,
        })?;
        let mut links = Vec::new();
        for program in programs::ATTACH_ORDER {
            let link = self.attach_program(program, cgroup, &directory)?;
            links.push(Attached { program, link });
        }
        let program = programs::ANSWER;
        if wanted == AnswerIs::Attached && is_loaded(&self.ebpf, program) {
            match self.attach_program(program, cgroup, &directory) {
                Ok(link) => {
                    links.push(Attached { program, link });
                    self.answer_trouble = None;
                }
                Err(error) => self.answer_trouble = Some(error.message()),
            }
        }
        self.links = links;
        self.cgroup = Some(cgroup.to_owned());
        self.pin_new_links();
        Ok(())
    }

    /// Whether program `answer` is attached.
    pub fn reads_answers(&self) -> bool {
        let mut attached = self.links.iter();
        attached.any(|attached| attached.program == programs::ANSWER)
    }

    /// Why program `answer` could not be loaded or attached.
    pub fn answer_trouble(&self) -> Option<&str> {
        self.answer_trouble.as_deref()
    }

    /// Attaches program `name` to the cgroup at `path`, opened as `cgroup`.
    fn attach_program(
        &mut self,
        name: &'static str,
        path: &Path,
        cgroup: &File,
    ) -> Result<FdLink, Error> {
        // A link to a cgroup always allows other programs on the same hook; the mode only matters for legacy attachment.
        let mode = CgroupAttachMode::Single;
        let program = self.ebpf.program_mut(name).ok_or(Error::Missing {
            what: "program",
            name,
        })?;
        let mut attach = || -> Result<FdLink, ProgramError> {
            let link = match name {
                programs::SOCK_OPS => {
                    let program: &mut SockOps = program.try_into()?;
                    let id = program.attach(cgroup, mode)?;
                    program.take_link(id)?.try_into()
                }
                programs::ANSWER => {
                    let program: &mut CgroupSkb = program.try_into()?;
                    let id = program.attach(cgroup, CgroupSkbAttachType::Ingress, mode)?;
                    program.take_link(id)?.try_into()
                }
                _ => {
                    let program: &mut CgroupSockAddr = program.try_into()?;
                    let id = program.attach(cgroup, mode)?;
                    program.take_link(id)?.try_into()
                }
            };
            Ok(link.map_err(io::Error::other)?)
        };
        attach().map_err(|source| Error::Attach {
            program: name,
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Detaches the connect programs: new connections are not redirected from now on, and those already
    /// redirected keep their entries in the maps.
    pub fn detach_connect(&mut self) {
        self.links.retain(|attached| {
            !matches!(attached.program, programs::CONNECT4 | programs::CONNECT6)
        });
    }

    /// Detaches all programs. Ends the exemption of connecting sockets now, because `sock_ops` no longer ends it, unless
    /// another daemon's program may do so.
    pub fn detach(&mut self) {
        self.detach_connect();
        if self.pins.is_none() {
            self.connecting.clear();
        }
        self.links.clear();
        self.cgroup = None;
    }

    /// Detaches all programs, unless they must outlive this process.
    pub fn leave(&mut self) {
        if !self.outlives() {
            self.detach();
        }
    }

    /// The attached programs, and the cgroup to which they are attached.
    pub fn attached(&self) -> (Vec<&'static str>, Option<&Path>) {
        (
            self.links.iter().map(|link| link.program).collect(),
            self.cgroup.as_deref(),
        )
    }

    /// The kernel's id of each loaded program, for `bpftool prog show id`.
    pub fn ids(&self) -> Vec<(&'static str, u32)> {
        programs::ALL
            .into_iter()
            .filter_map(|name| Some((name, self.ebpf.program(name)?.info().ok()?.id())))
            .collect()
    }

    /// The log of the eBPF programs: empty unless `Config::verbose` is set.
    ///
    /// # Errors
    /// Those of aya-log.
    pub fn logger(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut self.ebpf)
    }
}

/// The minimum capacity of LRU maps on this machine, see [`maps::LRU_CAPACITY_PER_CPU`]. If the number of CPUs can't be
/// read, the maps keep their default size.
fn lru_capacity_per_all_cpus() -> u32 {
    let cpus = aya::util::nr_cpus().unwrap_or_default();
    u32::try_from(cpus)
        .unwrap_or(u32::MAX)
        .saturating_mul(maps::LRU_CAPACITY_PER_CPU)
}

fn is_loaded(ebpf: &Ebpf, name: &str) -> bool {
    ebpf.program(name)
        .is_some_and(|program| program.fd().is_ok())
}

/// Loads program `heartbeat` and attaches it to a socket that only it uses.
fn heartbeat(ebpf: &mut Ebpf) -> Result<Heartbeat, Error> {
    let map = take_map(ebpf, maps::HEARTBEAT)?;
    let program = load_socket_filter(ebpf, programs::HEARTBEAT)?;
    Heartbeat::new(map, |socket| program.attach(socket))
        .map_err(|source| Error::Heartbeat(Box::new(source)))
}

/// Another descriptor of the map `name`.
fn map_fd(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, Error> {
    match ebpf.map(name) {
        Some(Map::Array(map) | Map::HashMap(map)) => {
            let fd = map.fd().as_fd().try_clone_to_owned();
            fd.map_err(|source| Error::Map {
                name,
                source: source.into(),
            })
        }
        _ => Err(Error::Missing { what: "map", name }),
    }
}

fn load_socket_filter<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SocketFilter, Error> {
    let program = ebpf.program_mut(name).ok_or(Error::Missing {
        what: "program",
        name,
    })?;
    let verify = |source: ProgramError| Error::Verify {
        program: name,
        source: Box::new(source),
    };
    let program: &mut SocketFilter = program.try_into().map_err(verify)?;
    program.load().map_err(verify)?;
    Ok(program)
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), Error> {
    let program = ebpf.program_mut(name).ok_or(Error::Missing {
        what: "program",
        name,
    })?;
    let load = || -> Result<(), ProgramError> {
        match name {
            programs::SOCK_OPS => <&mut SockOps>::try_from(program)?.load(),
            programs::ANSWER => <&mut CgroupSkb>::try_from(program)?.load(),
            programs::CLASSIFY => <&mut SchedClassifier>::try_from(program)?.load(),
            _ => <&mut CgroupSockAddr>::try_from(program)?.load(),
        }
    };
    load().map_err(|source| Error::Verify {
        program: name,
        source: Box::new(source),
    })
}

fn take_map<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, Error>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = ebpf
        .take_map(name)
        .ok_or(Error::Missing { what: "map", name })?;
    M::try_from(map).map_err(|source| Error::Map { name, source })
}
