//! Brings a backend to rest after its client has left, or closes it: what the client had open is rolled back, its locks
//! are free, nothing it set is left.

use super::memory::Memory;
use super::pin::PinReason;
use super::relay::{Relay, RelayEnd, Sides};
use crate::backend::exchange::{ExchangeError, simple_query};
use crate::cancel::{CancelHandle, Settled};
use crate::drain::DrainWatch;
use crate::pool::{DiscardReason, GiveBack, Lease};
use crate::tls::Stream;
use crate::wire::flow::Flow;
use crate::wire::from_backend::TxStatus;
use std::future::poll_fn;
use std::time::Duration;

/// How long a backend may take to come to rest before it is closed.
const DEADLINE: Duration = Duration::from_secs(5);

/// A backend whose client has left.
pub(super) struct Farewell {
    pub(super) lease: Lease,
    pub(super) relay: Relay,
    pub(super) up: Flow,
    pub(super) memory: Memory,
    pub(super) stream: Stream,
    pub(super) cancel: CancelHandle,
    /// The client said goodbye: what it asked for last is carried out, as PostgreSQL would.
    pub(super) polite: bool,
    /// The process does not end before this has.
    pub(super) _watch: DrainWatch,
}

#[derive(Debug, thiserror::Error)]
enum Unsettled {
    #[error("a message or a COPY was cut short")]
    HalfSent,
    #[error("a library was loaded, which nothing unloads")]
    Loaded,
    #[error("the backend broke off: {0:?}")]
    Relay(RelayEnd),
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

impl Farewell {
    /// Runs to the end: the backend is given back or closed.
    pub(super) async fn run(mut self) {
        let settled = tokio::time::timeout(DEADLINE, self.settle()).await;
        let trusted = tokio::time::timeout(DEADLINE, self.cancel.take_back()).await;
        let Self {
            mut lease,
            relay,
            up,
            ..
        } = self;
        match settled {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "backend not settled after its client left");
                return lease.discard(DiscardReason::ClientLeft);
            }
            Err(_) => return lease.discard(DiscardReason::ClientLeft),
        }
        if !matches!(trusted, Ok(Settled::Yes)) {
            return lease.discard(DiscardReason::CancelInDoubt);
        }
        let at_rest = relay.is_at_rest(&up);
        relay.finish(lease.conn());
        match GiveBack::check(lease.conn(), at_rest) {
            Some(proof) => lease.give_back(proof),
            None => lease.discard(DiscardReason::NotClean),
        }
    }

    async fn settle(&mut self) -> Result<(), Unsettled> {
        if !self.relay.can_be_settled(&self.up) {
            return Err(Unsettled::HalfSent);
        }
        if !self.polite && self.relay.owes_replies() {
            self.cancel.cancel_own().await;
        }
        self.relay.end_batch(&mut self.up);
        let mut sides = Sides {
            client: &mut self.stream,
            conn: self.lease.conn(),
            up: &mut self.up,
            memory: &mut self.memory,
        };
        poll_fn(|cx| self.relay.poll_drain_replies(&mut sides, cx))
            .await
            .map_err(Unsettled::Relay)?;
        let conn = sides.conn;
        if conn.status != TxStatus::Idle {
            simple_query(conn, "ROLLBACK", DEADLINE).await?;
        }
        self.relay.note_state_left(conn);
        if self.relay.pins().contains(PinReason::Load) {
            return Err(Unsettled::Loaded);
        }
        if !self.relay.is_clean() {
            simple_query(conn, "DISCARD ALL", DEADLINE).await?;
            conn.was_discarded();
        }
        Ok(())
    }
}
