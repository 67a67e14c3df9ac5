//! The backends of one database and role on one target.
//!
//! deadpool keeps the idle ones (last in, first out, so the fewest stay warm) and looks at each before it is lent; the
//! [`Gate`] of the target bounds this pool and all together, and keeps the queue.

use super::gate::{Gate, Member, PoolId, Probe, Refusal, Ticket};
use super::lease::{DiscardReason, Lease};
use super::manager::{BackendManager, CreateError, LimitError, Pooled};
use super::target::TargetPools;
use crate::backend::connect::ConnectError;
use crate::error::{ClientFacing, Fault, SqlState};
use crate::ids::{PoolKey, Role};
use crate::metrics::{BackendState, ListenGuard, PinGuard, PoolMetrics, TransactionGuard};
use deadpool::managed::{self, Object, PoolError, QueueMode, Timeouts};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// deadpool never waits for us: the gate does.
const NO_WAIT: Timeouts = Timeouts {
    wait: Some(Duration::ZERO),
    create: None,
    recycle: None,
};

/// How many slots a pool begins with. They follow the need: the gate is what bounds.
const SLOTS_FIRST: usize = 8;

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
                "Shorten transactions, look for pinned sessions (/pins of pgsluice's admin.address), or raise \
                 pool.max_connections or pool.connection_borrow_timeout."
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
    member: Arc<Member>,
    key: PoolKey,
    idle: managed::Pool<BackendManager>,
    /// One at a time gives `idle` more slots.
    growing: Mutex<()>,
    gate: Arc<Gate>,
    siblings: Weak<TargetPools>,
    metrics: Arc<PoolMetrics>,
    reads_sequences: AtomicBool,
}

/// What one try brought.
enum Attempt {
    Lent(Lease),
    /// There is neither an idle backend nor room for another.
    Nothing,
    /// There is room, but the server has no connection free.
    ServerFull,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.key).finish()
    }
}

