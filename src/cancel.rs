//! Cancel keys: which backend a client's CancelRequest means right now.
//!
//! A cancel must reach exactly the query of the client that asked, never the next user of the backend. So a session
//! lends its backend to its [`CancelHandle`] when it borrows and takes it back before it gives back; taking back waits
//! until every cancel in flight is settled. PostgreSQL closes the connection that carried a CancelRequest only after
//! the signal was sent (src/backend/postmaster: `processCancelRequest`), and a signal that arrives while a server process reads its
//! next command is ignored (src/backend/tcop/postgres.c, `ProcessInterrupts`, `DoingCommandRead`). Hence: end of that
//! connection seen, backend idle, nothing sent yet: the cancel can hit nobody else.

use crate::backend::cancel::{CancelTarget, send_cancel};
use crate::ids::ClientId;
use futures_util::task::AtomicWaker;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How long a cancel may take to reach the server before its backend is not trusted any more.
const CANCEL_DEADLINE: Duration = Duration::from_secs(10);

/// Length of the secret told to clients of protocol 3.2 (at most 256 bytes there).
const SECRET_LEN: usize = 32;

/// Length of the secret told to clients of protocol 3.0.
const SECRET_LEN_3_0: usize = 4;

/// What the client is told in BackendKeyData.
#[derive(Clone)]
pub struct CancelKey {
    /// In the place of the process id.
    pub client: ClientId,
    secret: Vec<u8>,
}

impl CancelKey {
    /// The bytes to tell the client.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
}

/// What became of a CancelRequest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CancelOutcome {
    /// No session has that key.
    Unknown,
    /// The session has no backend: nothing runs. If it waited for one, it waits no more.
    NothingRunning,
    /// The server was told.
    Sent,
    /// The server could not be told.
    Failed,
}

/// All sessions that can be cancelled.
#[derive(Default)]
pub struct CancelRegistry {
    slots: Mutex<HashMap<ClientId, Arc<Slot>>>,
    next: AtomicU32,
}

struct Slot {
    secret: Vec<u8>,
    lent: Mutex<Lent>,
    settled: Notify,
    waiter: AtomicWaker,
}

#[derive(Default)]
struct Lent {
    backend: Option<CancelTarget>,
    in_flight: u32,
    /// A cancel could not be confirmed: the signal may still come.
    in_doubt: bool,
    /// The client asked while the session waited for a backend.
    waiting_cancelled: bool,
    waiting: bool,
}

/// A session's own end: lends its backend to the registry. Dropping it forgets the key.
pub struct CancelHandle {
    registry: Arc<CancelRegistry>,
    client: ClientId,
    slot: Arc<Slot>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CancelRegistry {
    /// Registers a session; `long_secret` for protocol 3.2.
    pub fn register(self: &Arc<Self>, long_secret: bool) -> (CancelKey, CancelHandle) {
        let secret: Vec<u8> = if long_secret {
            rand::random::<[u8; SECRET_LEN]>().to_vec()
        } else {
            rand::random::<[u8; SECRET_LEN_3_0]>().to_vec()
        };
        let slot = Arc::new(Slot {
            secret: secret.clone(),
            lent: Mutex::default(),
            settled: Notify::new(),
            waiter: AtomicWaker::new(),
        });
        let mut slots = lock(&self.slots);
        let client = self.free_id(&slots);
        slots.insert(client, slot.clone());
        drop(slots);
        let handle = CancelHandle {
            registry: self.clone(),
            client,
            slot,
        };
        (CancelKey { client, secret }, handle)
    }

    /// Ids are reused only after four billion logins; 0 is never one (PostgreSQL has no process 0).
    fn free_id(&self, slots: &HashMap<ClientId, Arc<Slot>>) -> ClientId {
        loop {
            let id = ClientId(self.next.fetch_add(1, Ordering::Relaxed).wrapping_add(1));
            // Some drivers keep the process id as a signed number.
            if id.0 != 0 && id.0 <= i32::MAX as u32 && !slots.contains_key(&id) {
                return id;
            }
        }
    }

    /// Carries out a CancelRequest. Returns when the server has been told, or there is nobody to tell.
    pub async fn cancel(&self, client: ClientId, secret: &[u8]) -> CancelOutcome {
        let Some(slot) = lock(&self.slots).get(&client).cloned() else {
            return CancelOutcome::Unknown;
        };
        if !same(&slot.secret, secret) {
            return CancelOutcome::Unknown;
        }
        let target = {
            let mut lent = lock(&slot.lent);
            let Some(target) = lent.backend.clone() else {
                lent.waiting_cancelled = lent.waiting;
                slot.waiter.wake();
                return CancelOutcome::NothingRunning;
            };
            lent.in_flight += 1;
            target
        };
        let guard = InFlight {
            slot: &slot,
            confirmed: false,
        };
        match send_cancel(&target, CANCEL_DEADLINE).await {
            Ok(()) => {
                guard.confirm();
                CancelOutcome::Sent
            }
            Err(error) => {
                tracing::warn!(client = %client, %error, "cancel request did not reach the server");
                CancelOutcome::Failed
            }
        }
    }
}

/// Constant-time comparison: the secret must not be guessable byte by byte.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

/// One cancel on its way. Dropped unconfirmed (error, or the task was stopped), the backend is in doubt.
struct InFlight<'a> {
    slot: &'a Slot,
    confirmed: bool,
}

