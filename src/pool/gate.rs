//! The bound of one target: how many database connections exist (connecting, idle, borrowed, closing), all pools
//! together, and who waits for one, first come first served.
//!
//! A [`Permit`] stands for one database connection and is given back only when the connection is proved gone, so the
//! bound holds whatever happens. A [`Ticket`] is a place in the queue. When something becomes free, one ticket that can
//! use it is called; it tries, and if it can't use it after all it passes the call on.
//!
//! Waiters of the pool whose backend came back go first (it needs no reconnect), unless the head of the queue belongs
//! to another pool and has waited longer than [`PATIENCE`]: then that one is called and takes the backend's place.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a busy pool may keep its backends to itself while another pool waits.
const PATIENCE: Duration = Duration::from_millis(250);

/// A pool's number within its target.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PoolId(pub usize);

/// The bound and the queue of one target.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    /// Copy of the queue's length: giving back looks here first, without the lock.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct State {
    /// `None` until the server has told its `max_connections`: then one connection may be made, to ask.
    limit: Option<usize>,
    used: usize,
    queue: VecDeque<Arc<Waiter>>,
    /// Idle backends being closed to make room; no more than there are waiters.
    evicting: usize,
}

#[derive(Debug)]
struct Waiter {
    pool: PoolId,
    since: Instant,
    called: Mutex<bool>,
    call: Notify,
}

/// One database connection that exists or is being made.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
}

/// The right to evict one idle backend; until dropped it counts against further evictions.
#[derive(Debug)]
pub struct Eviction {
    gate: Arc<Gate>,
}

/// A place in the queue. Dropping it leaves the queue, and passes on a call that came meanwhile.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    waiter: Arc<Waiter>,
}

impl Gate {
    /// A bound of `limit` connections; `None` if the server must be asked first.
    pub fn new(limit: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                limit,
                used: 0,
                queue: VecDeque::new(),
                evicting: 0,
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
        let more = limit.saturating_sub(state.limit.unwrap_or(1));
        state.limit = Some(limit);
        for _ in 0..more {
            state.call_next(None);
        }
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
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// The right to make one more connection, if the bound allows.
    pub fn try_permit(self: &Arc<Self>) -> Option<Permit> {
        let mut state = self.lock();
        if state.used >= state.limit.unwrap_or(1) {
            return None;
        }
        state.used += 1;
        Some(Permit { gate: self.clone() })
    }

    /// The right to close somebody's idle backend to make room; `None` if as many are being closed as there are
    /// waiters, or the bound is not known yet.
    pub fn try_evict(self: &Arc<Self>) -> Option<Eviction> {
        let mut state = self.lock();
        if state.limit.is_none() || state.evicting >= state.queue.len() {
            return None;
        }
        state.evicting += 1;
        Some(Eviction { gate: self.clone() })
    }

    /// Joins the queue.
    pub fn enqueue(self: &Arc<Self>, pool: PoolId) -> Ticket {
        let waiter = Arc::new(Waiter {
            pool,
            since: Instant::now(),
            called: Mutex::new(false),
            call: Notify::new(),
        });
        let mut state = self.lock();
        state.queue.push_back(waiter.clone());
        self.waiting.store(state.queue.len(), Ordering::Release);
        Ticket {
            gate: self.clone(),
            waiter,
        }
    }

    /// A backend of `pool` has become idle.
    pub fn returned(&self, pool: PoolId) {
        if self.has_waiters() {
            self.lock().call_next(Some(pool));
        }
    }
}

impl State {
    /// Calls one waiter: of `pool` if it has one and the head is patient still, else the first.
    fn call_next(&mut self, pool: Option<PoolId>) {
        let uncalled = |waiter: &&Arc<Waiter>| !waiter.is_called();
        let head = self.queue.iter().find(uncalled);
        let own = self
            .queue
            .iter()
            .filter(uncalled)
            .find(|waiter| Some(waiter.pool) == pool);
        let chosen = match (head, own) {
            (Some(head), Some(_)) if head.since.elapsed() > PATIENCE => Some(head),
            (_, Some(own)) => Some(own),
            (head, None) => head,
        };
        if let Some(waiter) = chosen {
            waiter.call();
        }
    }