impl Pool {
    pub(super) fn new(manager: BackendManager, siblings: Weak<TargetPools>) -> Arc<Self> {
        let (key, gate) = (manager.key.clone(), manager.gate.clone());
        let (member, metrics) = (manager.member.clone(), manager.metrics.clone());
        #[allow(clippy::expect_used)]
        // deadpool's only error is timeouts without a runtime: none are set
        let idle = managed::Pool::builder(manager)
            .max_size(SLOTS_FIRST)
            .queue_mode(QueueMode::Lifo)
            .build()
            .expect("no timeouts are set");
        Arc::new(Self {
            member,
            key,
            idle,
            growing: Mutex::default(),
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

    /// A backend would be pinned for a reason, were it not filtered.
    pub fn pin_filtered(&self, reason: &'static str) {
        self.metrics.pin_filtered(reason);
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

    /// One more of its backends may do nothing but listen: at most half of what the target and the pool may have, and
    /// never the only one. `all` do on the target, `own` of this pool.
    pub fn has_room_for_listener(&self, all: usize, own: usize) -> bool {
        let limit = self.gate.limit().unwrap_or(0);
        all < limit / 2 && own < self.member.cap() / 2
    }

    /// Counts a backend that listens for all sessions of its database until dropped.
    pub fn listener(&self) -> ListenGuard {
        self.metrics.listen.listener()
    }

    /// Counts a session that listens without a backend until dropped.
    pub fn listening(&self) -> ListenGuard {
        self.metrics.listen.listening()
    }

    /// Counts notifications put before sessions.
    pub fn notified(&self, count: usize) {
        self.metrics.listen.notified(count);
    }

    pub(super) fn metrics(&self) -> &PoolMetrics {
        &self.metrics
    }

    /// A backend goes back, and whoever waits for one is called.
    pub(super) fn put_back(&self, object: Object<BackendManager>) {
        object.set_state(BackendState::Idle);
        self.member.idle_comes();
        drop(object);
        self.gate.returned(&self.member);
    }

    /// Borrows a backend: an idle one, a new one, or the next that comes back; first come, first served.
    /// With no patience it waits for nobody else's, but for a connection of its own.
    ///
    /// Cancel-safe: dropped, it leaves the queue; a connection in the making is closed when it is made.
    pub async fn borrow(self: &Arc<Self>, patience: Duration) -> Result<Lease, BorrowError> {
        self.metrics.requested();
        let since = Instant::now();
        let result = self.borrow_within(patience).await;
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

    /// `None` when patience is at its end.
    async fn borrow_within(
        self: &Arc<Self>,
        patience: Duration,
    ) -> Option<Result<Lease, BorrowError>> {
        let deadline = Instant::now() + patience;
        if !self.gate.has_waiters() {
            let attempt = self.attempt(None);
            let first = if patience.is_zero() {
                attempt.await
            } else {
                timeout_at(deadline, attempt).await.ok()?
            };
            match first {
                Ok(Attempt::Lent(lease)) => return Some(Ok(lease)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        let _waiting = self.metrics.waiting();
        timeout_at(deadline, self.queue()).await.ok()
    }

    async fn queue(self: &Arc<Self>) -> Result<Lease, BorrowError> {
        let ticket = self.gate.enqueue(&self.member);
        let mut probe: Option<Probe> = None;
        // What came free between the first look and the queue must not be missed: the first of its pool tries.
        if !ticket.is_trying() {
            ticket.called().await;
        }
        loop {
            match self.attempt(Some(&ticket)).await? {
                Attempt::Lent(lease) => return Ok(lease),
                Attempt::Nothing => probe = None,
                // Not dropped in between: that would call somebody, if only this one, to try at once.
                Attempt::ServerFull => match &mut probe {
                    Some(probe) => probe.renew(),
                    None => probe = self.gate.probe(&self.member),
                },
            }
            ticket.sleep();
            ticket.called_or_due(probe.as_ref()).await;
        }
    }

    async fn attempt(self: &Arc<Self>, ticket: Option<&Ticket>) -> Result<Attempt, BorrowError> {
        loop {
            return match self.idle.timeout_get(&NO_WAIT).await {
                Ok(object) => Ok(Attempt::Lent(Lease::new(object, self.clone()))),
                Err(PoolError::Timeout(_)) => {
                    self.grow();
                    continue;
                }
                Err(PoolError::Backend(error)) => self.not_made(error, ticket),
                Err(_) => Err(BorrowError::Stopping),
            };
        }
    }

    fn not_made(
        &self,
        error: CreateError,
        ticket: Option<&Ticket>,
    ) -> Result<Attempt, BorrowError> {
        match error {
            CreateError::NoPermit(Refusal::Bound) => {
                self.make_room(ticket);
                Ok(Attempt::Nothing)
            }
            CreateError::NoPermit(Refusal::ServerFull) => Ok(Attempt::ServerFull),
            // The server is full of other people's connections: ours will do, when they come back.
            CreateError::Connect(error) if error.is_server_full() && self.gate.used() > 0 => {
                tracing::warn!(pool = %self.key, %error, "the server has no connection free; waiting");
                Ok(Attempt::ServerFull)
            }
            CreateError::Connect(error) => Err(BorrowError::Connect(error)),
            CreateError::NoSecret(role) => Err(BorrowError::NoSecret(role)),
            CreateError::Limit(error) => Err(BorrowError::Limit(error)),
            CreateError::Stopping => Err(BorrowError::Stopping),
        }
    }

    /// All slots are in use: more. deadpool never has to say no, and never shrinks (it would lose count of its slots):
    /// slots are those of backends lent or being made, which the gate bounds, and of tries that are over at once.
    fn grow(&self) {
        let _one = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let status = self.idle.status();
        // Another thread may have been here before, or somebody has let go of a slot.
        let in_use = (status.size + status.waiting).saturating_sub(status.available);
        if in_use >= status.max_size {
            self.idle.resize(status.max_size * 2);
        }
    }

    /// The bound is reached: an idle backend of another pool gives up its place.
    fn make_room(&self, ticket: Option<&Ticket>) {
        if let Some(ticket) = ticket
            && let Some(target) = self.siblings.upgrade()
        {
            target.evict_one(self.id(), ticket);
        }
    }

    /// Closes the idle backends of every database that is named in a text.
    pub fn leave_databases(&self, text: &[u8]) {
        if let Some(target) = self.siblings.upgrade() {
            target.leave_databases(text);
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
        self.member.idle_gone(taken.len());
        for (pooled, reason) in taken.iter_mut().zip(reasons) {
            pooled.discard = reason;
        }
        taken
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.idle.manager().recipe.stopping.load(Ordering::Relaxed)
    }

    /// Its database connections, in whatever state.
    pub(super) fn size(&self) -> usize {
        self.member.used()
    }

    /// Idle backends.
    pub(super) fn idle_count(&self) -> usize {
        self.member.idle()
    }

    pub(super) fn id(&self) -> PoolId {
        self.member.id()
    }
}

#[cfg(test)]
mod tests;
