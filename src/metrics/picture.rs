//! A scrape shows one moment: no count moves from one series to another while they are read.
//!
//! Prometheus reads series after series. A backend that goes from idle to borrowed in between would be seen in both, and
//! the sum, which is what an operator compares with the limit, would be more than there ever were.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Shared by everything that moves; alone with it is who reads.
#[derive(Clone, Default)]
pub(super) struct Picture(Arc<RwLock<()>>);

impl Picture {
    /// Held while a count moves.
    pub(super) fn moving(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while everything is read.
    pub(super) fn taking(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
