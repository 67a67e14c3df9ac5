//! What is watched while a relay runs: orders from outside, pins, timings.

use super::held::HeldPin;
use super::{Ended, Session};
use crate::backend::connection::BackendConnection;
use crate::error::SqlState;
use crate::metrics::TransactionGuard;
use crate::pool::{Lease, Pool};
use crate::session::close::{CloseReason, error_message, idle_timeout, stopping, unheard};
use crate::session::relay::{Relay, Sides};
use crate::session::roster::{Order, Phase};
use crate::wire::error_response::Severity;
use crate::wire::from_backend::TxStatus;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use tokio::time::Instant;

/// What is watched while a relay runs: orders from outside, pins, timings.
pub(super) struct Watch {
    since: Instant,
    sent: Instant,
    phase: Phase,
    shutdown: bool,
    in_transaction: Option<TransactionGuard>,
    pins: Vec<HeldPin>,
}

impl Watch {
    pub(super) fn new(since: Instant) -> Self {
        Self {
            since,
            sent: Instant::now(),
            phase: Phase::Active,
            shutdown: false,
            in_transaction: None,
            pins: Vec::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        session: &mut Session,
        lease: &mut Lease,
        relay: &mut Relay,
    ) -> Ended {
        let pool = lease.pool().clone();
        poll_fn(|cx| {
            if let Some(order) = session.entry.control.poll_order(cx)
                && let Some(ended) = self.obey(order, session)
            {
                return Poll::Ready(ended);
            }
            let mut sides = Sides {
                client: &mut session.stream,
                conn: lease.conn(),
                up: &mut session.up,
                memory: &mut session.memory,
            };
            let polled = relay.poll(&mut sides, cx);
            let status = sides.conn.status;
            match relay.take_queries() {
                0 => {}
                count => session.metrics.queries(count),
            }
            let at_rest = relay.is_at_rest(&session.up) && !relay.is_moving();
            let awaits_client = relay.awaits_client(&session.up);
            self.note_phase(at_rest, awaits_client, status, session, &pool);
            if let Poll::Ready(end) = polled {
                return Poll::Ready(Ended::Relay(end));
            }
            self.note_pins(relay, session, lease.conn(), &pool);
            let fault = (session.memory.subscription.as_ref()).and_then(|it| it.fault());
            if let Some(fault) = fault.filter(|_| self.phase != Phase::Active) {
                let (reason, words) = unheard(&fault);
                return Poll::Ready(Ended::Close(reason, words));
            }
            if self.shutdown && self.phase == Phase::Pinned {
                return Poll::Ready(Ended::Close(CloseReason::Shutdown, stopping()));
            }
            Poll::Pending
        })
        .await
    }

    fn note_phase(
        &mut self,
        at_rest: bool,
        awaits_client: bool,
        status: TxStatus,
        session: &Session,
        pool: &Arc<Pool>,
    ) {
        let phase = match (at_rest, status) {
            // Nothing runs: a client that stalls here is idle in a transaction.
            (false, _) if awaits_client => Phase::InTransaction,
            (false, _) => Phase::Active,
            (true, TxStatus::Idle) => Phase::Pinned,
            (true, _) => Phase::InTransaction,
        };
        if phase == self.phase {
            return;
        }
        if phase == Phase::Active {
            self.sent = Instant::now();
            self.since = self.sent;
        } else if self.phase == Phase::Active {
            session.metrics.query_took(self.since.elapsed());
            session.metrics.database_took(self.sent.elapsed());
        }
        self.in_transaction = match (status, self.in_transaction.take()) {
            (TxStatus::Idle, _) => None,
            (_, Some(guard)) => Some(guard),
            (_, None) => Some(pool.in_transaction()),
        };
        self.phase = phase;
        session.control().enter(phase);
    }

    fn note_pins(
        &mut self,
        relay: &mut Relay,
        session: &Session,
        conn: &BackendConnection,
        pool: &Arc<Pool>,
    ) {
        // Before, a transaction keeps the backend, and what may pin has not been confirmed.
        if self.phase != Phase::Pinned {
            return;
        }
        let pins = relay.kept();
        self.pins.retain(|pin| pins.contains(pin.reason));
        for reason in relay.new_pins() {
            let pin = HeldPin::begin(reason, relay, session, conn, pool);
            self.pins.push(pin);
        }
    }

    fn obey(&mut self, order: Order, session: &Session) -> Option<Ended> {
        match order {
            Order::Abort => Some(Ended::Close(CloseReason::Shutdown, stopping())),
            Order::Shutdown => {
                self.shutdown = true;
                (self.phase == Phase::Pinned)
                    .then(|| Ended::Close(CloseReason::Shutdown, stopping()))
            }
            Order::TimedOut(Phase::Pinned) if self.phase == Phase::Pinned => {
                Some(Ended::Close(CloseReason::IdleTimeout, idle_timeout()))
            }
            Order::TimedOut(Phase::InTransaction) if self.phase == Phase::InTransaction => {
                let words = error_message(
                    Severity::Fatal,
                    SqlState::IDLE_IN_TRANSACTION_TIMEOUT,
                    "terminating connection due to idle-in-transaction timeout",
                );
                Some(Ended::Close(CloseReason::IdleInTransactionTimeout, words))
            }
            Order::TimedOut(Phase::Active) if self.phase == Phase::Active => {
                tracing::info!(client = %session.client, "query_timeout: cancelling the statement");
                session.control().enter(Phase::Active); // the next cancel a whole timeout later
                session.cancel.spawn_cancel();
                None
            }
            Order::TimedOut(_) => None,
        }
    }
}
