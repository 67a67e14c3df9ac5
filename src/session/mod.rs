//! One authenticated client until it leaves.
//!
//! ```text
//!            request                   backend lent
//!   Idle ──────────────► Borrowing ──────────────────► Borrowed ◄─┐ transaction open
//!    ▲ ▲                     │ none free: error            │  └───┘
//!    │ └─────────────────────┘                             │ ReadyForQuery(idle), nothing owed
//!    └──────────────── released ◄──────────────────────────┤
//!                                                          └──► Pinned (a reason to keep it) ──► Borrowed
//!   any ──► Closing: the client left, broke the protocol, timed out, or was told to go
//! ```
//! An idle session holds no buffer: it waits for readability, not for bytes.

mod close;
pub mod custom;
mod database_ddl;
pub mod deallocate;
pub mod digest;
mod farewell;
pub mod listen;
mod memory;
pub mod params;
pub mod pin;
pub mod pin_book;
pub mod prepared;
mod reading;
mod relay;
pub mod replies;
pub mod requests;
pub mod roster;
mod run;
mod shape;
mod sql_statements;
pub mod statement;
pub mod survey;

pub use close::CloseReason;
pub use pin_book::Pinning;
pub use run::{Session, SessionStart};
