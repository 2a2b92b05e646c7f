//! The admin server's answers as data, and their text for people: tables, filters, and the sentence of `explain`. The daemon's
//! command line and the kubectl plugin print with this crate.

pub mod advice;
pub mod changes;
pub mod explain;
pub mod explained;
pub mod filter;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod history;
pub mod narrow;
pub mod observed;
pub mod output;
pub mod render;
pub mod settings;
pub mod shown;
pub mod status;
pub mod time;
