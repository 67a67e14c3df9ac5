//! Who may use which backend, and for how long.

pub mod gate;
