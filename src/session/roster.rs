//! Live sessions: what each is doing, since when, and the orders it gets from outside (timeouts, draining).
//!
//! A session tells its phase with two relaxed stores; one task looks over all of them a few times a second. So a timeout
//! costs a session nothing while it does not strike.

use crate::drain::{DrainObserver, Phase as DrainPhase};
use crate::ids::ClientId;
use futures_util::task::AtomicWaker;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;
use tokio::time::Instant;

/// How often timeouts are looked at: their precision.
const TICK: Duration = Duration::from_millis(100);

/// What a session is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    /// Nothing, without a backend.
    Idle,
    /// Waiting for a backend.
    Waiting,
    /// A statement is running.
    Active,
    /// Inside a transaction, between statements.
    InTransaction,
    /// Outside a transaction, with a backend it keeps.
    Pinned,
}

impl Phase {
    const ALL: [Phase; 5] = [
        Phase::Idle,
        Phase::Waiting,
        Phase::Active,
        Phase::InTransaction,
        Phase::Pinned,
    ];
}

/// What a session is told from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// End as soon as no transaction is open.
    Shutdown,
    /// End now.
    Abort,
    /// It has been in this phase for too long.
    TimedOut(Phase),
}

const SHUTDOWN: u8 = 1;
const ABORT: u8 = 2;
const TIMED_OUT: u8 = 4;

/// How long a session may stay in a phase; zero: for ever.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Outside a transaction.
    pub idle: Duration,
    /// Idle inside a transaction.
    pub in_transaction: Duration,
    /// One statement.
    pub query: Duration,
}

/// One session as others see it.
#[derive(Debug)]
pub struct Control {
    orders: AtomicU8,
    /// Phase and the tick it was entered at, in one word: read together they belong together.
    stay: AtomicU64,
    /// The stay that lasted too long.
    timed_out: AtomicU64,
    clock: Arc<Clock>,
    waker: AtomicWaker,
}

/// Ticks since the start: a clock that costs one load to read.
#[derive(Debug, Default)]
struct Clock(AtomicU32);

/// All live sessions.
pub struct Roster {
    sessions: Mutex<HashMap<ClientId, Arc<Control>>>,
    clock: Arc<Clock>,
    timeouts: Timeouts,
    standing_orders: AtomicU8,
}

/// A session's entry; dropping it takes the session off the roster.
pub struct Entry {
    roster: Arc<Roster>,
    client: ClientId,
    /// The session's end of it.
    pub control: Arc<Control>,
}

impl Control {
    /// The session enters a phase.
    pub fn enter(&self, phase: Phase) {
        let since = self.clock.0.load(Ordering::Relaxed);
        self.stay.store(stay(phase, since), Ordering::Relaxed);
    }

    /// The next order; wakes `cx` when there is one. [`Order::Shutdown`] and [`Order::Abort`] stand until obeyed.
    pub fn poll_order(&self, cx: &Context<'_>) -> Option<Order> {
        self.waker.register(cx.waker());
        let orders = self.orders.load(Ordering::Acquire);
        if orders == 0 {
            return None;
        }
        if orders & ABORT != 0 {
            return Some(Order::Abort);
        }
        if orders & TIMED_OUT != 0 {
            let orders = self.orders.fetch_and(!TIMED_OUT, Ordering::AcqRel);
            let (now, then) = (&self.stay, &self.timed_out);
            let now = now.load(Ordering::Relaxed);
            // It may have moved on before it heard of it.
            if now == then.load(Ordering::Acquire) {
                return Some(Order::TimedOut(phase_of(now)));
            }
            return (orders & SHUTDOWN != 0).then_some(Order::Shutdown);
        }
        Some(Order::Shutdown)
    }

    fn give(&self, order: u8) {
        self.orders.fetch_or(order, Ordering::AcqRel);
        self.waker.wake();
    }

    /// The stay in its phase, if it has lasted longer than allowed.
    fn overdue(&self, timeouts: &Timeouts) -> Option<u64> {
        let stay = self.stay.load(Ordering::Relaxed);
        let limit = match phase_of(stay) {
            Phase::Idle | Phase::Pinned => timeouts.idle,
            Phase::InTransaction => timeouts.in_transaction,
            Phase::Active => timeouts.query,
            Phase::Waiting => Duration::ZERO, // has its own deadline
        };
        let since = stay as u32; // its lower half
        let ticks = self.clock.0.load(Ordering::Relaxed).saturating_sub(since);
        (!limit.is_zero() && TICK * ticks > limit).then_some(stay)
    }
}

