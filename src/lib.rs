//! pgsluice: many PostgreSQL client sessions over few database connections.
//!
//! ```text
//! client ──► listener ──► handshake ──► auth ──► session ──► pool ──► backend ──► PostgreSQL
//!             limits       TLS, cancel   secrets   state,      borrow,   TLS, auth,
//!                                                  pin, relay  bound     relay
//! ```
//!
//! Modules import downwards only; `tests/tidy.rs` enforces the arrows that `docs/ARCHITECTURE.md` draws.
#![forbid(unsafe_code)]

pub mod cli;
pub mod logging;

pub mod backend;
pub mod client;
pub mod pool;
pub mod session;
pub mod wire;

pub mod admin;
pub mod cancel;
pub mod config;
pub mod drain;
pub mod metrics;
pub mod scram;
pub mod secrets;
pub mod signals;
pub mod tls;

pub mod app;
pub mod error;
pub mod ids;
pub mod redacted;
