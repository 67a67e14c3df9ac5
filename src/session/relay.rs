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

use super::pin::{PinReason, PinReasons};
use super::replies::{Expect, PendingReplies, ReplyAction, UnexpectedReply};
use super::requests::{CLOSE_UNNAMED, Need, Next, RequestReader, Told, Unnamed, Violation, look};
use super::statement::Effects;
use crate::backend::connection::{BackendConnection, Parameters};
use crate::backend::settings::Settings;
use crate::tls::Stream;
use crate::wire::flow::Flow;
use crate::wire::frame::{BadLength, Header};
use crate::wire::from_backend::{ServerError, TxStatus, command_tag, parameter_status};
use crate::wire::to_backend;
use bytes::BytesMut;
use std::io;
use std::task::{Context, Poll};

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
    pub(super) unnamed: &'a mut Unnamed,
}

/// How a session uses its backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hold {
    Transaction,
    Statement,
    Session,
}

/// One lease's worth of relaying.
#[derive(Debug)]
pub(super) struct Relay {
    hold: Hold,
    down: Flow,
    replies: PendingReplies,
    requests: RequestReader,
    passing: Option<Passing>,
    pins: PinReasons,
    told_pins: PinReasons,
    parameters: Parameters,
    /// The backend's unnamed statement is this session's.
    unnamed_here: bool,
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
    /// Begins on a fresh lease; `settings` are what the session wants the backend to have.
    pub(super) fn start(
        hold: Hold,
        settings: &Settings,
        conn: &mut BackendConnection,
        up: &mut Flow,
    ) -> (Self, bool) {
        let mut relay = Self {
            hold,
            down: Flow::with_unread(std::mem::take(&mut conn.buf)),
            replies: PendingReplies::default(),
            requests: RequestReader::default(),
            passing: None,
            pins: PinReasons::default(),
            told_pins: PinReasons::default(),
            parameters: conn.parameters.clone(),
            unnamed_here: false,
            quit: false,
            last_was_error: false,
            queries: 0,
        };
        let replayed = relay.replay(settings, conn, up);
        (relay, replayed)
    }

    /// Puts the session's settings before its first request, in the same write.
    fn replay(&mut self, settings: &Settings, conn: &mut BackendConnection, up: &mut Flow) -> bool {
        let Some(sql) = settings.replay_sql(conn.applied.as_ref()) else {
            return false;
        };
        self.insert_query(&sql, Expect::Query, up);
        conn.applied = Some(settings.clone());
        true
    }

    fn insert_query(&mut self, sql: &str, expect: Expect, up: &mut Flow) {
        let mut message = BytesMut::new();
        to_backend::query(&mut message, sql.as_bytes());
        up.insert(&message);
        self.replies.push(expect, ReplyAction::Skip);
    }

    /// Reasons to keep the backend that have come up since the last call.
    pub(super) fn new_pins(&mut self) -> impl Iterator<Item = PinReason> + use<> {
        let (new, told) = (self.pins, self.told_pins);
        self.told_pins = self.pins;
        new.iter().filter(move |reason| !told.contains(*reason))
    }

