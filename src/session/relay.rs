//! Moves frames between one client and the backend it has borrowed, until the backend can be given back or something
//! ends it.
//!
//! ```text
//!   client ── read ──► up: examined by `requests` ── write ──► backend
//!   client ◄── write ── down: matched by `replies` ◄── read ── backend
//! ```
//! Each direction has one bounded buffer; a side that does not read stops the reading on the other side. A relay ends
//! at ReadyForQuery(idle) with nothing owed, nothing half sent, and no reason to keep the backend ([`PinReasons`]).
//!
//! One poll does all that can be done without waiting: one read and one write a side in the usual case.

mod bring;
mod causes;
mod deallocate;
mod down;
mod listening;
mod names;
mod reset;
mod scope;
mod sequences;
mod shown;
mod sql_prepared;
mod state;
mod up;

pub(super) use up::{opens_transaction, replaces_unnamed};

use super::listen::{Fault as ListenFault, Founding};
use super::memory::Memory;
use super::pin::PinReasons;
use super::prepared::Used;
use super::replies::{Expect, PendingReplies, ReplyAction, UnexpectedReply};
use super::requests::{RequestReader, Violation};
use super::survey::Survey;
use crate::backend::connection::{BackendConnection, Parameters};
use crate::backend::prepared::StatementId;
use crate::backend::settings::Settings;
use crate::tls::Stream;
use crate::wire::flow::Flow;
use crate::wire::frame::BadLength;
use crate::wire::from_backend::{ServerError, TxStatus};
use crate::wire::to_backend;
use bring::Shaping;
use bytes::BytesMut;
use causes::Causes;
use listening::Listening;
use reset::Resets;
use scope::Meaning;
use sequences::Sequences;
use state::StateLeft;
use std::io;
use std::task::{Context, Poll, ready};

/// The longest ParameterStatus, CommandComplete or ErrorResponse of ours that is read whole.
const READ_WHOLE_MAX: usize = 32 * 1024;

/// Why a relay ended.
#[derive(Debug)]
pub(super) enum RelayEnd {
    /// The backend is clean, as far as the relay knows.
    Released,
    /// The client said goodbye.
    ClientQuit,
    /// The client vanished.
    ClientGone,
    /// The client broke the protocol.
    ClientFault(Violation),
    /// The server closed the connection.
    BackendGone,
    /// The server broke the protocol.
    BackendFault(BackendFault),
    /// The client's settings were refused by the server.
    SettingsRefused(ServerError),
    /// A transaction block in statement mode.
    TransactionInStatementMode,
    /// The backend listens, and has become the listener for all.
    Founds(Founding),
    /// The session can't be told all it should hear.
    Unheard(ListenFault),
    /// What the session listens to can't be told.
    ListeningUnknown,
    /// The server refused to listen to what the session listens to.
    ChannelsRefused(ServerError),
}

/// The server broke the protocol.
#[derive(Debug, thiserror::Error)]
pub(super) enum BackendFault {
    #[error(transparent)]
    Unexpected(#[from] UnexpectedReply),
    #[error(transparent)]
    Length(#[from] BadLength),
    #[error("malformed message {0:#04x} from the server")]
    Malformed(u8),
}

/// The two sides, and what outlives the relay.
pub(super) struct Sides<'a> {
    pub(super) client: &'a mut Stream,
    pub(super) conn: &'a mut BackendConnection,
    pub(super) up: &'a mut Flow,
    pub(super) memory: &'a mut Memory,
}

/// How a session uses its backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hold {
    Transaction,
    Statement,
    Session,
}

/// What holds for a lease from its beginning to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) hold: Hold,
    /// `session_pinning_filters`: reasons that must not pin.
    pub(super) filters: PinReasons,
    /// Somebody in the pool asks for sequence values.
    pub(super) read_sequences: bool,
}