impl InFlight<'_> {
    fn confirm(mut self) {
        self.confirmed = true;
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut lent = lock(&self.slot.lent);
        lent.in_flight -= 1;
        lent.in_doubt |= !self.confirmed;
        if lent.in_flight == 0 {
            self.slot.settled.notify_waiters();
        }
    }
}

/// Whether a backend may be lent to somebody else after its cancels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Settled {
    /// No cancel can reach it any more.
    Yes,
    /// A cancel may still reach it: close it.
    InDoubt,
}

impl CancelHandle {
    /// The session has borrowed this backend.
    pub fn lend(&self, backend: CancelTarget) {
        let mut lent = lock(&self.slot.lent);
        lent.waiting = false;
        lent.waiting_cancelled = false;
        lent.backend = Some(backend);
    }

    /// The session's backend is about to be given back: no new cancel finds it from here on; those in flight are
    /// waited for. Cancel-safe: the backend stays taken back.
    pub async fn take_back(&self) -> Settled {
        loop {
            // Registered before the check, or the last notification could be missed.
            let settled = self.slot.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if let Some(outcome) = self.try_take_back() {
                return outcome;
            }
            settled.await;
        }
    }

    /// [`Self::take_back`] if nothing is in flight; the usual case.
    pub fn try_take_back(&self) -> Option<Settled> {
        let mut lent = lock(&self.slot.lent);
        lent.backend = None;
        if lent.in_flight > 0 {
            return None;
        }
        let in_doubt = std::mem::take(&mut lent.in_doubt);
        Some(if in_doubt {
            Settled::InDoubt
        } else {
            Settled::Yes
        })
    }

    /// Cancels what runs on this session's own backend. Returns when the server has been told.
    pub async fn cancel_own(&self) -> CancelOutcome {
        self.registry.cancel(self.client, &self.slot.secret).await
    }

    /// [`Self::cancel_own`] in a task of its own.
    pub fn spawn_cancel(&self) {
        let (registry, client, slot) = (self.registry.clone(), self.client, self.slot.clone());
        tokio::spawn(async move { registry.cancel(client, &slot.secret).await });
    }

    /// The session waits for a backend: a cancel now ends the waiting.
    pub fn start_waiting(&self) {
        let mut lent = lock(&self.slot.lent);
        lent.waiting = true;
        lent.waiting_cancelled = false;
    }

    /// True once a cancel has come while waiting; wakes `cx` when one does.
    pub fn poll_waiting_cancelled(&self, cx: &mut std::task::Context<'_>) -> bool {
        self.slot.waiter.register(cx.waker());
        lock(&self.slot.lent).waiting_cancelled
    }

    /// The waiting is over, without a backend.
    pub fn stop_waiting(&self) {
        let mut lent = lock(&self.slot.lent);
        lent.waiting = false;
        lent.waiting_cancelled = false;
    }
}

impl Drop for CancelHandle {
    fn drop(&mut self) {
        lock(&self.registry.slots).remove(&self.client);
    }
}
