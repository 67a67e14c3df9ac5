//! The bound of one target: how many database connections exist (connecting, idle, borrowed, closing), all pools
//! together, and who waits for one, first come first served.
//!
//! A [`Permit`] stands for one database connection and is given back only when the connection is proved gone, so the
//! bound holds whatever happens. A [`Ticket`] is a place in the queue:
//!
//! ```text
//!             called                   takes the call
//!  Sleeping ─────────► Called ───────────────────────► Trying ──► served: the ticket is dropped
//!     ▲                   ▲                               │
//!     │ nothing was free  │ something came free meanwhile │
//!     └───────────────────┴───────────────────────────────┘
//! ```
//!
//! Whenever something becomes free one sleeper that can use it is called; if nobody sleeps that is remembered
//! (`unheard`), and whoever is trying just then and fails tries again. A ticket that is dropped or goes back to sleep
//! offers what it may have left. So nobody sleeps beside something free, and no more are called than can be served.
//!
//! Sleepers of the pool whose backend came back go first (it needs no reconnect), unless the head of the queue belongs
//! to another pool and has waited longer than [`PATIENCE`]: then that one is called and takes the backend's place.
//!
//! Nothing here depends on how many wait, but the logarithm of a search tree.

mod state;

use state::{Now, Pause, Phase, State, Waiter};
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How long a busy pool may keep its backends to itself while another pool waits.
const PATIENCE: Duration = Duration::from_millis(250);

/// After the server itself had no connection free: how long until it is tried again. Somebody else may have left.
const SERVER_FULL_PAUSE: Duration = Duration::from_millis(200);

/// A pool's number within its target.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PoolId(pub usize);

/// A pool as its gate knows it.
#[derive(Debug)]
pub struct Member {
    id: PoolId,
    /// The most connections of this pool alone.
    cap: usize,
    /// Its connections, in whatever state; written under the gate's lock only.
    used: AtomicUsize,
    /// Its idle backends: never fewer than there are, for a moment more.
    idle: AtomicUsize,
}

/// The bound and the queue of one target.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    /// Copy of `State::waiting`: giving back looks here first, without the lock.
    waiting: AtomicUsize,
}

/// Why no connection may be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The bound of the target or of the pool is reached.
    Bound,
    /// The server was full a moment ago.
    ServerFull,
}

/// One database connection that exists or is being made.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    pool: Arc<Member>,
}

/// The right to evict one idle backend; until dropped it counts against further evictions.
#[derive(Debug)]
pub struct Eviction {
    gate: Arc<Gate>,
    waiter: Arc<Waiter>,
    used: bool,
}

/// The duty to try again when a full server has had time to change.
#[derive(Debug)]
pub struct Probe {
    gate: Arc<Gate>,
    pool: Arc<Member>,
    at: Instant,
}

/// A place in the queue. Dropping it leaves the queue, and passes on what it was called for.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    waiter: Arc<Waiter>,
}

impl Member {
    /// A pool without connections.
    pub fn new(id: PoolId, cap: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            id,
            cap: cap.unwrap_or(usize::MAX),
            used: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
        })
    }

    /// Which pool this is.
    pub fn id(&self) -> PoolId {
        self.id
    }

    /// The most connections of this pool alone.
    pub fn cap(&self) -> usize {
        self.cap
    }

    /// Idle backends.
    pub fn idle(&self) -> usize {
        self.idle.load(Ordering::SeqCst)
    }

    /// Its connections, in whatever state.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    /// A backend is about to become idle.
    pub fn idle_comes(&self) {
        self.idle.fetch_add(1, Ordering::SeqCst);
    }

    /// Idle backends have been taken out.
    pub fn idle_gone(&self, count: usize) {
        self.idle.fetch_sub(count, Ordering::SeqCst);
    }

    fn has_room(&self) -> bool {
        self.used() < self.cap
    }
}

