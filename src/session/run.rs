//! A session's life: read a request, borrow a backend, relay until it can be given back, again.

use super::farewell::Farewell;
use super::pin::PinReason;
use super::relay::{Hold, Relay, RelayEnd, Sides, opens_transaction};
use super::requests::{Next, Unnamed, Violation, look};
use super::roster::{Control, Entry, Order, Phase};
use crate::backend::settings::Settings;
use crate::cancel::{CancelHandle, Settled};
use crate::config::PoolMode;
use crate::drain::DrainWatch;
use crate::error::{ClientFacing, SqlState};
use crate::ids::ClientId;
use crate::metrics::{PinGuard, SessionMetrics};
use crate::pool::{BorrowError, DiscardReason, GiveBack, Lease, Pool};
use crate::tls::Stream;
use crate::wire::encode;
use crate::wire::error_response::{ErrorMessage, Severity};
use crate::wire::flow::Flow;
use crate::wire::frame::Header;
use bytes::{Buf, BytesMut};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// How long a client may take to read its last message.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(2);

/// Everything a session needs.
pub struct SessionStart {
    /// The client's connection.
    pub stream: Stream,
    /// What it has sent beyond its login.
    pub unread: BytesMut,
    /// What it asked for at login.
    pub settings: Settings,
    /// Where its backends come from.
    pub pool: Arc<Pool>,
    /// When it gives them back.
    pub mode: PoolMode,
    /// How long it waits for one.
    pub patience: Duration,
    /// Its end of the cancel registry.
    pub cancel: CancelHandle,
    /// Its entry on the roster.
    pub entry: Entry,
    /// Its metrics.
    pub metrics: Arc<SessionMetrics>,
    /// Who it is.
    pub client: ClientId,
    /// Held until its last backend is at rest.
    pub watch: DrainWatch,
}

/// Why a session ended. Log text and metric label come from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// It said goodbye.
    ClientQuit,
    /// It vanished.
    ClientGone,
    /// It broke the protocol.
    ProtocolViolation,
    /// `idle_client_timeout`
    IdleTimeout,
    /// `idle_in_transaction_timeout`
    IdleInTransactionTimeout,
    /// Its database connection was lost.
    BackendLost,
    /// What it asked for at login was refused later.
    SettingsRefused,
    /// It opened a transaction in statement mode.
    StatementMode,
    /// The proxy is stopping.
    Shutdown,
}

impl CloseReason {
    /// The log text and metric label.
    pub fn label(self) -> &'static str {
        match self {
            CloseReason::ClientQuit => "client_quit",
            CloseReason::ClientGone => "client_gone",
            CloseReason::ProtocolViolation => "protocol_violation",
            CloseReason::IdleTimeout => "idle_client_timeout",
            CloseReason::IdleInTransactionTimeout => "idle_in_transaction_timeout",
            CloseReason::BackendLost => "backend_lost",
            CloseReason::SettingsRefused => "settings_refused",
            CloseReason::StatementMode => "statement_mode",
            CloseReason::Shutdown => "shutdown",
        }
    }
}

/// The running thing.
pub struct Session {
    stream: Stream,
    up: Flow,
    /// Answers of the proxy's own, and what a released backend left to be sent.
    outbox: BytesMut,
    skipping: usize,
    /// A request of an extended-protocol batch was refused: all is skipped up to its Sync.
    refusing: bool,
    unnamed: Unnamed,
    settings: Settings,
    pool: Arc<Pool>,
    hold: Hold,
    patience: Duration,
    cancel: CancelHandle,
    entry: Entry,
    metrics: Arc<SessionMetrics>,
    client: ClientId,
    watch: DrainWatch,
}

enum Waited {
    Lent(Lease),
    Refused(ErrorMessage),
    Closed(CloseReason, Option<ErrorMessage>),
}

enum Ended {
    Relay(RelayEnd),
    Close(CloseReason, ErrorMessage),
}

impl Session {
    /// A session right after its login.
    pub fn new(start: SessionStart) -> Self {
        Self {
            stream: start.stream,
            up: Flow::with_unread(start.unread),
            outbox: BytesMut::new(),
            skipping: 0,
            refusing: false,
            unnamed: Unnamed::None,
            settings: start.settings,
            pool: start.pool,
            hold: match start.mode {
                PoolMode::Transaction => Hold::Transaction,
                PoolMode::Statement => Hold::Statement,
                PoolMode::Session => Hold::Session,
            },
            patience: start.patience,
            cancel: start.cancel,
            entry: start.entry,
            metrics: start.metrics,
            client: start.client,
            watch: start.watch,
        }
    }

