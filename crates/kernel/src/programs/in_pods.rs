//! The programs that run in pods: `exempt`, and `classify` with its key.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Array, Map, MapData, MapError};
use aya::programs::{ProgramError, SocketFilter};
use probe_handler_common::priority::Key;
use probe_handler_common::programs;

use super::{Error, Programs};
use crate::exemption::{Classifier, Exemption};

impl Programs {
    /// A handle that installs rules in pods; the rules call program `exempt`. The handle keeps the program loaded.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Verify`] if the kernel returns no descriptor.
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
        let program = descriptor().map_err(|source| Error::Verify {
            program: name,
            source: Box::new(source),
        })?;
        Ok(Exemption::new(program, self.classifier()))
    }

    /// Program `classify`, whose key is set.
    ///
    /// # Errors
    /// Why it can't be used.
    fn classifier(&self) -> Result<Classifier, String> {
        if let Some(trouble) = &self.classify_trouble {
            return Err(trouble.clone());
        }
        let program = || -> Result<OwnedFd, ProgramError> {
            let program = self.ebpf.program(programs::CLASSIFY);
            let program = program.ok_or(ProgramError::NotLoaded)?;
            Ok(program.fd()?.as_fd().try_clone_to_owned()?)
        };
        let key = || -> Result<Array<MapData, Key>, MapError> {
            let map = MapData::from_fd(self.key_fd.try_clone()?)?;
            let mut key: Array<MapData, Key> = Map::Array(map).try_into()?;
            if key.get(&0, 0)? == Key::default() {
                let word = || getrandom::u64().map_err(io::Error::from);
                key.set(0, [word()?, word()?], 0)?;
            }
            Ok(key)
        };
        Ok(Classifier {
            program: program().map_err(|error| error.to_string())?,
            key: key().map_err(|error| error.to_string())?,
        })
    }
}
