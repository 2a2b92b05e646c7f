//! Our programs: loading them, tying them to the kubelet's cgroup, taking them off.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{MapInfo, MapType};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, SockOps, SocketFilter};
use aya::{Ebpf, EbpfError, EbpfLoader};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use probe_handler_common::config::Config;
use probe_handler_common::connecting::{Connecting, Tuple};
use probe_handler_common::{globals, maps, programs};

use crate::exemption::Exemption;
use crate::heartbeat::Heartbeat;
use crate::maps::{ConnectingMap, CounterMap, EndpointMap, FlowMap, ProgramConfig, RefusalRing};
use crate::pins::Pins;
use crate::{attach_conflicts, capabilities};

/// The eBPF object, as `cargo xtask build-ebpf` made it; empty in a development build without it.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe-handler.bpf.o"));

/// Loading or attaching did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A development build without eBPF programs.
    #[error(
        "this binary was built without its eBPF programs: run `cargo xtask build-ebpf`, then build again"
    )]
    NoObject,
    /// The object could not be read, or its maps not be made.
    #[error("cannot load the eBPF object")]
    Load(#[source] Box<EbpfError>),
    /// The object lacks something that the daemon expects of it.
    #[error(
        "the eBPF object has no {what} {name}: daemon and object are of different versions; run `cargo xtask build-ebpf` and build again"
    )]
    Missing {
        /// "program" or "map".
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A map is of another shape than the daemon's types.
    #[error("map {name} is not of the expected type")]
    Map {
        /// Its name.
        name: &'static str,
        /// What aya says.
        #[source]
        source: aya::maps::MapError,
    },
    /// The kernel's verifier does not take a program.
    #[error("the kernel refuses program {program}")]
    Verify {
        /// The program.
        program: &'static str,
        /// The kernel's error and the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// The heartbeat's program can't be put to work.
    #[error("cannot attach program heartbeat to a socket of this process")]
    Heartbeat(#[source] Box<ProgramError>),
    /// The cgroup directory can't be opened.
    #[error("cannot open the kubelet's cgroup {}", path.display())]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel does not attach a program there.
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
    /// What to do about it, where that takes a look at the machine.
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

    /// All there is to tell an operator: the error with its causes, and what to do.
    pub fn told(self) -> String {
        let remedy = self.remedy();
        let error = anyhow::Error::from(self);
        match remedy {
            Some(remedy) => format!("{error:#}; {remedy}"),
            None => format!("{error:#}"),
        }
    }
}

/// What to do about a kernel that does not take our maps or programs.
fn loading_remedy() -> String {
    let needs = "it takes a kernel with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF, and the capabilities of which \
                 `probe-handler preflight` tells";
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((limit, _)) if limit != RLIM_INFINITY => {
            let [need] = &capabilities::AT_START;
            format!(
                "{needs}; before Linux 5.11 also a higher RLIMIT_MEMLOCK than {limit} bytes, or {} to raise it",
                need.capability
            )
        }
        _ => needs.to_owned(),
    }
}

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Most endpoints.
    pub endpoints_capacity: u32,
    /// Where what is to outlive this process is pinned; none: nothing outlives it.
    pub pins: Option<Pins>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            endpoints_capacity: maps::ENDPOINTS_CAPACITY,
            pins: None,
        }
    }
}

/// The maps, each for the part of the daemon that needs it.
pub struct Maps {
    /// For the registry.
    pub endpoints: EndpointMap,
    /// For the handler.
    pub flows: Arc<FlowMap>,
    /// For the handler.
    pub heartbeat: Arc<Heartbeat>,
    /// For whoever knows ports and the kubelet's process.
    pub config: ProgramConfig,
    /// For metrics and `status`.
    pub counters: Arc<CounterMap>,
    /// For the verdicts that the kernel gave.
    pub refusals: RefusalRing,
    /// For trial connections.
    pub connecting: Arc<ConnectingMap>,
}

/// The loaded programs and their attachments. Dropped: everything is gone from the kernel.
pub struct Programs {
    ebpf: Ebpf,
    refuses_with_econnrefused: bool,
    links: Vec<Attached>,
    cgroup: Option<PathBuf>,
    connecting: Arc<ConnectingMap>,
    /// Where what is to outlive us is pinned, and whether that is ours by now.
    pins: Option<Pins>,
    adopted: bool,
}

struct Attached {
    program: &'static str,
    /// Dropped, it is gone from the kernel, unless it is pinned.
    link: FdLink,
}

/// The eBPF object that this build loads; empty in a development build without it.
pub fn object() -> &'static [u8] {
    OBJECT
}

/// Whether this build has its eBPF programs.
fn built_in() -> bool {
    !OBJECT.is_empty()
}

