//! A pin from its beginning to its end: in the log, in the metrics, in the book.

use super::Session;
use crate::backend::connection::BackendConnection;
use crate::ids::{ClientId, PoolKey};
use crate::metrics::PinGuard;
use crate::pool::Pool;
use crate::session::digest::Digest;
use crate::session::pin::PinReason;
use crate::session::pin_book::BookedPin;
use crate::session::relay::Relay;
use std::fmt;
use std::sync::Arc;

/// News at level info; what has been told before, or is one of too many, at debug.
macro_rules! tell {
    ($is_news:expr, $($line:tt)*) => {
        if $is_news {
            tracing::info!($($line)*);
        } else {
            tracing::debug!($($line)*);
        }
    };
}

/// A backend is kept for a reason, until this is dropped.
pub(super) struct HeldPin {
    pub(super) reason: PinReason,
    client: ClientId,
    pool: PoolKey,
    digest: Option<Digest>,
    booked: BookedPin,
    _counted: PinGuard,
}

impl HeldPin {
    pub(super) fn begin(
        reason: PinReason,
        relay: &Relay,
        session: &Session,
        conn: &BackendConnection,
        pool: &Arc<Pool>,
    ) -> Self {
        let (key, digest) = (pool.key(), relay.cause(reason));
        let booked = session.pinning.book.pinned(key, reason, digest.clone());
        if is_told(reason) {
            tell!(
                booked.is_news, client = %session.client, pool = %key, user = key.role.as_str(),
                database = key.database.as_str(), backend = %conn.id, pid = conn.key.pid(),
                reason = reason.label(), digest = %Named(&digest), statement = shown(&digest),
                advice = reason.advice(), "session pinned"
            );
        }
        Self {
            reason,
            client: session.client,
            pool: key.clone(),
            digest,
            booked,
            _counted: pool.pinned(reason.label()),
        }
    }
}

impl Drop for HeldPin {
    fn drop(&mut self) {
        if is_told(self.reason) {
            tell!(
                self.booked.is_news, client = %self.client, pool = %self.pool,
                reason = self.reason.label(), digest = %Named(&self.digest),
                seconds = self.booked.since.elapsed().as_secs_f64(), "session unpinned"
            );
        }
    }
}

/// Reasons that did not keep the backend, as the configuration says: what the session has left is thrown away.
pub(super) fn tell_filtered(session: &Session, relay: &Relay) {
    let key = session.pool.key();
    for reason in relay.filtered().iter() {
        let digest = relay.cause(reason);
        session.pool.pin_filtered(reason.label());
        let is_news = session.pinning.book.filtered(key, reason, digest.clone());
        tell!(
            is_news, client = %session.client, pool = %key, reason = reason.label(),
            digest = %Named(&digest), statement = shown(&digest),
            "session not pinned (pool.session_pinning_filters): what it left is thrown away"
        );
    }
}

/// That a session-mode pool keeps its backends is no news.
fn is_told(reason: PinReason) -> bool {
    reason != PinReason::SessionMode
}

fn shown(digest: &Option<Digest>) -> &str {
    digest.as_ref().map_or("", Digest::text)
}

/// `-` where no statement is known.
struct Named<'a>(&'a Option<Digest>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(digest) => digest.fmt(f),
            None => f.write_str("-"),
        }
    }
}