    fn control(&self) -> &Control {
        &self.entry.control
    }

    /// Serves the client until it leaves or is told to go.
    pub async fn run(mut self) -> CloseReason {
        loop {
            self.control().enter(Phase::Idle);
            if let Err((reason, words)) = poll_fn(|cx| self.poll_request(cx)).await {
                return self.close(reason, words).await;
            }
            if self.hold == Hold::Statement && opens_transaction(self.up.unread()) {
                self.refuse(&statement_mode_error(Severity::Error));
                continue;
            }
            let since = Instant::now();
            match Box::pin(self.borrow()).await {
                Waited::Lent(lease) => match Box::pin(self.serve(lease, since)).await {
                    Ok(session) => self = session,
                    Err(reason) => return reason,
                },
                Waited::Refused(error) => self.refuse(&error),
                Waited::Closed(reason, words) => return self.close(reason, words).await,
            }
        }
    }

    /// Waits for a request that needs a backend; answers what needs none. Holds no buffer while nothing comes.
    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), (CloseReason, Option<ErrorMessage>)>> {
        let order = self.control().poll_order(cx);
        if let Some((reason, words)) = order.and_then(obey_idle) {
            return Poll::Ready(Err((reason, Some(words))));
        }
        loop {
            match self.next_request() {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => {}
                Err(end) => return Poll::Ready(Err(end)),
            }
            if self.poll_outbox(cx).is_err() {
                return Poll::Ready(Err((CloseReason::ClientGone, None)));
            }
            // A client that does not read its answers is not read either.
            if !self.outbox.is_empty() {
                return Poll::Pending;
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
    fn next_request(&mut self) -> Result<bool, (CloseReason, Option<ErrorMessage>)> {
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
                b'S' => {
                    self.refusing = false;
                    encode::ready_for_query(&mut self.outbox, b'I');
                }
                // Outside COPY these mean nothing (src/backend/tcop/postgres.c: accepted and ignored).
                b'H' | b'd' | b'c' | b'f' => {}
                _ if self.refusing => {}
                _ => return self.whole_if_needed(header),
            }
            self.skipping = header.frame_len();
        }
    }

    /// Statement mode looks at a request's text before it borrows.
    fn whole_if_needed(&self, header: Header) -> Result<bool, (CloseReason, Option<ErrorMessage>)> {
        let all_there = self.up.unread().len() >= header.frame_len() || !self.up.has_room();
        Ok(self.hold != Hold::Statement || all_there)
    }

    /// Answers the request at the front with an error, as PostgreSQL would; the session lives on.
    fn refuse(&mut self, error: &ErrorMessage) {
        let Ok(Next::Frame { header, .. }) = look(self.up.unread()) else {
            return;
        };
        error.encode(&mut self.outbox);
        self.skipping = header.frame_len();
        if matches!(header.tag, b'Q' | b'F') {
            encode::ready_for_query(&mut self.outbox, b'I');
        } else {
            self.refusing = true;
        }
    }

    /// Waits for a backend; meanwhile the client may cancel, leave, or be told to go.
    async fn borrow(&mut self) -> Waited {
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

    /// Relays until the backend is free again; the session goes on unless the client is gone or must go.
    async fn serve(mut self, mut lease: Lease, since: Instant) -> Result<Self, CloseReason> {
        self.cancel.lend(lease.conn().key.clone());
        self.control().enter(Phase::Active);
        let (mut relay, replayed) =
            Relay::start(self.hold, &self.settings, lease.conn(), &mut self.up);
        if replayed {
            self.pool.replayed();
        }
        let ended = Watch::new(since)
            .run(&mut self, &mut lease, &mut relay)
            .await;
        match ended {
            Ended::Relay(RelayEnd::Released) => Ok(self.release(lease, relay).await),
            Ended::Relay(end) => Err(self.end(lease, relay, end).await),
            Ended::Close(reason, words) => {
                self.last_words(&mut relay, Some(&words)).await;
                self.leave(lease, relay, false);
                Err(reason)
            }
        }
    }

    /// The backend is at rest: back it goes, once no cancel can reach it.
    async fn release(mut self, mut lease: Lease, relay: Relay) -> Self {
        let settled = match self.cancel.try_take_back() {
            Some(settled) => settled,
            None => self.cancel.take_back().await,
        };
        let at_rest = relay.is_at_rest(&self.up);
        self.outbox = relay.finish(lease.conn());
        // What came behind the last reply is the server's own news; alive or not, it is not for this client.
        let alive = lease.conn().buf.is_empty() || lease.conn().is_alive();
        match GiveBack::check(lease.conn(), at_rest) {
            _ if settled == Settled::InDoubt => lease.discard(DiscardReason::CancelInDoubt),
            Some(proof) if alive => lease.give_back(proof),
            Some(_) => lease.discard(DiscardReason::ServerClosed),
            None => lease.discard(DiscardReason::NotClean),
        }
        self
    }

    /// The relay broke off: last words, the backend's fate, the reason.
    async fn end(mut self, lease: Lease, mut relay: Relay, end: RelayEnd) -> CloseReason {
        let (reason, words) = describe(&end, relay.last_was_error());
        if let Some(words) = &words {
            tracing::warn!(client = %self.client, reason = reason.label(), cause = ?end, "session broken off");
            self.last_words(&mut relay, Some(words)).await;
        } else if matches!(end, RelayEnd::BackendGone) {
            self.last_words(&mut relay, None).await;
        }
        match end {
            RelayEnd::BackendGone => lease.discard(DiscardReason::ServerClosed),
            RelayEnd::BackendFault(_) => lease.discard(DiscardReason::ServerFault),
            RelayEnd::SettingsRefused(_) => lease.discard(DiscardReason::SettingsRefused),
            end => self.leave(lease, relay, matches!(end, RelayEnd::ClientQuit)),
        }
        reason
    }

    /// Hands the backend to a task that brings it to rest; the client's connection closes when that is done.
    fn leave(self, lease: Lease, relay: Relay, polite: bool) {
        let Self {
            stream,
            up,
            cancel,
            entry,
            watch,
            ..
        } = self;
        // The client is gone from the roster at once; its cancel key lives until its backend is at rest.
        drop(entry);
        tokio::spawn(
            Farewell {
                lease,
                relay,
                up,
                stream,
                cancel,
                polite,
                _watch: watch,
            }
            .run(),
        );
    }

    /// Sends what the relay still has for the client, and a last message.
    async fn last_words(&mut self, relay: &mut Relay, words: Option<&ErrorMessage>) {
        let stream = &mut self.stream;
        let sending = async {
            poll_fn(|cx| relay.poll_flush(stream, cx)).await?;
            let mut message = BytesMut::new();
            if let Some(words) = words {
                words.encode(&mut message);
            }
            stream.write_all(&message).await?;
            stream.shutdown().await
        };
        // The client may be gone, or not reading: nothing more can be done for it.
        let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, sending).await;
    }

    /// Closes a session that has no backend.
    async fn close(mut self, reason: CloseReason, words: Option<ErrorMessage>) -> CloseReason {
        if let Some(words) = words {
            words.encode(&mut self.outbox);
        }
        let sending = async {
            self.stream.write_all(&self.outbox).await?;
            self.stream.shutdown().await
        };
        let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, sending).await;
        reason
    }
}

