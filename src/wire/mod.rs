//! The PostgreSQL v3 protocol as data: no policy, no pool, no session.

pub mod flow;
pub mod frame;
pub mod from_backend;
pub mod to_backend;
