//! The probe-handler binary.
fn main() {}
