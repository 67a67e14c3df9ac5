//! The PostgreSQL v3 protocol as data: no policy, no pool, no session.

pub mod encode;
pub mod error_response;
pub mod flow;
pub mod frame;
pub mod from_backend;
pub mod password;
pub mod startup;
pub mod startup_options;
pub mod to_backend;