/// One lease's worth of relaying.
#[derive(Debug)]
pub(super) struct Relay {
    hold: Hold,
    terms: Terms,
    down: Flow,
    replies: PendingReplies,
    requests: RequestReader,
    passing: Option<Passing>,
    state: StateLeft,
    causes: Causes,
    sequences: Sequences,
    listening: Listening,
    meaning: Meaning,
    shaping: Shaping,
    resets: Resets,
    /// What the server had reported when the session's state was last known.
    parameters: Parameters,
    /// The backend's unnamed statement is this session's.
    unnamed_here: bool,
    /// Something of the client's was held back for an answer that was to come first.
    held: bool,
    /// A request has come while the state was being settled: it may go to any backend, once others have had their turn.
    parked: bool,
    /// The first request of the lease has been sent, all of it.
    first_sent: bool,
    /// A statement that the server has just said it has.
    found_here: Option<StatementId>,
    /// The name that the next text had in the place of one of ours.
    renamed: Option<Used>,
    /// How literals are read now, asked for the unnamed statement.
    reading_now: Option<Settings>,
    /// A Sync of ours goes behind the simple query that is passing.
    sync_behind: bool,
    /// standard_conforming_strings: how its texts are read.
    plain_strings: bool,
    survey: Option<Survey>,
    /// What is being replayed has been taken from the client: it is told of it.
    restoring: bool,
    quit: bool,
    /// The last thing the client got was an error: it knows why it loses its connection.
    last_was_error: bool,
    queries: u32,
}

/// A reply partly passed.
#[derive(Clone, Copy, Debug)]
struct Passing {
    remaining: usize,
    action: ReplyAction,
}

type Scan<T> = Result<T, RelayEnd>;

impl Relay {
    /// Begins on a fresh lease, for a session with this memory.
    pub(super) fn start(
        terms: Terms,
        memory: &Memory,
        conn: &mut BackendConnection,
        up: &mut Flow,
    ) -> (Self, bool) {
        let settings = &memory.settings;
        let mut relay = Self {
            hold: terms.hold,
            terms,
            down: Flow::with_unread(std::mem::take(&mut conn.buf)),
            replies: PendingReplies::default(),
            requests: RequestReader::default(),
            passing: None,
            state: StateLeft::default(),
            causes: Causes::default(),
            sequences: Sequences::default(),
            listening: Listening::default(),
            meaning: Meaning::default(),
            shaping: Shaping::default(),
            resets: Resets::default(),
            parameters: conn.parameters.clone(),
            unnamed_here: false,
            held: false,
            parked: false,
            first_sent: false,
            found_here: None,
            renamed: None,
            reading_now: None,
            sync_behind: false,
            plain_strings: has_plain_strings(settings, conn),
            survey: None,
            restoring: false,
            quit: false,
            last_was_error: false,
            queries: 0,
        };
        let replayed = relay.replay(settings, conn, up);
        if terms.hold != Hold::Session {
            relay.state.has_sql = !memory.sql.is_empty();
            relay.clear_sql_prepared(memory, conn, up);
            relay.clear_shown(conn, up);
        }
        if terms.read_sequences && terms.hold != Hold::Session {
            relay.discard_sequences(up);
        }
        (relay, replayed)
    }

