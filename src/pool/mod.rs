//! Who may use which backend, and for how long.
//!
//! ```text
//! TargetPools ─┬─ Gate: the bound of the target, and the queue
//!              └─ Pool (database, role) ── deadpool: idle backends ── borrow ──► Lease ── give back / discard
//! ```

pub mod gate;
mod lease;
mod manager;
#[allow(clippy::module_inception)] // the noun of this folder
mod pool;
mod target;
#[cfg(test)]
mod testing;

pub use lease::{DiscardReason, GiveBack, Lease};
pub use manager::LimitError;
pub use pool::{BorrowError, Pool};
pub use target::TargetPools;
