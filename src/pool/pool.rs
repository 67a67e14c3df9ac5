//! The backends of one database and role on one target.
//!
//! deadpool keeps the idle ones (last in, first out, so the fewest stay warm), bounds the pool and looks at each before
//! it is lent; the [`Gate`] of the target bounds all pools together and keeps the queue.

use super::gate::{Gate, PoolId};
use super::lease::{DiscardReason, Lease};
use super::manager::{BackendManager, CreateError, LimitError, Pooled};
use super::target::TargetPools;
use crate::backend::connect::ConnectError;
use crate::error::{ClientFacing, Fault, SqlState};
use crate::ids::{PoolKey, Role};
use crate::metrics::{PinGuard, PoolMetrics, TransactionGuard};
use deadpool::managed::{self, PoolError, QueueMode, Timeouts};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// deadpool never waits for us: the gate does.
const NO_WAIT: Timeouts = Timeouts {
    wait: Some(Duration::ZERO),
    create: None,
    recycle: None,
};

/// After the server itself had no connection free: look again soon, somebody else may have left.
const SERVER_FULL_PAUSE: Duration = Duration::from_millis(200);

/// Why there is no backend for a client.
#[derive(Debug, thiserror::Error)]
pub enum BorrowError {
    /// All were in use for as long as the client may wait.
    #[error("no database connection became free within {} ms", .waited.as_millis())]
    TimedOut {
        /// The pool.
        pool: PoolKey,
        /// `connection_borrow_timeout`.
        waited: Duration,
        /// The bound of the target, once known.
        limit: Option<usize>,
    },
    /// The server could not be reached, or refused.
    #[error(transparent)]
    Connect(ConnectError),
    /// There is no secret for the role.
    #[error("no secret for role {0:?}")]
    NoSecret(Role),
    /// How many connections there may be is not known.
    #[error(transparent)]
    Limit(LimitError),
    /// The proxy is stopping.
    #[error("the proxy is stopping")]
    Stopping,
}

impl ClientFacing for BorrowError {
    fn fault(&self) -> Fault {
        match self {
            BorrowError::TimedOut { .. } | BorrowError::Stopping => Fault::Proxy,
            BorrowError::Connect(error) => error.fault(),
            BorrowError::NoSecret(_) => Fault::Configuration,
            BorrowError::Limit(_) => Fault::Backend,
        }
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            BorrowError::TimedOut { .. } => SqlState::TOO_MANY_CONNECTIONS,
            BorrowError::Connect(error) => error.sqlstate(),
            BorrowError::NoSecret(_) => SqlState::INVALID_AUTHORIZATION,
            BorrowError::Limit(_) => SqlState::CONNECTION_FAILURE,
            BorrowError::Stopping => SqlState::ADMIN_SHUTDOWN,
        }
    }

    fn client_message(&self) -> String {
        match self {
            BorrowError::TimedOut {
                pool,
                waited,
                limit,
            } => format!(
                "timed out after {} s waiting for a free database connection of pool \"{pool}\"{}",
                waited.as_secs_f64(),
                limit
                    .map(|limit| format!(" (at most {limit} to this target)"))
                    .unwrap_or_default()
            ),
            BorrowError::Connect(error) => error.client_message(),
            BorrowError::NoSecret(role) => {
                format!("pgsluice has no secret for role \"{role}\" to log in to the database with")
            }
            BorrowError::Limit(error) => format!("pgsluice: {error}"),
            BorrowError::Stopping => "terminating connection: pgsluice is stopping".into(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            BorrowError::TimedOut { .. } => Some(
                "Shorten transactions, or raise pool.max_connections or \
                 pool.connection_borrow_timeout."
                    .into(),
            ),
            BorrowError::Connect(error) => error.hint(),
            BorrowError::Limit(_) => Some("Set pool.max_connections to a number.".into()),
            BorrowError::NoSecret(_) => Some("Add the role to the secrets file.".into()),
            BorrowError::Stopping => None,
        }
    }
}

/// The backends of one database and role.
pub struct Pool {
    id: PoolId,
    key: PoolKey,
    idle: managed::Pool<BackendManager>,
    /// A cap for this pool alone.
    cap: Option<usize>,
    gate: Arc<Gate>,
    siblings: Weak<TargetPools>,
    metrics: Arc<PoolMetrics>,
    reads_sequences: AtomicBool,
}

impl Pool {
    pub(super) fn new(
        id: PoolId,
        manager: BackendManager,
        cap: Option<usize>,
        siblings: Weak<TargetPools>,
    ) -> Arc<Self> {
        let (key, gate) = (manager.key.clone(), manager.gate.clone());
        let metrics = manager.metrics.clone();
        let size = size_within(cap, gate.limit());
        #[allow(clippy::expect_used)]
        // deadpool's only error is timeouts without a runtime: none are set
        let idle = managed::Pool::builder(manager)
            .max_size(size)
            .queue_mode(QueueMode::Lifo)
            .build()
            .expect("no timeouts are set");
        Arc::new(Self {
            id,
            key,
            idle,
            cap,
            gate,
            siblings,
            metrics,
            reads_sequences: AtomicBool::new(false),
        })
    }

    /// Which pool this is.
    pub fn key(&self) -> &PoolKey {
        &self.key
    }

    /// Counts a transaction on one of its backends until dropped.
    pub fn in_transaction(&self) -> TransactionGuard {
        self.metrics.in_transaction()
    }

    /// Counts a pinned backend until dropped.
    pub fn pinned(&self, reason: &'static str) -> PinGuard {
        self.metrics.pinned(reason)
    }