impl Gate {
    /// A bound of `limit` connections; `None` if the server must be asked first.
    pub fn new(limit: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                limit,
                ..State::default()
            }),
            waiting: AtomicUsize::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bound is known, or has changed. Fewer than exist: none is made until enough are gone.
    pub fn set_limit(&self, limit: usize) {
        let mut state = self.lock();
        state.limit = Some(limit);
        for _ in state.used..limit {
            if !state.call_for_room(None) {
                break;
            }
        }
        // Who is trying just now may have failed by the old bound.
        state.unheard += 1;
    }

    /// The bound, once known.
    pub fn limit(&self) -> Option<usize> {
        self.lock().limit
    }

    /// Connections that exist, in whatever state.
    pub fn used(&self) -> usize {
        self.lock().used
    }

    /// Somebody is waiting.
    pub fn has_waiters(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// The right to make one more connection of `pool`, if the bounds allow.
    pub fn try_permit(self: &Arc<Self>, pool: &Arc<Member>) -> Result<Permit, Refusal> {
        let mut state = self.lock();
        if !state.has_room() || !pool.has_room() {
            return Err(Refusal::Bound);
        }
        if let Some(pause) = state.full.get_mut(&pool.id) {
            let now = Instant::now();
            if now < pause.until {
                return Err(Refusal::ServerFull);
            }
            // One at a time, until the server has accepted one.
            pause.until = now + SERVER_FULL_PAUSE;
        }
        state.used += 1;
        pool.used.fetch_add(1, Ordering::SeqCst);
        state.list_head(pool);
        Ok(Permit {
            gate: self.clone(),
            pool: pool.clone(),
        })
    }

    /// The server has refused a connection of `pool` because there are too many.
    pub fn server_is_full(&self, pool: &Member) {
        let until = Instant::now() + SERVER_FULL_PAUSE;
        let mut state = self.lock();
        let new = Pause {
            until,
            probing: false,
        };
        state.full.entry(pool.id).or_insert(new).until = until;
    }

    /// The server has accepted a connection of `pool`.
    pub fn server_accepts(&self, pool: &Member) {
        let mut state = self.lock();
        if state.full.remove(&pool.id).is_some() {
            state.offer_room(None);
        }
    }

    /// The duty to try a full server again, if nobody of the pool has it.
    pub fn probe(self: &Arc<Self>, pool: &Arc<Member>) -> Option<Probe> {
        let mut state = self.lock();
        let at = match state.full.get_mut(&pool.id) {
            Some(pause) if pause.probing => return None,
            Some(pause) => {
                pause.probing = true;
                pause.until
            }
            None => Instant::now(),
        };
        Some(Probe {
            gate: self.clone(),
            pool: pool.clone(),
            at,
        })
    }

    /// Joins the queue: at its end, or, if nobody of its pool is before it, with the right to try at once.
    pub fn enqueue(self: &Arc<Self>, pool: &Arc<Member>) -> Ticket {
        let mut state = self.lock();
        let number = state.arrivals;
        let first = state
            .queues
            .get(&pool.id)
            .is_none_or(|queue| queue.sleeping.is_empty() && queue.called == 0);
        let waiter = Arc::new(Waiter {
            number,
            pool: pool.clone(),
            since: Instant::now(),
            now: Mutex::new(Now {
                phase: Phase::Trying,
                cause: None,
                heard: state.unheard,
                evicting: false,
            }),
            call: Notify::new(),
        });
        state.arrivals += 1;
        if !first {
            state.sleep(&waiter);
        }
        self.set_waiting(&mut state, 1);
        drop(state);
        // A backend that comes back is put into its pool, then looks whether anybody waits; who waits says so, then
        // looks into the pool. With a fence between, both ways, one of them sees the other.
        fence(Ordering::SeqCst);
        Ticket {
            gate: self.clone(),
            waiter,
        }
    }

    /// A backend of `pool` has become idle.
    pub fn returned(&self, pool: &Arc<Member>) {
        fence(Ordering::SeqCst);
        if self.has_waiters() {
            self.lock().offer_idle(pool, None);
        }
    }

    fn set_waiting(&self, state: &mut State, change: isize) {
        state.waiting = state.waiting.saturating_add_signed(change);
        self.waiting.store(state.waiting, Ordering::SeqCst);
    }
}

