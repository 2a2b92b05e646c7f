//! Accepting redirected connections, telling protocols apart, routing, answering.

pub mod flows;
pub mod table;