    /// Puts the session's settings before its first request, in the same write.
    fn replay(&mut self, settings: &Settings, conn: &mut BackendConnection, up: &mut Flow) -> bool {
        let Some(sql) = conn.replay_sql(settings) else {
            return false;
        };
        // In a transaction: if it is refused, what the client sent behind it is refused, too, and does not run without
        // its settings.
        // What the session before has set must not decide how, or for how long.
        let sql = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE;\
             SET LOCAL statement_timeout = 0;{sql};COMMIT"
        );
        self.insert_query(&sql, Expect::Query, up);
        conn.applied = Some(settings.clone());
        true
    }

    fn insert_query(&mut self, sql: &(impl AsRef<[u8]> + ?Sized), expect: Expect, up: &mut Flow) {
        let mut message = BytesMut::new();
        to_backend::query(&mut message, sql.as_ref());
        up.insert(&message);
        self.replies.push(expect, ReplyAction::Skip);
    }

    /// Queries sent since the last call.
    pub(super) fn take_queries(&mut self) -> u32 {
        std::mem::take(&mut self.queries)
    }

    /// Nothing is owed and nothing is half sent.
    pub(super) fn is_at_rest(&self, up: &Flow) -> bool {
        self.replies.is_settled()
            && self.requests.at_boundary()
            && self.passing.is_none()
            && !up.must_drain()
    }

    /// The server owes nothing; what is missing is the client's to send: the Sync of a batch, the rest of a message or of
    /// its COPY data.
    pub(super) fn awaits_client(&self, up: &Flow) -> bool {
        let half_done = self.replies.is_batch_open() || self.replies.is_copying_in();
        let half_sent = !self.requests.at_boundary();
        (half_done || half_sent) && self.replies.awaits_client() && !up.must_drain()
    }

    /// The session is on its way to a listener, or has a backend only until it is there.
    pub(super) fn is_moving(&self) -> bool {
        self.listening.is_moving()
    }

    /// The client has said goodbye.
    pub(super) fn has_quit(&self) -> bool {
        self.quit
    }

    /// The client got an error last, and nothing after it.
    pub(super) fn last_was_error(&self) -> bool {
        self.last_was_error
    }

    /// Does all that can be done without waiting; ready when the relay has ended. Cancel-safe: all state is in `self`
    /// and `sides`.
    pub(super) fn poll(&mut self, sides: &mut Sides<'_>, cx: &mut Context<'_>) -> Poll<RelayEnd> {
        loop {
            self.watch_listening(sides.memory, cx);
            let up = self.pump_up(sides, cx);
            let down = match up {
                Ok(moved) => self.pump_down(sides, cx).map(|also| moved || also),
                Err(end) => Err(end),
            };
            match down {
                Err(end) => return Poll::Ready(end),
                // What it asked for before it said goodbye it still gets.
                Ok(_) if self.quit && !sides.up.must_drain() && self.replies.outstanding() == 0 => {
                    return Poll::Ready(RelayEnd::ClientQuit);
                }
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
            }
        }
    }

    /// A reply has gone to the client in part: nothing else may, before the rest of it.
    pub(super) fn is_mid_reply(&self) -> bool {
        self.passing.is_some()
    }

    /// Passes the rest of a reply that has gone to the client in part. Cancel-safe.
    pub(super) fn poll_finish_reply(
        &mut self,
        sides: &mut Sides<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.pass_reply() {
            if !self.down.has_room() {
                ready!(self.down.poll_drain(sides.client, cx))?;
            }
            if ready!(self.down.poll_fill(&mut sides.conn.stream, cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what waits for the client; ready when nothing does.
    pub(super) fn poll_flush(
        &mut self,
        client: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.down.poll_drain(client, cx)
    }

    /// Gives the backend its unread bytes back; returns what the client has not been sent yet.
    pub(super) fn finish(mut self, conn: &mut BackendConnection) -> BytesMut {
        let mut unsent = BytesMut::new();
        self.down.move_ready_to(&mut unsent);
        // Bytes that came behind an exchange of the proxy's own are there already.
        conn.buf.unsplit(self.down.into_unread());
        unsent
    }
    /// The answer that a request was held for has come: the request goes to this backend, which is ready for it.
    fn take_held(&mut self, sides: &Sides<'_>) -> bool {
        std::mem::take(&mut self.held) && !sides.up.unread().is_empty()
    }

    /// Decides what follows when nothing is owed any more; true if there is something more to send.
    fn at_ready(&mut self, sides: &mut Sides<'_>) -> Scan<bool> {
        if self.replies.needs_fence() && self.requests.at_boundary() {
            self.insert_query("", Expect::Fence, sides.up);
            self.unnamed_here = false; // it is a simple query
            return Ok(true);
        }
        if !self.is_at_rest(sides.up) {
            return Ok(false);
        }
        if self.hold == Hold::Statement && sides.conn.status != TxStatus::Idle {
            return Err(RelayEnd::TransactionInStatementMode);
        }
        if sides.conn.status != TxStatus::Idle {
            return Ok(self.take_held(sides));
        }
        if self.replies.has_undone() {
            self.undo_changes(sides);
        }
        self.note_state_left(sides.conn);
        if self.listening.is_for_request() {
            return Ok(self.take_held(sides));
        }
        if !self.listening.is_moving() && self.settle_state(sides) {
            return Ok(true);
        }
        self.settle_meaning();
        if self.settle_listening(sides)? {
            return Ok(true);
        }
        if self.listening.is_moving() {
            return Ok(false);
        }
        if self.take_held(sides) {
            return Ok(true);
        }
        if self.kept().is_empty() {
            return Err(RelayEnd::Released);
        }
        let parked = std::mem::take(&mut self.parked) && !sides.up.unread().is_empty();
        Ok(self.deliver_at_rest(sides) || parked)
    }

    /// Reads and drops everything the backend still owes, for a client that has left. Cancel-safe.
    pub(super) fn poll_drain_replies(
        &mut self,
        sides: &mut Sides<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), RelayEnd>> {
        let mut unsent = BytesMut::new();
        self.listening.abandoned = true;
        loop {
            self.scan_down(sides)?;
            self.undo_changes(sides);
            self.down.move_ready_to(&mut unsent);
            unsent.clear();
            if self.replies.needs_fence() {
                self.insert_query("", Expect::Fence, sides.up);
            }
            if sides.up.must_drain()
                && let Poll::Ready(Err(_)) = sides.up.poll_drain(&mut sides.conn.stream, cx)
            {
                return Poll::Ready(Err(RelayEnd::BackendGone));
            }
            if self.is_at_rest(sides.up) {
                return Poll::Ready(Ok(()));
            }
            match self.down.poll_fill(&mut sides.conn.stream, cx) {
                Poll::Ready(Ok(count)) if count > 0 => {}
                Poll::Ready(_) => return Poll::Ready(Err(RelayEnd::BackendGone)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The client left in the middle of a batch: it is rolled back, as PostgreSQL does when it finds nobody there. (Outside
    /// a transaction block ROLLBACK warns, and rolls back what the batch has done so far: src/backend/access/transam/xact.c,
    /// `UserAbortTransactionBlock`. After an error the server skips it, and the Sync ends the batch.)
    pub(super) fn end_batch(&mut self, up: &mut Flow) {
        if self.replies.is_batch_open() {
            self.insert_query("ROLLBACK", Expect::Query, up);
            let mut sync = BytesMut::new();
            to_backend::sync(&mut sync);
            up.insert(&sync);
            self.replies.push(Expect::Sync, ReplyAction::Skip);
        }
    }

    /// Nothing the client began to send is half sent: the backend can be brought to rest.
    pub(super) fn can_be_settled(&self, up: &Flow) -> bool {
        self.requests.at_boundary() && !self.replies.is_copying_in() && !up.must_drain()
    }

    /// The backend owes replies.
    pub(super) fn owes_replies(&self) -> bool {
        self.replies.outstanding() > 0 || self.replies.is_batch_open()
    }
}

/// How the session's backend reads `'\'`, once the session's settings are there. Read wrongly, a text could hide what it
/// does.
fn has_plain_strings(settings: &Settings, conn: &BackendConnection) -> bool {
    let is_off = |value: &str| matches!(value, "off" | "of" | "false" | "f" | "no" | "n" | "0");
    let of_another = (conn.applied.as_ref()).is_some_and(|it| it.has(STANDARD_CONFORMING_STRINGS));
    match settings.value(STANDARD_CONFORMING_STRINGS) {
        Some(value) => !is_off(&value.to_ascii_lowercase()),
        // The server's default, which is on unless somebody has not changed it in twelve years.
        None if of_another => true,
        None => conn.parameters.get(STANDARD_CONFORMING_STRINGS) != Some("off"),
    }
}

const STANDARD_CONFORMING_STRINGS: &str = "standard_conforming_strings";