/// What is watched while a relay runs: orders from outside, pins, timings.
struct Watch {
    since: Instant,
    sent: Instant,
    phase: Phase,
    shutdown: bool,
    in_transaction: Option<crate::metrics::TransactionGuard>,
    pins: Vec<(PinReason, PinGuard)>,
}

impl Watch {
    fn new(since: Instant) -> Self {
        Self {
            since,
            sent: Instant::now(),
            phase: Phase::Active,
            shutdown: false,
            in_transaction: None,
            pins: Vec::new(),
        }
    }

    async fn run(mut self, session: &mut Session, lease: &mut Lease, relay: &mut Relay) -> Ended {
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
                unnamed: &mut session.unnamed,
            };
            let polled = relay.poll(&mut sides, cx);
            let status = sides.conn.status;
            match relay.take_queries() {
                0 => {}
                count => session.metrics.queries(count),
            }
            let at_rest = relay.is_at_rest(&session.up);
            self.note_phase(at_rest, status, session, &pool);
            if let Poll::Ready(end) = polled {
                return Poll::Ready(Ended::Relay(end));
            }
            self.note_pins(relay, session, &pool);
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
        status: crate::wire::from_backend::TxStatus,
        session: &Session,
        pool: &Arc<Pool>,
    ) {
        use crate::wire::from_backend::TxStatus;
        let phase = match (at_rest, status) {
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

    fn note_pins(&mut self, relay: &mut Relay, session: &Session, pool: &Arc<Pool>) {
        if self.phase == Phase::Active {
            return;
        }
        let pins = relay.pins();
        self.pins.retain(|(reason, _)| pins.contains(*reason));
        for reason in relay.new_pins() {
            if reason != PinReason::SessionMode {
                tracing::info!(
                    client = %session.client, pool = %pool.key(), reason = reason.label(),
                    advice = reason.advice(), "session pinned"
                );
            }
            self.pins.push((reason, pool.pinned(reason.label())));
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

/// What an order means for a session without a backend.
fn obey_idle(order: Order) -> Option<(CloseReason, ErrorMessage)> {
    match order {
        Order::Shutdown | Order::Abort => Some((CloseReason::Shutdown, stopping())),
        Order::TimedOut(Phase::Idle) => Some((CloseReason::IdleTimeout, idle_timeout())),
        Order::TimedOut(_) => None,
    }
}

/// The reason a relay's end gives, and what the client is told unless it knows already.
fn describe(end: &RelayEnd, client_knows: bool) -> (CloseReason, Option<ErrorMessage>) {
    let fatal = |code, text: &str| Some(error_message(Severity::Fatal, code, text));
    match end {
        RelayEnd::Released | RelayEnd::ClientQuit => (CloseReason::ClientQuit, None),
        RelayEnd::ClientGone => (CloseReason::ClientGone, None),
        RelayEnd::ClientFault(fault) => violation(*fault),
        RelayEnd::BackendGone if client_knows => (CloseReason::BackendLost, None),
        RelayEnd::BackendGone => {
            let text = "the database connection was lost while it was in use; \
                        whether the last statement took effect is not known";
            (
                CloseReason::BackendLost,
                fatal(SqlState::CONNECTION_FAILURE, text),
            )
        }
        RelayEnd::BackendFault(fault) => {
            let text = format!("the database server broke the protocol: {fault}");
            (
                CloseReason::BackendLost,
                fatal(SqlState::PROTOCOL_VIOLATION, &text),
            )
        }
        RelayEnd::SettingsRefused(error) => {
            let text = format!(
                "the session's settings could not be applied: {}",
                error.message
            );
            (CloseReason::SettingsRefused, fatal(error.code, &text))
        }
        RelayEnd::TransactionInStatementMode => (
            CloseReason::StatementMode,
            Some(statement_mode_error(Severity::Fatal)),
        ),
    }
}

fn error_message(severity: Severity, code: SqlState, message: &str) -> ErrorMessage {
    ErrorMessage {
        severity,
        code,
        message: message.into(),
        detail: None,
        hint: None,
    }
}

fn violation(violation: Violation) -> (CloseReason, Option<ErrorMessage>) {
    let words = error_message(
        Severity::Fatal,
        SqlState::PROTOCOL_VIOLATION,
        &violation.to_string(),
    );
    (CloseReason::ProtocolViolation, Some(words))
}

fn stopping() -> ErrorMessage {
    let text = "terminating connection due to administrator command";
    error_message(Severity::Fatal, SqlState::ADMIN_SHUTDOWN, text)
}

fn idle_timeout() -> ErrorMessage {
    let text = "terminating connection due to idle-session timeout";
    error_message(Severity::Fatal, SqlState::IDLE_SESSION_TIMEOUT, text)
}

fn statement_mode_error(severity: Severity) -> ErrorMessage {
    ErrorMessage {
        hint: Some("Set the pool's mode to \"transaction\", or send single statements.".into()),
        ..error_message(
            severity,
            SqlState::FEATURE_NOT_SUPPORTED,
            "transaction blocks are not allowed: the pool's mode is \"statement\"",
        )
    }
}

impl ClientFacing for Violation {
    fn fault(&self) -> crate::error::Fault {
        crate::error::Fault::Client
    }

    fn sqlstate(&self) -> SqlState {
        SqlState::PROTOCOL_VIOLATION
    }

    fn client_message(&self) -> String {
        self.to_string()
    }
}