fn stay(phase: Phase, since: u32) -> u64 {
    u64::from(phase as u8) << 32 | u64::from(since)
}

fn phase_of(stay: u64) -> Phase {
    let index = (stay >> 32) as usize;
    Phase::ALL.get(index).copied().unwrap_or(Phase::Idle)
}

impl Roster {
    /// Nobody yet.
    pub fn new(timeouts: Timeouts) -> Arc<Self> {
        Arc::new(Self {
            sessions: Mutex::default(),
            clock: Arc::default(),
            timeouts,
            standing_orders: AtomicU8::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientId, Arc<Control>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session.
    pub fn enter(self: &Arc<Self>, client: ClientId) -> Entry {
        let control = Arc::new(Control {
            orders: AtomicU8::new(0),
            stay: AtomicU64::new(stay(Phase::Idle, self.clock.0.load(Ordering::Relaxed))),
            timed_out: AtomicU64::new(0),
            clock: self.clock.clone(),
            waker: AtomicWaker::new(),
        });
        let mut sessions = self.lock();
        // Under the lock: an order to all either finds the session here or has left its mark.
        control.orders.store(
            self.standing_orders.load(Ordering::Acquire),
            Ordering::Release,
        );
        sessions.insert(client, control.clone());
        Entry {
            roster: self.clone(),
            client,
            control,
        }
    }

    /// Live sessions.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Nobody.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn order_all(&self, order: u8) {
        let sessions = self.lock();
        self.standing_orders.fetch_or(order, Ordering::AcqRel);
        sessions.values().for_each(|control| control.give(order));
    }

    fn give_timeouts(&self) {
        for control in self.lock().values() {
            if let Some(stay) = control.overdue(&self.timeouts) {
                control.timed_out.store(stay, Ordering::Release);
                control.give(TIMED_OUT);
            }
        }
    }

    /// Strikes timeouts, and passes the drain on to the sessions, until everything is to end.
    pub async fn look_after(self: Arc<Self>, mut drain: DrainObserver) {
        let start = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        let mut seen = DrainPhase::Running;
        loop {
            let next = if seen == DrainPhase::Running {
                DrainPhase::Draining
            } else {
                DrainPhase::Aborting
            };
            tokio::select! {
                () = drain.reached(next) => {
                    seen = next;
                    self.order_all(if next == DrainPhase::Draining { SHUTDOWN } else { ABORT });
                    if next == DrainPhase::Aborting {
                        return;
                    }
                }
                _ = tick.tick() => {
                    let ticks = start.elapsed().as_millis() / TICK.as_millis();
                    self.clock.0.store(u32::try_from(ticks).unwrap_or(u32::MAX), Ordering::Relaxed);
                    self.give_timeouts();
                }
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.roster.lock().remove(&self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn a_timeout_strikes_only_the_stay_it_was_meant_for() {
        let second = Duration::from_secs(1);
        let roster = Roster::new(Timeouts {
            idle: second,
            in_transaction: second,
            query: Duration::ZERO,
        });
        let entry = roster.enter(ClientId(1));
        let cx = Context::from_waker(Waker::noop());
        roster.clock.0.store(11, Ordering::Relaxed);
        roster.give_timeouts();
        let order = entry.control.poll_order(&cx);
        assert_eq!(order, Some(Order::TimedOut(Phase::Idle)));
        assert_eq!(entry.control.poll_order(&cx), None);
        for moved_on in [Phase::Active, Phase::Idle] {
            roster.give_timeouts();
            entry.control.enter(moved_on);
            assert_eq!(entry.control.poll_order(&cx), None, "{moved_on:?}");
        }
        roster.clock.0.store(100, Ordering::Relaxed);
        entry.control.enter(Phase::Active);
        roster.clock.0.store(200, Ordering::Relaxed);
        roster.give_timeouts();
        assert_eq!(entry.control.poll_order(&cx), None, "no query_timeout");
        roster.order_all(SHUTDOWN);
        assert_eq!(entry.control.poll_order(&cx), Some(Order::Shutdown));
    }
}