impl Programs {
    /// Loads all programs and makes their maps. Attaches nothing.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::Load`], [`Error::Missing`], [`Error::Verify`].
    pub fn load(options: &LoadOptions) -> Result<(Self, Maps), Error> {
        if !built_in() {
            return Err(Error::NoObject);
        }
        // Before Linux 5.11 maps are charged to this limit. Where it can't be raised and that matters, loading fails
        // and says so.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        // Found by trying, not by version: distributions carry features back.
        match Self::load_with(options, true) {
            Err(Error::Verify { .. }) => Self::load_with(options, false),
            loaded => loaded,
        }
    }

    /// As [`Programs::load`]; where what is pinned can't be used, without it, and with what is wrong.
    ///
    /// # Errors
    /// As [`Programs::load`].
    pub fn load_or_without_pins(
        mut options: LoadOptions,
    ) -> Result<(Self, Maps, Option<String>), Error> {
        let trouble = match options.pins.as_ref().map(usable) {
            None => None,
            Some(Ok(())) => match Self::load(&options) {
                Ok((programs, maps)) => return Ok((programs, maps, None)),
                Err(error) => Some(error.told()),
            },
            Some(Err(why)) => Some(why),
        };
        options.pins = None;
        let (programs, maps) = Self::load(&options)?;
        Ok((programs, maps, trouble))
    }

    fn load_with(options: &LoadOptions, set_retval: bool) -> Result<(Self, Maps), Error> {
        let per_cpu = lru_capacity_per_all_cpus();
        let mut loader = EbpfLoader::new();
        if let Some(pins) = &options.pins {
            // One for all daemons: whoever records a connection, every pod's rules know it.
            let _ = loader.map_pin_path(maps::CONNECTING, pins.path(maps::CONNECTING_PIN));
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
            refusals: RefusalRing::new(take_map(&mut ebpf, maps::REFUSALS)?),
        };
        let programs = Self {
            ebpf,
            refuses_with_econnrefused: set_retval,
            links: Vec::new(),
            cgroup: None,
            connecting,
            pins: options.pins.clone(),
            adopted: false,
        };
        Ok((programs, maps))
    }

    /// Whether a refused connection sees ECONNREFUSED (else EPERM: this kernel has no
    /// `bpf_set_retval` for connect programs).
    pub fn refuses_with_econnrefused(&self) -> bool {
        self.refuses_with_econnrefused
    }

    /// Attaches all programs to `cgroup`, in place of the cgroup they were attached to. The new
    /// attachment stands before the old one goes.
    ///
    /// # Errors
    /// [`Error::Cgroup`], [`Error::Attach`]; then the old attachment stands as it was.
    pub fn attach(&mut self, cgroup: &Path) -> Result<(), Error> {
        let directory = File::open(cgroup).map_err(|source| Error::Cgroup {
            path: cgroup.to_owned(),
            source,
        })?;
        let mut links = Vec::new();
        for program in programs::ATTACH_ORDER {
            let link = self.attach_program(program, cgroup, &directory)?;
            links.push(Attached { program, link });
        }
        self.links = links;
        self.cgroup = Some(cgroup.to_owned());
        self.pin_links();
        Ok(())
    }

    /// Whether programs, and what they need, stay when this process ends.
    pub fn outlives(&self) -> bool {
        self.pins.is_some() && self.adopted
    }

    /// Puts our attachments into the place of those that an earlier daemon has left behind, which end by that. To be
    /// called when our programs know all that is to be known.
    pub fn adopt(&mut self) {
        self.adopted = true;
        self.pin_links();
    }

    /// Pins the attachments, if it is our turn. What can't be pinned works for as long as we live.
    fn pin_links(&self) {
        let Some(pins) = self.pins.as_ref().filter(|_| self.adopted) else {
            return;
        };
        for Attached { program, link } in &self.links {
            if let Err(error) = pins.replace_link(link, program) {
                let error = anyhow::Error::from(error);
                tracing::error!("program {program} ends with this daemon: {error:#}");
            }
        }
    }

