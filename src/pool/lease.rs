//! A borrowed backend. It goes back to the pool only with proof that it is clean; dropped, it is closed.

use super::manager::{BackendManager, Pooled};
use super::pool::Pool;
use crate::backend::connection::BackendConnection;
use crate::metrics::BackendState;
use crate::wire::from_backend::TxStatus;
use deadpool::managed::Object;
use std::sync::Arc;

/// Why a backend was closed. Log text and metric label come from here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DiscardReason {
    /// Nobody said why: a task ended in the middle.
    Dropped,
    /// It was older than `max_connection_lifetime`.
    Lifetime,
    /// More backends were idle than are kept.
    Idle,
    /// Another pool needed its place.
    Evicted,
    /// The server closed it.
    ServerClosed,
    /// The server broke the protocol.
    ServerFault,
    /// Its client left and it could not be cleaned in time.
    ClientLeft,
    /// A cancel request may still reach it.
    CancelInDoubt,
    /// The client's settings could not be applied to it.
    SettingsRefused,
    /// Something was left on it that no statement's text explains.
    StateLeak,
    /// A session was not to be pinned, and what it had left could not be thrown away.
    FilteredPin,
    /// It was not at rest when it was given back.
    NotClean,
    /// Its database is about to be dropped, renamed or copied.
    DatabaseDdl,
    /// The proxy is stopping.
    Draining,
}

impl DiscardReason {
    /// The log text and metric label.
    pub fn label(self) -> &'static str {
        match self {
            DiscardReason::Dropped => "dropped",
            DiscardReason::Lifetime => "lifetime",
            DiscardReason::Idle => "idle",
            DiscardReason::Evicted => "evicted",
            DiscardReason::ServerClosed => "server_closed",
            DiscardReason::ServerFault => "server_fault",
            DiscardReason::ClientLeft => "client_left",
            DiscardReason::CancelInDoubt => "cancel_in_doubt",
            DiscardReason::SettingsRefused => "settings_refused",
            DiscardReason::StateLeak => "state_leak",
            DiscardReason::FilteredPin => "filtered_pin",
            DiscardReason::NotClean => "not_clean",
            DiscardReason::DatabaseDdl => "database_ddl",
            DiscardReason::Draining => "draining",
        }
    }

    /// A statement may be running on it: closing must cancel that first.
    pub(super) fn may_be_running(self) -> bool {
        !matches!(
            self,
            DiscardReason::Lifetime
                | DiscardReason::Idle
                | DiscardReason::Evicted
                | DiscardReason::ServerClosed
                | DiscardReason::DatabaseDdl
                | DiscardReason::Draining
        )
    }
}

/// Proof that a backend may be lent to somebody else.
#[derive(Debug)]
pub struct GiveBack(());

impl GiveBack {
    /// Checks the backend: idle, nothing outstanding, nothing left to read.
    pub fn check(conn: &BackendConnection, settled: bool) -> Option<GiveBack> {
        let at_rest = settled && conn.status == TxStatus::Idle && conn.buf.is_empty();
        at_rest.then_some(GiveBack(()))
    }
}

/// A borrowed backend.
pub struct Lease {
    object: Option<Object<BackendManager>>,
    pool: Arc<Pool>,
}

impl Lease {
    pub(super) fn new(object: Object<BackendManager>, pool: Arc<Pool>) -> Self {
        object.set_state(BackendState::Borrowed);
        pool.metrics().borrowed(1);
        Self {
            object: Some(object),
            pool,
        }
    }

    fn pooled(&mut self) -> &mut Pooled {
        #[allow(clippy::expect_used)] // taken out by give_back, discard and drop only
        self.object.as_mut().expect("a lease has its backend")
    }

    /// The backend.
    pub fn conn(&mut self) -> &mut BackendConnection {
        self.pooled().conn_mut()
    }

    /// The pool it is from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Back to the pool, for the next one.
    pub fn give_back(mut self, _: GiveBack) {
        let Some(object) = self.object.take() else {
            return;
        };
        self.pool.metrics().borrowed(-1);
        if object.expired() {
            Self::close(object, DiscardReason::Lifetime);
            return;
        }
        if self.pool.is_stopping() {
            Self::close(object, DiscardReason::Draining);
            return;
        }
        self.pool.put_back(object);
    }

    /// Closes the backend.
    pub fn discard(mut self, reason: DiscardReason) {
        if let Some(object) = self.object.take() {
            self.pool.metrics().borrowed(-1);
            Self::close(object, reason);
        }
    }

    fn close(mut object: Object<BackendManager>, reason: DiscardReason) {
        object.discard = reason;
        // Its drop closes the connection; when the server has closed its end the permit is free and calls who waits.
        drop(Object::take(object));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            self.pool.metrics().borrowed(-1);
            Self::close(object, DiscardReason::Dropped);
        }
    }
}