    /// A called waiter could not use what was free: the next behind it may.
    fn call_after(&mut self, waiter: &Arc<Waiter>) {
        let behind = self
            .queue
            .iter()
            .skip_while(|other| !Arc::ptr_eq(other, waiter))
            .skip(1);
        if let Some(next) = behind.into_iter().find(|other| !other.is_called()) {
            next.call();
        }
    }
}

impl Waiter {
    fn called(&self) -> MutexGuard<'_, bool> {
        self.called.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_called(&self) -> bool {
        *self.called()
    }

    fn call(&self) {
        *self.called() = true;
        self.call.notify_one();
    }
}

impl Ticket {
    /// Waits to be called. Cancel-safe: a call that came is kept until the next `called` or the drop.
    pub async fn called(&self) {
        while !self.waiter.is_called() {
            self.waiter.call.notified().await;
        }
    }

    /// What was free could not be used: waits again, and lets the next one try.
    pub fn pass_on(&self) {
        let mut state = self.gate.lock();
        let was_called = std::mem::replace(&mut *self.waiter.called(), false);
        if was_called {
            state.call_after(&self.waiter);
        }
    }

    /// Nobody of its own pool is ahead of it.
    pub fn is_first_of_pool(&self) -> bool {
        let state = self.gate.lock();
        let first = state
            .queue
            .iter()
            .find(|waiter| waiter.pool == self.waiter.pool);
        first.is_none_or(|first| Arc::ptr_eq(first, &self.waiter))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state
            .queue
            .retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
        self.gate
            .waiting
            .store(state.queue.len(), Ordering::Release);
        // Served or given up: if there is more to be had, the next one shall look.
        if self.waiter.is_called() {
            state.call_next(None);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.used -= 1;
        state.call_next(None);
    }
}

impl Drop for Eviction {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.evicting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const A: PoolId = PoolId(1);
    const B: PoolId = PoolId(2);

    fn is_called(ticket: &Ticket) -> bool {
        ticket.called().now_or_never().is_some()
    }

    #[tokio::test]
    async fn never_more_permits_than_the_limit() {
        let gate = Gate::new(Some(2));
        let first = gate.try_permit().unwrap();
        let _second = gate.try_permit().unwrap();
        assert!(gate.try_permit().is_none());
        drop(first);
        assert!(gate.try_permit().is_some());
    }

    #[tokio::test]
    async fn one_connection_asks_for_the_limit() {
        let gate = Gate::new(None);
        let _first = gate.try_permit().unwrap();
        assert!(gate.try_permit().is_none());
        let (one, two, three) = (gate.enqueue(A), gate.enqueue(A), gate.enqueue(A));
        gate.set_limit(3);
        assert_eq!(
            [is_called(&one), is_called(&two), is_called(&three)],
            [true, true, false]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn first_come_first_served() {
        let gate = Gate::new(Some(1));
        let permit = gate.try_permit().unwrap();
        let (one, two) = (gate.enqueue(A), gate.enqueue(A));
        assert!(!is_called(&one));
        drop(permit);
        assert_eq!([is_called(&one), is_called(&two)], [true, false]);
        drop(one);
        assert!(is_called(&two));
    }

    #[tokio::test(start_paused = true)]
    async fn a_returned_backend_goes_to_its_own_pool_until_the_head_loses_patience() {
        let gate = Gate::new(Some(1));
        let other = gate.enqueue(B);
        let (own, second) = (gate.enqueue(A), gate.enqueue(A));
        gate.returned(A);
        assert_eq!([is_called(&other), is_called(&own)], [false, true]);
        tokio::time::advance(PATIENCE * 2).await;
        gate.returned(A);
        assert_eq!([is_called(&other), is_called(&second)], [true, false]);
    }

    #[tokio::test]
    async fn a_call_that_cannot_be_used_is_passed_on() {
        let gate = Gate::new(Some(1));
        let (one, two) = (gate.enqueue(A), gate.enqueue(B));
        gate.returned(A);
        one.pass_on();
        assert_eq!([is_called(&one), is_called(&two)], [false, true]);
        drop(two);
        assert!(is_called(&one), "what nobody used goes back to the head");
    }

    #[tokio::test]
    async fn no_more_evictions_than_waiters() {
        let gate = Gate::new(Some(1));
        assert!(gate.try_evict().is_none());
        let _ticket = gate.enqueue(A);
        let eviction = gate.try_evict().unwrap();
        assert!(gate.try_evict().is_none());
        drop(eviction);
        assert!(gate.try_evict().is_some());
    }
}