    /// Reasons to keep the backend.
    pub(super) fn pins(&self) -> PinReasons {
        self.pins
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

    /// The client got an error last, and nothing after it.
    pub(super) fn last_was_error(&self) -> bool {
        self.last_was_error
    }

    /// Does all that can be done without waiting; ready when the relay has ended. Cancel-safe: all state is in `self`
    /// and `sides`.
    pub(super) fn poll(&mut self, sides: &mut Sides<'_>, cx: &mut Context<'_>) -> Poll<RelayEnd> {
        loop {
            let up = self.pump_up(sides, cx);
            let down = match up {
                Ok(moved) => self.pump_down(sides, cx).map(|also| moved || also),
                Err(end) => Err(end),
            };
            match down {
                Err(end) => return Poll::Ready(end),
                Ok(_) if self.quit && !sides.up.must_drain() => {
                    return Poll::Ready(RelayEnd::ClientQuit);
                }
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
            }
        }
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
        conn.buf = self.down.into_unread();
        unsent
    }

    fn pump_up(&mut self, sides: &mut Sides<'_>, cx: &mut Context<'_>) -> Scan<bool> {
        self.scan_up(sides)?;
        let mut moved = false;
        if sides.up.must_drain() {
            match sides.up.poll_drain(&mut sides.conn.stream, cx) {
                Poll::Ready(Ok(())) => moved = true,
                // The server has closed its end. Its last words may be there to read: the read finds the end.
                Poll::Ready(Err(_)) => {
                    if let Some(end) = self.read_last_words(sides, cx)? {
                        return Err(end);
                    }
                }
                Poll::Pending => {}
            }
        }
        let wants_more = !self.quit && !self.replies.is_full();
        if wants_more && sides.up.has_room() {
            match sides.up.poll_fill(sides.client, cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(RelayEnd::ClientGone),
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    /// A write failed: everything the server still said goes to the client.
    fn read_last_words(
        &mut self,
        sides: &mut Sides<'_>,
        cx: &mut Context<'_>,
    ) -> Scan<Option<RelayEnd>> {
        while self.down.has_room() {
            match self.down.poll_fill(&mut sides.conn.stream, cx) {
                Poll::Ready(Ok(count)) if count > 0 => self.scan_down(sides)?,
                Poll::Ready(_) | Poll::Pending => return Ok(Some(RelayEnd::BackendGone)),
            }
        }
        Ok(Some(RelayEnd::BackendGone))
    }

    /// Examines what the client has sent.
    fn scan_up(&mut self, sides: &mut Sides<'_>) -> Scan<()> {
        while !self.quit && !sides.up.unread().is_empty() && !self.replies.is_full() {
            let first = self.requests.at_boundary();
            if first {
                match look(sides.up.unread()).map_err(RelayEnd::ClientFault)? {
                    Next::Incomplete => break,
                    Next::Quit => {
                        self.quit = true;
                        break;
                    }
                    Next::Frame {
                        header,
                        expect,
                        need,
                    } => {
                        self.begin_request(header, expect, need, sides);
                    }
                }
            }
            let unread = sides.up.unread();
            let count = unread.len().min(self.requests.remaining());
            let told = self.requests.read(&unread[..count], first, sides.unnamed);
            if let Some(told) = told {
                self.on_told(told);
            }
            sides.up.pass(count);
        }
        Ok(())
    }

    fn begin_request(
        &mut self,
        header: Header,
        expect: Option<Expect>,
        need: Need,
        sides: &mut Sides<'_>,
    ) {
        if need == Need::UnnamedStatement && !self.unnamed_here {
            self.bring_unnamed(sides);
        }
        // A Parse without a name, or a simple query, makes the backend's unnamed statement this session's.
        self.unnamed_here |= header.tag == b'Q' || is_unnamed_parse(header, sides.up.unread());
        if self.pins.contains(PinReason::UnnamedStatement) && self.replaces_unnamed(header, sides) {
            self.pins.remove(PinReason::UnnamedStatement);
        }
        self.queries += u32::from(matches!(header.tag, b'Q' | b'E' | b'F'));
        self.requests.begin(header, sides.unnamed);
        if let Some(expect) = expect {
            self.replies.push(expect, ReplyAction::Forward);
        }
    }

    fn replaces_unnamed(&self, header: Header, sides: &Sides<'_>) -> bool {
        header.tag == b'Q' || is_unnamed_parse(header, sides.up.unread())
    }

    /// The unnamed statement was prepared on another backend, or never: prepare it here, or make sure that nobody
    /// else's is used.
    fn bring_unnamed(&mut self, sides: &mut Sides<'_>) {
        self.unnamed_here = true;
        if let Unnamed::Kept(parse) = sides.unnamed {
            sides.up.insert(parse);
            self.replies.push(Expect::Parse, ReplyAction::Skip);
        } else {
            sides.up.insert(CLOSE_UNNAMED);
            self.replies.push(Expect::Close, ReplyAction::Skip);
        }
    }

    fn on_told(&mut self, told: Told) {
        let effects = match told {
            Told::Text(effects) => effects,
            Told::Named(effects) => {
                self.pins.insert(PinReason::NamedStatement);
                effects
            }
        };
        self.pins.insert_effects(effects);
    }

    fn pump_down(&mut self, sides: &mut Sides<'_>, cx: &mut Context<'_>) -> Scan<bool> {
        let mut moved = false;
        if self.down.has_room() {
            match self.down.poll_fill(&mut sides.conn.stream, cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(RelayEnd::BackendGone),
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Pending => {}
            }
        }
        if !self.down.unread().is_empty() {
            self.scan_down(sides)?;
        }
        if self.down.must_drain() {
            match self.down.poll_drain(sides.client, cx) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(_)) => return Err(RelayEnd::ClientGone),
                Poll::Pending => {}
            }
        }
        self.at_ready(sides)?;
        Ok(moved)
    }

    /// Decides what follows when nothing is owed any more.
    fn at_ready(&mut self, sides: &mut Sides<'_>) -> Scan<()> {
        if self.replies.needs_fence() && self.requests.at_boundary() {
            self.insert_query("", Expect::Fence, sides.up);
            return Ok(());
        }
        if !self.is_at_rest(sides.up) {
            return Ok(());
        }
        if self.hold == Hold::Statement && sides.conn.status != TxStatus::Idle {
            return Err(RelayEnd::TransactionInStatementMode);
        }
        if sides.conn.status != TxStatus::Idle {
            return Ok(());
        }
        self.note_state_left(sides);
        if self.pins.is_empty() {
            Err(RelayEnd::Released)
        } else {
            Ok(())
        }
    }

    /// The server's own words about what is left, beside what the text told.
    fn note_state_left(&mut self, sides: &mut Sides<'_>) {
        if self.hold == Hold::Session {
            self.pins.insert(PinReason::SessionMode);
        }
        if sides.conn.parameters != self.parameters {
            self.pins.insert(PinReason::Settings);
        }
        if matches!(sides.unnamed, Unnamed::TooLong) && self.unnamed_here {
            self.pins.insert(PinReason::UnnamedStatement);
        }
    }

    /// Matches what the server has sent with what was asked.
    fn scan_down(&mut self, sides: &mut Sides<'_>) -> Scan<()> {
        loop {
            if let Some(passing) = &mut self.passing {
                let count = self.down.unread().len().min(passing.remaining);
                match passing.action {
                    ReplyAction::Forward => self.down.pass(count),
                    ReplyAction::Skip => self.down.remove(count),
                }
                passing.remaining -= count;
                if passing.remaining > 0 {
                    return Ok(());
                }
                self.passing = None;
            }
            let header = match Header::parse(self.down.unread()) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(()),
                Err(bad) => return Err(RelayEnd::BackendFault(bad.into())),
            };
            let Some(action) = self.match_reply(header, sides)? else {
                return Ok(());
            };
            self.passing = Some(Passing {
                remaining: header.frame_len(),
                action,
            });
        }
    }

    /// What to do with the reply at the front; `None` until it is there whole, where it must be read.
    fn match_reply(&mut self, header: Header, sides: &mut Sides<'_>) -> Scan<Option<ReplyAction>> {
        let fault = |error: UnexpectedReply| RelayEnd::BackendFault(error.into());
        let action = match header.tag {
            b'Z' | b'S' => return self.read_whole(header, sides),
            b'C' if header.body_len <= READ_WHOLE_MAX => return self.read_whole(header, sides),
            b'E' if self.replies.is_replaying() => return self.read_whole(header, sides),
            b'N' | b'A' if self.replies.is_replaying() => ReplyAction::Skip,
            b'N' | b'A' => ReplyAction::Forward,
            b'E' => {
                self.last_was_error = true;
                // Nothing asked: the server's last words before it closes the connection.
                self.replies.on_reply(b'E').unwrap_or(ReplyAction::Forward)
            }
            b'I' => {
                let action = self.replies.on_reply(b'I').map_err(fault)?;
                self.replies.on_empty_query();
                action
            }
            tag => self.replies.on_reply(tag).map_err(fault)?,
        };
        Ok(Some(action))
    }

    /// Reads a short reply that matters to the proxy.
    fn read_whole(&mut self, header: Header, sides: &mut Sides<'_>) -> Scan<Option<ReplyAction>> {
        if header.body_len > READ_WHOLE_MAX {
            return Err(RelayEnd::BackendFault(BackendFault::Malformed(header.tag)));
        }
        let unread = self.down.unread();
        if unread.len() < header.frame_len() {
            return Ok(None);
        }
        let body = &unread[crate::wire::frame::HEADER_LEN..header.frame_len()];
        let malformed = || RelayEnd::BackendFault(BackendFault::Malformed(header.tag));
        let fault = |error: UnexpectedReply| RelayEnd::BackendFault(error.into());
        match header.tag {
            b'Z' => {
                let status = body.first().and_then(|&byte| TxStatus::from_byte(byte));
                sides.conn.status = status.ok_or_else(malformed)?;
                self.last_was_error = false;
                self.replies.on_ready().map(Some).map_err(fault)
            }
            b'S' => {
                let (name, value) = parameter_status(body).ok_or_else(malformed)?;
                sides.conn.parameters.set(name, value);
                if self.replies.is_replaying() {
                    // Set by the proxy: this is what the session starts from.
                    self.parameters.set(name, value);
                    return Ok(Some(ReplyAction::Skip));
                }
                Ok(Some(ReplyAction::Forward))
            }
            b'E' => Err(RelayEnd::SettingsRefused(ServerError::parse(body))),
            _ => {
                let all_gone = command_tag(body) == Some("DISCARD ALL");
                let action = self.replies.on_reply(header.tag).map_err(fault)?;
                if all_gone && self.replies.outstanding() <= 1 {
                    self.forget_state(sides);
                }
                Ok(Some(action))
            }
        }
    }

    /// DISCARD ALL has left nothing behind, not even what the client asked for at login: that is set again with the
    /// next lease.
    fn forget_state(&mut self, sides: &mut Sides<'_>) {
        self.pins = PinReasons::default();
        self.told_pins = PinReasons::default();
        self.parameters = sides.conn.parameters.clone();
        sides.conn.applied = Some(Settings::empty());
    }

    /// Reads and drops everything the backend still owes, for a client that has left. Cancel-safe.
    pub(super) fn poll_drain_replies(
        &mut self,
        sides: &mut Sides<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), RelayEnd>> {
        let mut unsent = BytesMut::new();
        loop {
            self.scan_down(sides)?;
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

    /// The client left in the middle of a batch: ends it with the Sync it owes.
    pub(super) fn end_batch(&mut self, up: &mut Flow) {
        if self.replies.is_batch_open() {
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

fn is_unnamed_parse(header: Header, frame: &[u8]) -> bool {
    header.tag == b'P' && frame.get(crate::wire::frame::HEADER_LEN) == Some(&0)
}

/// What a request's text says about statement mode: true if it opens a transaction block.
pub(super) fn opens_transaction(frame: &[u8]) -> bool {
    let Ok(Some(header)) = Header::parse(frame) else {
        return false;
    };
    if frame.len() < header.frame_len() || !matches!(header.tag, b'Q' | b'P') {
        return false;
    }
    let (mut reader, mut unnamed) = (RequestReader::default(), Unnamed::default());
    reader.begin(header, &mut unnamed);
    match reader.read(&frame[..header.frame_len()], true, &mut unnamed) {
        Some(Told::Text(effects) | Told::Named(effects)) => effects.contains(Effects::TRANSACTION),
        None => false,
    }
}