impl Ticket {
    /// It has the right to try: it is first in its pool, or took a call.
    pub fn is_trying(&self) -> bool {
        let _state = self.gate.lock();
        self.waiter.now().phase == Phase::Trying
    }

    /// Waits to be called, and takes the call: what becomes free from here on is another one. Cancel-safe: a call
    /// that came is kept until it is taken, or passed on by the drop.
    pub async fn called(&self) {
        while !self.take_call() {
            self.waiter.call.notified().await;
        }
    }

    fn take_call(&self) -> bool {
        let mut state = self.gate.lock();
        let called = self.waiter.now().phase == Phase::Called;
        if called {
            state.set_trying(&self.waiter);
        }
        called
    }

    /// [`Self::called`], or tries uncalled when it is time for the probe.
    pub async fn called_or_due(&self, probe: Option<&Probe>) {
        let Some(probe) = probe else {
            return self.called().await;
        };
        tokio::select! {
            () = self.called() => {}
            () = sleep_until(probe.at) => self.gate.lock().set_trying(&self.waiter),
        }
    }

    /// The try has failed: sleeps again, in its old place, and offers what it was called for to another pool. If
    /// something came free while it tried it is called at once.
    pub fn sleep(&self) {
        let mut state = self.gate.lock();
        let mut now = self.waiter.now();
        if now.heard != state.unheard {
            drop(now);
            state.set_called(&self.waiter);
            return;
        }
        let cause = now.cause.take();
        drop(now);
        state.sleep(&self.waiter);
        let own = self.waiter.pool.id;
        if let Some(cause) = cause.filter(|cause| cause.id != own) {
            state.offer_left(&cause, Some(own));
        }
        state.offer_room_left(Some(own));
    }

    /// The right to close somebody's idle backend to make room; `None` if one is being closed for this ticket, as
    /// many are as there are tickets, or the bound is not known yet.
    pub fn try_evict(&self) -> Option<Eviction> {
        let mut state = self.gate.lock();
        let mut now = self.waiter.now();
        if now.evicting || !state.may_evict() {
            return None;
        }
        now.evicting = true;
        state.evicting += 1;
        Some(Eviction {
            gate: self.gate.clone(),
            waiter: self.waiter.clone(),
            used: true,
        })
    }
}

impl Eviction {
    /// There was nothing to evict.
    pub fn unused(mut self) {
        self.used = false;
    }
}

impl Probe {
    /// The server was full again.
    pub fn renew(&mut self) {
        let mut state = self.gate.lock();
        self.at = Instant::now();
        if let Some(pause) = state.full.get_mut(&self.pool.id) {
            pause.probing = true;
            self.at = pause.until;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.leave(&self.waiter);
        self.gate.set_waiting(&mut state, -1);
        // Served or given up: if there is more to be had, another one shall look.
        let cause = self.waiter.now().cause.take();
        state.offer_left(&self.waiter.pool, None);
        if let Some(cause) = cause.filter(|cause| cause.id != self.waiter.pool.id) {
            state.offer_left(&cause, None);
        }
        state.offer_room_left(None);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        let was_full = !self.pool.has_room();
        state.used -= 1;
        self.pool.used.fetch_sub(1, Ordering::SeqCst);
        state.list_head(&self.pool);
        state.offer_room(None);
        if was_full {
            state.call_to_evict(&self.pool);
        }
    }
}

impl Drop for Eviction {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.evicting -= 1;
        self.waiter.now().evicting = false;
        if self.used && state.may_evict() {
            // Who could not evict because of this one may.
            let mut heads = state.heads.values();
            match heads.find(|head| !head.now().evicting).cloned() {
                Some(next) => state.call(&next, None),
                None => state.unheard += 1,
            }
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        if let Some(pause) = state.full.get_mut(&self.pool.id) {
            pause.probing = false;
            state.offer_room(None);
        }
    }
}

#[cfg(test)]
mod tests;
