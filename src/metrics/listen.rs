//! Sessions that listen without a database connection, and the connections that listen for them.

use super::families::{POOL, Registrar};
use super::handles::Counted;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// What that is counted in.
pub(super) struct ListenFamilies {
    listeners: IntGaugeVec,
    listening: IntGaugeVec,
    notifications: IntCounterVec,
}

impl ListenFamilies {
    pub(super) fn register(r: &Registrar<'_>) -> Self {
        Self {
            listeners: r.gauge(
                "listeners",
                "Database connections that listen for all sessions of their database; they count as borrowed.",
                POOL,
            ),
            listening: r.gauge(
                "listening_sessions",
                "Sessions that listen through a shared listener, without a database connection of their own.",
                POOL,
            ),
            notifications: r.counter(
                "notifications_total",
                "Notifications put before sessions by shared listeners, once for each session.",
                POOL,
            ),
        }
    }

    /// Takes the series of a pool away.
    pub(super) fn forget(&self, labels: &[&str]) {
        for family in [&self.listeners, &self.listening] {
            let _ = family.remove_label_values(labels);
        }
        let _ = self.notifications.remove_label_values(labels);
    }
}

/// A pool's.
pub struct ListenMetrics {
    listeners: IntGauge,
    listening: IntGauge,
    notifications: IntCounter,
}

/// A listener, or a session that has one.
#[derive(Debug)]
pub struct ListenGuard(#[allow(dead_code)] Counted);

impl ListenMetrics {
    pub(super) fn new(families: &ListenFamilies, labels: &[&str]) -> Self {
        Self {
            listeners: families.listeners.with_label_values(labels),
            listening: families.listening.with_label_values(labels),
            notifications: families.notifications.with_label_values(labels),
        }
    }

    /// A backend listens for others, until the guard is dropped.
    pub fn listener(&self) -> ListenGuard {
        ListenGuard(Counted::new(&self.listeners))
    }

    /// A session listens without a backend, until the guard is dropped.
    pub fn listening(&self) -> ListenGuard {
        ListenGuard(Counted::new(&self.listening))
    }

    /// Notifications were put before sessions.
    pub fn notified(&self, count: usize) {
        self.notifications.inc_by(count as u64);
    }
}
