//! A session without a backend: waits for a request, answers what needs none, waits for a backend.

use super::{Session, Waited};
use crate::error::SqlState;
use crate::pool::BorrowError;
use crate::session::close::{CloseReason, error_message, obey_idle, unheard, violation};
use crate::session::relay::replaces_unnamed;
use crate::session::requests::{Next, Unnamed, look};
use crate::session::roster::Phase;
use crate::tls::Stream;
use crate::wire::encode;
use crate::wire::error_response::{ErrorMessage, Severity};
use crate::wire::frame::Header;
use bytes::{Buf, BytesMut};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// Notifications put before a client that has read all before them.
const OUTBOX_MAX: usize = 64 * 1024;

/// Why a session ends while it has no backend, and what its client is told.
type Closing = (CloseReason, Option<ErrorMessage>);

impl Session {
    /// Waits for a request that needs a backend; answers what needs none. Holds no buffer while nothing comes.
    pub(super) fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closing>> {
        let order = self.control().poll_order(cx);
        if let Some((reason, words)) = order.and_then(obey_idle) {
            return Poll::Ready(Err((reason, Some(words))));
        }
        if let Some(subscription) = &self.memory.subscription {
            subscription.register(cx);
        }
        loop {
            self.take_notifications()?;
            match self.next_request() {
                // What it was answered before goes out before what it is answered next.
                Ok(true) if self.outbox.is_empty() => return Poll::Ready(Ok(())),
                Ok(_) => {}
                Err(end) => return Poll::Ready(Err(end)),
            }
            if self.poll_outbox(cx).is_err() {
                return Poll::Ready(Err((CloseReason::ClientGone, None)));
            }
            // A client that does not read its answers is not read either.
            if !self.outbox.is_empty() {
                return Poll::Pending;
            }
            if matches!(self.next_request(), Ok(true)) {
                return Poll::Ready(Ok(()));
            }
            if self.take_notifications()? {
                continue;
            }
            self.up.shrink();
            if let Stream::Plain(socket) = &self.stream
                && socket.poll_read_ready(cx).is_pending()
            {
                return Poll::Pending;
            }
            match self.up.poll_fill(&mut self.stream, cx) {
                Poll::Ready(Ok(0) | Err(_)) => {
                    return Poll::Ready(Err((CloseReason::ClientGone, None)));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => {
                    self.up.shrink();
                    return Poll::Pending;
                }
            }
        }
    }

    /// What its listener has heard for it goes out as PostgreSQL would send it: between requests, and not before an answer
    /// that is owed. True if there was something.
    fn take_notifications(&mut self) -> Result<bool, Closing> {
        let Some(subscription) = &self.memory.subscription else {
            return Ok(false);
        };
        let waits = !self.outbox.is_empty() || self.refusing || self.skipping > 0;
        let some = !waits && subscription.take(&mut self.outbox, OUTBOX_MAX);
        match subscription.fault() {
            // What was heard before the end still goes out.
            Some(fault) if !some => {
                let (reason, words) = unheard(&fault);
                Err((reason, Some(words)))
            }
            _ => Ok(some),
        }
    }

    fn poll_outbox(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        while !self.outbox.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.outbox) {
                Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => self.outbox.advance(written),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        self.outbox = BytesMut::new();
        // TLS keeps what it could not write at once.
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// True if a request that needs a backend is at the front of what has come. Skips and answers what needs none.
    fn next_request(&mut self) -> Result<bool, Closing> {
        loop {
            let skip = self.skipping.min(self.up.unread().len());
            self.up.remove(skip);
            self.skipping -= skip;
            if self.skipping > 0 || self.up.unread().is_empty() {
                return Ok(false);
            }
            let header = match look(self.up.unread()).map_err(violation)? {
                Next::Incomplete => return Ok(false),
                Next::Quit => return Err((CloseReason::ClientQuit, None)),
                Next::Frame { header, .. } => header,
            };
            match header.tag {
                b'S' if header.body_len == 0 || self.refusing => {
                    self.refusing = false;
                    encode::ready_for_query(&mut self.outbox, b'I');
                }
                // Outside COPY these mean nothing (src/backend/tcop/postgres.c: accepted and ignored).
                b'H' if header.body_len == 0 => {}
                b'd' | b'c' | b'f' => {}
                _ if self.refusing => {}
                _ => return Ok(self.has_come(header)),
            }
            self.skipping = header.frame_len();
        }
    }

    /// A request is all there, or more than the buffer holds, before a backend is borrowed for it: a client that sends
    /// slowly keeps nobody else waiting. (Statement mode also looks at the text first.)
    fn has_come(&self, header: Header) -> bool {
        self.up.unread().len() >= header.frame_len() || !self.up.has_room()
    }

    /// Answers the request at the front with an error, as PostgreSQL would; the session lives on.
    pub(super) fn refuse(&mut self, error: &ErrorMessage) {
        let Ok(Next::Frame { header, .. }) = look(self.up.unread()) else {
            return;
        };
        // A query or Parse that fails leaves no unnamed statement.
        if replaces_unnamed(header, self.up.unread()) {
            self.memory.unnamed = Unnamed::None;
        }
        error.encode(&mut self.outbox);
        self.skipping = header.frame_len();
        if matches!(header.tag, b'Q' | b'F') {
            encode::ready_for_query(&mut self.outbox, b'I');
        } else {
            self.refusing = true;
        }
    }

    /// Waits for a backend; meanwhile the client may cancel, leave, or be told to go.
    pub(super) async fn borrow(&mut self) -> Waited {
        let pool = self.pool.clone();
        let mut borrowing = pin!(pool.borrow(self.patience));
        let mut waiting = false;
        poll_fn(|cx| {
            match borrowing.as_mut().poll(cx) {
                Poll::Ready(Ok(lease)) => return Poll::Ready(Waited::Lent(lease)),
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Waited::Refused(self.no_backend(&error)));
                }
                Poll::Pending => {}
            }
            if !std::mem::replace(&mut waiting, true) {
                self.control().enter(Phase::Waiting);
                self.cancel.start_waiting();
            }
            self.poll_while_waiting(cx)
        })
        .await
    }

    fn no_backend(&self, error: &BorrowError) -> ErrorMessage {
        tracing::warn!(client = %self.client, pool = %self.pool.key(), %error, "no backend for a client");
        self.cancel.stop_waiting();
        ErrorMessage::from_client_facing(Severity::Error, error)
    }

    fn poll_while_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Waited> {
        if self.cancel.poll_waiting_cancelled(cx) {
            self.cancel.stop_waiting();
            return Poll::Ready(Waited::Refused(error_message(
                Severity::Error,
                SqlState::QUERY_CANCELED,
                "canceling statement due to user request",
            )));
        }
        let order = self.control().poll_order(cx);
        if let Some((reason, words)) = order.and_then(obey_idle) {
            return Poll::Ready(Waited::Closed(reason, Some(words)));
        }
        while self.up.has_room() {
            match self.up.poll_fill(&mut self.stream, cx) {
                Poll::Ready(Ok(0) | Err(_)) => {
                    return Poll::Ready(Waited::Closed(CloseReason::ClientGone, None));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }
}
