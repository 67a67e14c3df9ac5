//! What waits for one session: notifications that its listener has heard, in order.
//!
//! The listener never waits for a session: what does not fit ends the session, loudly.

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Context;

/// How much may wait for one session.
const BYTES_MAX: usize = 1 << 20;

/// What a notification counts for beside its bytes.
const OVERHEAD: usize = 64;

/// Why a session can't be told all it should hear.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It did not read for too long.
    Overflow,
    /// The listener is gone; the server's words, or the proxy's.
    Lost(String),
}

/// Notifications for one session.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Bytes>,
    bytes: usize,
    /// The listener hears all the session wants.
    heard: bool,
    /// A marker is waited for.
    passing: bool,
    /// Nothing follows: the session has moved elsewhere.
    ended: bool,
    fault: Option<Fault>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.waker.wake();
    }

    /// One more, a whole frame.
    pub(super) fn push(&self, frame: &Bytes) {
        self.change(|state| {
            if state.fault.is_some() {
                return;
            }
            state.bytes += frame.len() + OVERHEAD;
            if state.bytes > BYTES_MAX {
                state.waiting = VecDeque::new();
                state.fault = Some(Fault::Overflow);
            } else {
                state.waiting.push_back(frame.clone());
            }
        });
    }

    /// No more will come.
    pub(super) fn fail(&self, fault: Fault) {
        self.change(|state| {
            state.fault.get_or_insert(fault);
        });
    }

    /// The listener hears all the session wants.
    pub(super) fn set_heard(&self) {
        self.change(|state| state.heard = true);
    }

    /// A marker will come.
    pub(super) fn set_passing(&self) {
        self.lock().passing = true;
    }

    /// The marker has come.
    pub(super) fn set_passed(&self) {
        self.change(|state| state.passing = false);
    }

    pub(super) fn has_passed(&self) -> bool {
        !self.lock().passing
    }

    /// Nothing follows what is here.
    pub(super) fn set_ended(&self) {
        self.change(|state| state.ended = true);
    }

    /// The next change wakes `cx`.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    pub(super) fn is_heard(&self) -> bool {
        self.lock().heard
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.lock().fault.clone()
    }

    /// Moves what waits into `out`, at most about `bytes_max`; true if that was anything.
    pub(super) fn take(&self, out: &mut BytesMut, bytes_max: usize) -> bool {
        let mut state = self.lock();
        let mut taken = 0;
        while taken < bytes_max
            && let Some(frame) = state.waiting.pop_front()
        {
            out.extend_from_slice(&frame);
            state.bytes -= frame.len() + OVERHEAD;
            taken += frame.len();
        }
        taken > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_a_fault_and_not_a_gap() {
        let inbox = Inbox::default();
        let frame = Bytes::from(vec![7; 1000]);
        for _ in 0..BYTES_MAX / (1000 + OVERHEAD) {
            inbox.push(&frame);
        }
        assert_eq!(inbox.fault(), None);
        let mut out = BytesMut::new();
        assert!(inbox.take(&mut out, 1000) && out.len() == 1000);
        inbox.push(&frame);
        assert_eq!(inbox.fault(), None, "what was taken makes room");
        inbox.push(&frame);
        assert_eq!(inbox.fault(), Some(Fault::Overflow));
        inbox.push(&frame);
        inbox.fail(Fault::Lost("gone".into()));
        assert_eq!(inbox.fault(), Some(Fault::Overflow), "the first counts");
        assert!(!inbox.take(&mut out, 1000), "no part of what is not whole");
    }
}