    /// Attaches program `name` to the cgroup at `path`, opened as `cgroup`.
    fn attach_program(
        &mut self,
        name: &'static str,
        path: &Path,
        cgroup: &File,
    ) -> Result<FdLink, Error> {
        // A link to a cgroup always allows others beside it; the mode is for the legacy way.
        let mode = CgroupAttachMode::Single;
        let program = self.ebpf.program_mut(name).ok_or(Error::Missing {
            what: "program",
            name,
        })?;
        let mut attach = || -> Result<FdLink, ProgramError> {
            if name == programs::SOCK_OPS {
                let program: &mut SockOps = program.try_into()?;
                let id = program.attach(cgroup, mode)?;
                Ok(program
                    .take_link(id)?
                    .try_into()
                    .map_err(io::Error::other)?)
            } else {
                let program: &mut CgroupSockAddr = program.try_into()?;
                let id = program.attach(cgroup, mode)?;
                Ok(program
                    .take_link(id)?
                    .try_into()
                    .map_err(io::Error::other)?)
            }
        };
        attach().map_err(|source| Error::Attach {
            program: name,
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Takes the connect programs off: new connections go their own way from now on, while those
    /// already redirected keep what identifies them.
    pub fn detach_connect(&mut self) {
        self.links.retain(|attached| {
            !matches!(attached.program, programs::CONNECT4 | programs::CONNECT6)
        });
    }

    /// Takes all programs off. Nobody would end the exemption of connections that are being made, so it ends now, unless
    /// there is another daemon's program.
    pub fn detach(&mut self) {
        self.detach_connect();
        if self.pins.is_none() {
            self.connecting.clear();
        }
        self.links.clear();
        self.cgroup = None;
    }

    /// The way to put rules into pods that ask our program `exempt`. It holds the program.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Verify`] where the kernel gives no descriptor.
    pub fn exemption(&self) -> Result<Exemption, Error> {
        let name = programs::EXEMPT;
        let missing = Error::Missing {
            what: "program",
            name,
        };
        let program = self.ebpf.program(name).ok_or(missing)?;
        let descriptor = || -> Result<_, ProgramError> {
            let program: &SocketFilter = program.try_into()?;
            Ok(program.fd()?.as_fd().try_clone_to_owned()?)
        };
        descriptor()
            .map(Exemption::new)
            .map_err(|source| Error::Verify {
                program: name,
                source: Box::new(source),
            })
    }

    /// Takes all programs off, unless they are to outlive this process.
    pub fn leave(&mut self) {
        if !self.outlives() {
            self.detach();
        }
    }

    /// The programs now attached, and where.
    pub fn attached(&self) -> (Vec<&'static str>, Option<&Path>) {
        (
            self.links.iter().map(|link| link.program).collect(),
            self.cgroup.as_deref(),
        )
    }

    /// The kernel's id of each loaded program, for `bpftool prog show id`.
    pub fn ids(&self) -> Vec<(&'static str, u32)> {
        programs::ATTACH_ORDER
            .into_iter()
            .filter_map(|name| Some((name, self.ebpf.program(name)?.info().ok()?.id())))
            .collect()
    }

    /// The kernel side's log: nothing unless `Config::verbose` is set.
    ///
    /// # Errors
    /// Those of aya-log.
    pub fn logger(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut self.ebpf)
    }
}

/// Whether a map that is pinned where ours is to be is like ours.
fn usable(pins: &Pins) -> Result<(), String> {
    let path = pins.path(maps::CONNECTING_PIN);
    if !path.exists() {
        return Ok(());
    }
    let unlike = |what: &str| {
        format!(
            "{} {what}: another program's, or left by another version; `probe-handler cleanup` removes it",
            path.display()
        )
    };
    let info = MapInfo::from_pin(&path).map_err(|error| unlike(&format!("is no map ({error})")))?;
    let is_ours = info.map_type().ok() == Some(MapType::Hash)
        && info.key_size() as usize == size_of::<Tuple>()
        && info.value_size() as usize == size_of::<Connecting>()
        && info.max_entries() == maps::CONNECTING_CAPACITY;
    if is_ours {
        Ok(())
    } else {
        Err(unlike("is a map of another shape"))
    }
}

/// The least capacity of LRU maps on this machine, see [`maps::LRU_CAPACITY_PER_CPU`]. Where the number of CPUs can't be
/// read the maps keep their usual size.
fn lru_capacity_per_all_cpus() -> u32 {
    let cpus = aya::util::nr_cpus().unwrap_or_default();
    u32::try_from(cpus)
        .unwrap_or(u32::MAX)
        .saturating_mul(maps::LRU_CAPACITY_PER_CPU)
}

/// Loads the heartbeat's program and attaches it to a socket of its own.
fn heartbeat(ebpf: &mut Ebpf) -> Result<Heartbeat, Error> {
    let map = take_map(ebpf, maps::HEARTBEAT)?;
    let program = load_socket_filter(ebpf, programs::HEARTBEAT)?;
    Heartbeat::new(map, |socket| program.attach(socket))
        .map_err(|source| Error::Heartbeat(Box::new(source)))
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
        if name == programs::SOCK_OPS {
            <&mut SockOps>::try_from(program)?.load()
        } else {
            <&mut CgroupSockAddr>::try_from(program)?.load()
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