    /// Some session of the pool asks for sequence values: no lease may begin with another's.
    pub fn reads_sequences(&self) -> bool {
        self.reads_sequences.load(Ordering::Relaxed)
    }

    /// A session of the pool has asked for sequence values.
    pub fn note_sequences_read(&self) {
        self.reads_sequences.store(true, Ordering::Relaxed);
    }

    /// Counts a session's settings given to one of its backends.
    pub fn replayed(&self) {
        self.metrics.replayed();
    }

    pub(super) fn metrics(&self) -> &PoolMetrics {
        &self.metrics
    }

    /// The bound of the target has become known, or has changed.
    pub(super) fn resize(&self, limit: usize) {
        self.idle.resize(size_within(self.cap, Some(limit)));
    }

    /// A backend of this pool became idle, or room was made in it.
    pub(super) fn returned(&self) {
        self.gate.returned(self.id);
    }

    /// Borrows a backend: an idle one, a new one, or the next that comes back; first come, first served.
    ///
    /// Cancel-safe: dropped, it leaves the queue; a connection in the making is closed when it is made.
    pub async fn borrow(self: &Arc<Self>, patience: Duration) -> Result<Lease, BorrowError> {
        self.metrics.requested();
        let since = Instant::now();
        let result = self.borrow_by(since + patience).await;
        // Those that timed out waited longest; without them the worst hour would look like the best.
        self.metrics.borrow_waited(since.elapsed());
        result.unwrap_or_else(|| {
            Err(BorrowError::TimedOut {
                pool: self.key.clone(),
                waited: patience,
                limit: self.gate.limit(),
            })
        })
    }

    /// `None` at the deadline.
    async fn borrow_by(self: &Arc<Self>, deadline: Instant) -> Option<Result<Lease, BorrowError>> {
        if !self.gate.has_waiters()
            && let Some(result) = self.attempt().await.transpose()
        {
            return Some(result);
        }
        let _waiting = self.metrics.waiting();
        timeout_at(deadline, self.queue()).await.ok()
    }

    async fn queue(self: &Arc<Self>) -> Result<Lease, BorrowError> {
        let ticket = self.gate.enqueue(self.id);
        // What came free between the first look and the queue must not be missed.
        if ticket.is_first_of_pool()
            && let Some(lease) = self.attempt().await?
        {
            return Ok(lease);
        }
        loop {
            ticket.called().await;
            if let Some(lease) = self.attempt().await? {
                return Ok(lease);
            }
            ticket.pass_on();
        }
    }

    /// One try; `None` if there is neither an idle backend nor room for another.
    async fn attempt(self: &Arc<Self>) -> Result<Option<Lease>, BorrowError> {
        match self.idle.timeout_get(&NO_WAIT).await {
            Ok(object) => Ok(Some(Lease::new(object, self.clone()))),
            Err(PoolError::Timeout(_)) => Ok(None),
            Err(PoolError::Backend(CreateError::NoPermit)) => {
                self.make_room();
                Ok(None)
            }
            Err(PoolError::Backend(CreateError::Connect(error))) => self.refused(error).await,
            Err(PoolError::Backend(CreateError::NoSecret(role))) => {
                Err(BorrowError::NoSecret(role))
            }
            Err(PoolError::Backend(CreateError::Limit(error))) => Err(BorrowError::Limit(error)),
            Err(_) => Err(BorrowError::Stopping),
        }
    }

    /// The server is full of other people's connections: ours will do, when they come back.
    async fn refused(self: &Arc<Self>, error: ConnectError) -> Result<Option<Lease>, BorrowError> {
        let full = error.sqlstate() == SqlState::TOO_MANY_CONNECTIONS;
        if !full || self.gate.used() == 0 {
            return Err(BorrowError::Connect(error));
        }
        tracing::warn!(pool = %self.key, %error, "the server has no connection free; waiting");
        tokio::time::sleep(SERVER_FULL_PAUSE).await;
        self.gate.returned(self.id);
        Ok(None)
    }

    /// The bound is reached: an idle backend of another pool gives up its place.
    fn make_room(&self) {
        if let Some(target) = self.siblings.upgrade() {
            target.evict_one(self.id);
        }
    }

    /// Takes at most `count` idle backends out for which `choose` is true, the longest idle first.
    pub(super) fn take_idle(
        &self,
        count: usize,
        mut choose: impl FnMut(&Pooled, managed::Metrics) -> Option<DiscardReason>,
    ) -> Vec<Pooled> {
        let mut reasons = Vec::new();
        let result = self.idle.retain(|pooled, metrics| {
            let reason = if reasons.len() < count {
                choose(pooled, metrics)
            } else {
                None
            };
            reasons.extend(reason);
            reason.is_none()
        });
        let mut taken = result.removed;
        for (pooled, reason) in taken.iter_mut().zip(reasons) {
            pooled.discard = reason;
        }
        taken
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.idle.manager().recipe.stopping.load(Ordering::Relaxed)
    }

    /// Backends and those in the making.
    pub(super) fn size(&self) -> usize {
        self.idle.status().size
    }

    /// Idle backends, about.
    pub(super) fn idle_count(&self) -> usize {
        self.idle.status().available
    }

    pub(super) fn id(&self) -> PoolId {
        self.id
    }
}

fn size_within(cap: Option<usize>, limit: Option<usize>) -> usize {
    // Until the server has told its max_connections one backend is made, to ask.
    cap.unwrap_or(usize::MAX).min(limit.unwrap_or(1))
}
