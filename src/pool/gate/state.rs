//! What a gate's lock protects: the counts, who waits where, and who is called when something is free.

use super::{Member, PATIENCE, PoolId};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct State {
    /// `None` until the server has told its `max_connections`: then one connection may be made, to ask.
    pub(super) limit: Option<usize>,
    pub(super) used: usize,
    /// Tickets.
    pub(super) waiting: usize,
    /// Tickets ever, which numbers them.
    pub(super) arrivals: u64,
    /// Counts what became free while nobody slept who could use it.
    pub(super) unheard: u64,
    /// Called because a connection may be made, and not trying yet.
    pub(super) called_to_room: usize,
    /// Idle backends being closed to make room; no more than there are tickets.
    pub(super) evicting: usize,
    /// By pool: the server has refused a connection because it, the database or the role has too many.
    pub(super) full: HashMap<PoolId, Pause>,
    /// By pool: who sleeps.
    pub(super) queues: HashMap<PoolId, Queue>,
    /// The first sleeper of every pool that may have more connections, by arrival.
    pub(super) heads: BTreeMap<u64, Arc<Waiter>>,
}

#[derive(Debug)]
pub(super) struct Pause {
    /// No new connection before this.
    pub(super) until: Instant,
    /// Somebody waits for it, to try again.
    pub(super) probing: bool,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) sleeping: BTreeMap<u64, Arc<Waiter>>,
    /// Called, and not trying yet.
    pub(super) called: usize,
    /// Who of it is among the heads.
    pub(super) listed: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) number: u64,
    pub(super) pool: Arc<Member>,
    pub(super) since: Instant,
    /// Locked inside the gate's lock only.
    pub(super) now: Mutex<Now>,
    pub(super) call: Notify,
}

#[derive(Debug)]
pub(super) struct Now {
    pub(super) phase: Phase,
    /// Whose idle backend it was called for; `None`: a connection may be made.
    pub(super) cause: Option<Arc<Member>>,
    /// `State::unheard` when it began to try.
    pub(super) heard: u64,
    /// An idle backend is being closed for it.
    pub(super) evicting: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Sleeping,
    Called,
    Trying,
}

impl State {
    pub(super) fn has_room(&self) -> bool {
        self.used < self.limit.unwrap_or(1)
    }

    pub(super) fn is_probing(&self, pool: PoolId) -> bool {
        self.full.get(&pool).is_some_and(|pause| pause.probing)
    }

    pub(super) fn may_evict(&self) -> bool {
        self.limit.is_some() && self.evicting < self.waiting
    }

    /// An idle backend of `pool` is free: calls a sleeper, but none of the pool `except`.
    pub(super) fn offer_idle(&mut self, pool: &Arc<Member>, except: Option<PoolId>) {
        let own = self
            .queues
            .get(&pool.id)
            .filter(|_| except != Some(pool.id))
            .and_then(|queue| queue.sleeping.values().next());
        let other = self
            .heads
            .values()
            .filter(|head| head.pool.id != pool.id && except != Some(head.pool.id))
            .find(|head| self.may_evict() && !head.now().evicting);
        let chosen = match (own, other) {
            (Some(own), Some(other)) if other.number < own.number && other.is_impatient() => {
                Some(other)
            }
            (own, other) => own.or(other),
        };
        match chosen.cloned() {
            Some(waiter) => self.call(&waiter, Some(pool.clone())),
            None => self.unheard += 1,
        }
    }

    /// A connection may perhaps be made: calls a sleeper, but none of the pool `except`.
    pub(super) fn offer_room(&mut self, except: Option<PoolId>) {
        if self.has_room() && !self.call_for_room(except) {
            self.unheard += 1;
        }
    }

    /// A pool may have one more connection: if that one is not to be had, perhaps in the place of an idle one.
    pub(super) fn call_to_evict(&mut self, pool: &Member) {
        let queue = self.queues.get(&pool.id);
        let first = queue.and_then(|queue| queue.sleeping.values().next());
        if let Some(waiter) = first.filter(|_| pool.has_room()).cloned() {
            self.call(&waiter, None);
        }
    }

    pub(super) fn call_for_room(&mut self, except: Option<PoolId>) -> bool {
        let mut heads = self.heads.values().map(|head| (head, head.pool.id));
        let chosen = heads.find(|(_, pool)| except != Some(*pool) && !self.is_probing(*pool));
        let Some((waiter, _)) = chosen else {
            return false;
        };
        let waiter = waiter.clone();
        self.call(&waiter, None);
        true
    }

    /// What is left beyond what somebody has been called for is offered again.
    pub(super) fn offer_left(&mut self, pool: &Arc<Member>, except: Option<PoolId>) {
        let called = self.queues.get(&pool.id).map_or(0, |queue| queue.called);
        if pool.idle() > called {
            self.offer_idle(pool, except);
        }
    }

    pub(super) fn offer_room_left(&mut self, except: Option<PoolId>) {
        if self.used + self.called_to_room < self.limit.unwrap_or(1) {
            self.offer_room(except);
        }
    }

    pub(super) fn sleep(&mut self, waiter: &Arc<Waiter>) {
        waiter.now().phase = Phase::Sleeping;
        let queue = self.queues.entry(waiter.pool.id).or_default();
        queue.sleeping.insert(waiter.number, waiter.clone());
        self.list_head(&waiter.pool);
    }

    pub(super) fn call(&mut self, waiter: &Arc<Waiter>, cause: Option<Arc<Member>>) {
        self.leave(waiter);
        waiter.now().cause = cause;
        self.set_called(waiter);
        waiter.call.notify_one();
    }

    pub(super) fn set_called(&mut self, waiter: &Waiter) {
        let mut now = waiter.now();
        now.phase = Phase::Called;
        self.called_to_room += usize::from(now.cause.is_none());
        self.queues.entry(waiter.pool.id).or_default().called += 1;
    }

    /// Takes a waiter from where its phase has put it.
    pub(super) fn leave(&mut self, waiter: &Waiter) {
        let now = waiter.now();
        let Some(queue) = self.queues.get_mut(&waiter.pool.id) else {
            return;
        };
        match now.phase {
            Phase::Sleeping => {
                queue.sleeping.remove(&waiter.number);
            }
            Phase::Called => {
                queue.called -= 1;
                self.called_to_room -= usize::from(now.cause.is_none());
            }
            Phase::Trying => {}
        }
        drop(now);
        self.list_head(&waiter.pool);
    }

    pub(super) fn set_trying(&mut self, waiter: &Waiter) {
        self.leave(waiter);
        let mut now = waiter.now();
        now.phase = Phase::Trying;
        now.heard = self.unheard;
    }

    /// Who sleeps in a pool, or whether it has room, has changed.
    pub(super) fn list_head(&mut self, pool: &Member) {
        let Some(queue) = self.queues.get_mut(&pool.id) else {
            return;
        };
        let first = queue.sleeping.first_key_value();
        let first = first.filter(|_| pool.has_room());
        let number = first.map(|(number, _)| *number);
        if number != queue.listed {
            if let Some(listed) = queue.listed {
                self.heads.remove(&listed);
            }
            if let Some((number, waiter)) = first {
                self.heads.insert(*number, waiter.clone());
            }
            queue.listed = number;
        }
        if queue.sleeping.is_empty() && queue.called == 0 {
            self.queues.remove(&pool.id);
        }
    }
}

impl Waiter {
    pub(super) fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_impatient(&self) -> bool {
        self.since.elapsed() > PATIENCE
    }
}
