//! Towards the backend: what the client has sent is examined and passed on.

use super::causes::{Text, beginning_of};
use super::names::Translated;
use super::scope::Around;
use super::sql_prepared::{has_own_name, is_prepare_alone, text_of};
use super::{Relay, RelayEnd, Scan, Sides};
use crate::backend::settings::Settings;
use crate::session::memory::Memory;
use crate::session::pin::{PinReason, PinReasons};
use crate::session::prepared::{Note, PARSE_LEN_MAX, Scope, Used};
use crate::session::reading::{has_literal, names_a_moment};
use crate::session::replies::{Expect, ReplyAction};
use crate::session::requests::{
    CLOSE_UNNAMED, Kept, Need, Next, RequestReader, Told, Unnamed, look,
};
use crate::session::sql_statements::uses;
use crate::session::statement::{Effects, StatementReader};
use crate::wire::frame::{HEADER_LEN, Header};
use std::task::{Context, Poll};

impl Relay {
    pub(super) fn pump_up(&mut self, sides: &mut Sides<'_>, cx: &mut Context<'_>) -> Scan<bool> {
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
        if self.holds_client(sides) {
            self.parked = true;
            return Ok(());
        }
        while !self.quit && !sides.up.unread().is_empty() && !self.replies.is_full() {
            let first = self.requests.at_boundary();
            if first {
                if self.replies.has_undone() {
                    self.undo_changes(sides);
                }
                match look(sides.up.unread()).map_err(RelayEnd::ClientFault)? {
                    Next::Incomplete => break,
                    Next::Quit => {
                        self.quit = true;
                        if self.replies.is_copying_in() {
                            // The server's to answer: it is no way to end a COPY.
                            let rest = sides.up.unread().len();
                            sides.up.pass(rest);
                        }
                        break;
                    }
                    Next::Frame {
                        need: Need::UnnamedStatement,
                        ..
                    } if self
                        .replies
                        .is_uncertain(|note| note.replaced_unnamed.is_some()) =>
                    {
                        self.held = true;
                        break;
                    }
                    Next::Frame { header, .. }
                        if self.must_hold(header, sides)
                            || self.bring_channels(header, sides)? =>
                    {
                        break;
                    }
                    Next::Frame {
                        need: Need::UnnamedStatement,
                        ..
                    } if self.awaits_reading(sides) => break,
                    Next::Frame {
                        header,
                        expect,
                        need,
                    } => match self.translate(header, expect, sides)? {
                        Translated::Untouched => self.begin_request(header, expect, need, sides),
                        Translated::Incomplete => break,
                        Translated::Whole => continue,
                        Translated::Front(left) => {
                            self.requests.begin_rest(left);
                            continue;
                        }
                    },
                }
            }
            let count = self.read_request(first, sides);
            sides.up.pass(count);
            if self.requests.at_boundary() {
                self.restore_behind_query(sides);
                self.sync_behind_query(sides);
            }
        }
        Ok(())
    }

    /// Reads what has come of the request in progress; how much that is.
    fn read_request(&mut self, first: bool, sides: &mut Sides<'_>) -> usize {
        let unread = sides.up.unread();
        let count = unread.len().min(self.requests.remaining());
        self.causes.collect(&unread[..count]);
        let told = self
            .requests
            .read(&unread[..count], first, &mut sides.memory.unnamed);
        if let Some(told) = told {
            let whole = first.then_some(&unread[..count]);
            if let (Unnamed::Kept(_), Some(frame)) = (&sides.memory.unnamed, whole) {
                let settings = &sides.memory.settings;
                let kept = std::mem::take(&mut sides.memory.unnamed);
                sides.memory.unnamed = self.in_its_reading(kept, frame, settings);
            }
            self.on_told(told, whole, sides.memory);
        }
        count
    }

    /// A message waits for the rest of itself, where its text or its arguments are to be read whole; and for the answer
    /// to a query of ours, which may decide what it would mean. Only the first request of a lease goes with the replay
    /// that it needs; if that is refused, the transaction that it stands in refuses the request, too, unless it ends it.
    fn must_hold(&mut self, header: Header, sides: &Sides<'_>) -> bool {
        let unread = sides.up.unread();
        let read_whole = matches!(header.tag, b'Q' | b'P' | b'B' | b'F');
        if read_whole && header.frame_len() <= PARSE_LEN_MAX && unread.len() < header.frame_len() {
            return true;
        }
        let first = !self.first_sent && !may_end_transaction(header, unread);
        let held = self.replies.is_replaying() && !first;
        self.held |= held;
        held
    }

    fn begin_request(
        &mut self,
        header: Header,
        expect: Option<Expect>,
        need: Need,
        sides: &mut Sides<'_>,
    ) {
        self.forget_told();
        let shows = |unnamed: &Unnamed| match unnamed {
            Unnamed::Kept(kept) => kept.effects.contains(Effects::STATEMENTS_SHOWN),
            Unnamed::None | Unnamed::TooLong => false,
        };
        if header.tag == b'B' && need == Need::UnnamedStatement && shows(&sides.memory.unnamed) {
            self.show_own(sides);
        }
        if need == Need::UnnamedStatement && !self.unnamed_here {
            self.bring_unnamed(sides);
        }
        if matches!(header.tag, b'Q' | b'P') {
            self.before_text(header.frame_len(), sides.up);
            self.before_sql_text(header, sides);
        }
        if header.tag == b'S' {
            self.restore_before_sync(sides);
            self.hide_own(sides.conn, sides.up);
        }
        let note = self.note_unnamed(header, sides);
        let note = match self.renamed.take() {
            Some(used) => Some(note_used(note, used)),
            None => note,
        };
        if header.tag == b'F' {
            self.note_function(sides.up.unread());
        }
        self.queries += u32::from(matches!(header.tag, b'Q' | b'E' | b'F'));
        self.first_sent |= matches!(header.tag, b'Q' | b'S' | b'F');
        self.causes.begin(header);
        let reader = StatementReader::new(self.plain_strings);
        self.requests
            .begin(header, reader, &mut sides.memory.unnamed);
        if let Some(expect) = expect {
            self.replies.push_noted(expect, ReplyAction::Forward, note);
        }
    }

    /// A Parse without a name, or a simple query, makes the backend's unnamed statement this session's; so does a Close of
    /// it, which leaves none. The note undoes
    /// that if the server does not get to it.
    fn note_unnamed(&mut self, header: Header, sides: &mut Sides<'_>) -> Option<Box<Note>> {
        let parse = is_unnamed_parse(header, sides.up.unread())
            || is_unnamed_close(header, sides.up.unread());
        if header.tag == b'B'
            && let Unnamed::Kept(kept) = &sides.memory.unnamed
            && (kept.effects)
                .contains(Effects::MAY_SET | Effects::DISCARD | Effects::SQL_DEALLOCATE)
        {
            self.resets.note(kept.effects, Some(&kept.parse));
            // The name may be an argument. A Bind of another statement costs a question in vain.
            self.note_text(kept.effects, Text::of_frame(&kept.parse));
            self.note_custom(sides.up.unread().get(..header.frame_len()), false);
        }
        if !parse && header.tag != b'Q' {
            return None;
        }
        let before = std::mem::take(&mut sides.memory.unnamed);
        // With nothing before it a simple query can't be skipped, and it drops the unnamed statement even if it fails.
        let certain = !parse && self.replies.is_settled();
        let was_here = std::mem::replace(&mut self.unnamed_here, true);
        self.state.pins.remove(PinReason::UnnamedStatement);
        match certain {
            true => None,
            false => note_replaced(before, was_here),
        }
    }

    /// The function call protocol names functions by number: the large objects' own are known, any other may do anything.
    fn note_function(&mut self, frame: &[u8]) {
        let oid = frame[HEADER_LEN..]
            .first_chunk()
            .copied()
            .map(u32::from_be_bytes);
        // Without a number the server calls none.
        if let Some(oid) = oid.filter(|oid| !is_large_object_function(*oid)) {
            self.pin_by_call(oid);
        }
    }

    /// The unnamed statement that `frame` prepares, with what its literals are read under. Where the proxy can't know that, or
    /// where they name the moment, no other backend can have it: there it is an error.
    fn in_its_reading(&self, unnamed: Unnamed, frame: &[u8], settings: &Settings) -> Unnamed {
        // What stands before the text may look like a quote.
        let text = frame.get(HEADER_LEN + 1..).unwrap_or_default();
        match unnamed {
            // The name that the text has got of ours is this backend's alone.
            Unnamed::Kept(kept)
                if kept.effects.contains(Effects::SQL_EXECUTE) && has_own_name(text) =>
            {
                Unnamed::None
            }
            Unnamed::Kept(kept) if frame.get(HEADER_LEN) == Some(&0) && has_literal(text) => {
                if self.is_meaning_touched() || names_a_moment(text) {
                    return Unnamed::None;
                }
                let reading = Some(Scope::of(settings).reading);
                Unnamed::Kept(Kept { reading, ..kept })
            }
            as_it_is => as_it_is,
        }
    }

    /// The unnamed statement has to be prepared here, and the server is being asked how it reads literals now.
    fn awaits_reading(&mut self, sides: &mut Sides<'_>) -> bool {
        let has_reading =
            matches!(&sides.memory.unnamed, Unnamed::Kept(kept) if kept.reading.is_some());
        if self.unnamed_here || !has_reading {
            return false;
        }
        let scope = self.scope_now(None, sides);
        self.reading_now = scope.map(|scope| scope.reading);
        self.reading_now.is_none()
    }

    /// The unnamed statement was prepared on another backend, or never: prepare it here, or make sure that nobody
    /// else's is used.
    fn bring_unnamed(&mut self, sides: &mut Sides<'_>) {
        self.unnamed_here = true;
        let before = std::mem::take(&mut sides.memory.unnamed);
        let kept = match before {
            Unnamed::Kept(kept) => kept,
            Unnamed::None | Unnamed::TooLong => {
                sides.up.insert(CLOSE_UNNAMED);
                let note = note_replaced(Unnamed::None, false);
                return self
                    .replies
                    .push_noted(Expect::Close, ReplyAction::Skip, note);
            }
        };
        if kept.effects.contains(Effects::SQL_EXECUTE) && !sides.memory.sql.is_empty() {
            let uses = uses(text_of(&kept.parse).map_or(&[], |text| &kept.parse[text]));
            self.bring_sql_prepared(&uses, sides);
        }
        let now = self.reading_now.take();
        let now = now.unwrap_or_else(|| Scope::of(&sides.memory.settings).reading);
        let note = note_replaced(Unnamed::Kept(kept.clone()), false);
        let push = |relay: &mut Self| {
            let action = ReplyAction::Skip;
            relay.replies.push_noted(Expect::Parse, action, note);
        };
        let reading = kept.reading.as_ref();
        let around = reading.and_then(|was| Around::reading(was, &now, sides.conn));
        self.insert_between(around, &kept.parse, sides.up, push);
        self.note_text(kept.effects, Text::of_frame(&kept.parse));
        if kept.effects.contains(Effects::MAY_SET) {
            let is_opaque = kept.effects.contains(Effects::OPAQUE);
            self.note_custom(Some(&kept.parse), is_opaque);
        }
        sides.memory.unnamed = Unnamed::Kept(kept);
    }

    /// A text has passed; `whole` is its message, if that passed in one piece.
    fn on_told(&mut self, told: Told, whole: Option<&[u8]>, memory: &mut Memory) {
        let beginning = self.causes.take_beginning();
        let text = match &beginning {
            Some(beginning) => beginning_of(beginning),
            None => whole.map_or(beginning_of(&[]), Text::of_frame),
        };
        let effects = match told {
            Told::Text(effects) => effects,
            Told::Named(effects) => {
                self.pin_by(PinReason::NamedStatement, text);
                effects
            }
        };
        if let (Told::Text(_), Unnamed::TooLong) = (told, &memory.unnamed) {
            // It will pin if it is still there at the end of its batch.
            self.blame(PinReasons::of(PinReason::UnnamedStatement), text);
        }
        // What is only prepared does nothing yet.
        let effects = match whole {
            Some(frame) if is_prepare_alone(effects, frame) => Effects::SQL_PREPARE,
            _ => effects,
        };
        self.note_text(effects, text);
        self.resets.note(effects, whole);
        self.note_sequences(effects, text, &mut memory.reads_sequences);
        if effects.contains(Effects::MAY_SET) {
            self.note_custom(whole, effects.contains(Effects::OPAQUE));
        }
    }
}

/// The note of a message that speaks of a statement by its name.
fn note_used(note: Option<Box<Note>>, used: Used) -> Box<Note> {
    let mut note = note.unwrap_or_default();
    note.used = Some(used);
    note
}

/// Another unnamed statement takes the place of `before`, which the backend had or had not.
fn note_replaced(before: Unnamed, was_here: bool) -> Option<Box<Note>> {
    Some(Box::new(Note {
        replaced_unnamed: Some(before),
        unnamed_was_here: was_here,
        ..Note::default()
    }))
}

/// COMMIT, ROLLBACK and their kin, or what can't be told from its first word.
fn may_end_transaction(header: Header, frame: &[u8]) -> bool {
    let text = match (header.tag, frame.get(HEADER_LEN..)) {
        (b'Q', Some(text)) => text,
        (b'P', Some(body)) => body.splitn(2, |&byte| byte == 0).nth(1).unwrap_or_default(),
        _ => return false,
    };
    let text = text.trim_ascii_start();
    let letters = text.iter().take_while(|byte| byte.is_ascii_alphabetic());
    let word = &text[..letters.count()];
    word.is_empty()
        || [&b"commit"[..], b"end", b"rollback", b"abort"]
            .iter()
            .any(|end| word.eq_ignore_ascii_case(end))
}

/// The functions of libpq's large object interface (src/include/catalog/pg_proc.dat), which leave nothing behind.
fn is_large_object_function(oid: u32) -> bool {
    matches!(oid, 715 | 764 | 765 | 952..=958 | 964 | 1004 | 3170..=3172 | 3457..=3460)
}

/// A message after which there is another unnamed statement, or none.
pub(in crate::session) fn replaces_unnamed(header: Header, frame: &[u8]) -> bool {
    header.tag == b'Q' || is_unnamed_parse(header, frame) || is_unnamed_close(header, frame)
}

fn is_unnamed_parse(header: Header, frame: &[u8]) -> bool {
    header.tag == b'P' && frame.get(HEADER_LEN) == Some(&0)
}

fn is_unnamed_close(header: Header, frame: &[u8]) -> bool {
    header.tag == b'C' && frame.get(HEADER_LEN..HEADER_LEN + 2) == Some(b"S\0")
}

/// What a request's text says about statement mode: true if it opens a transaction block.
pub(in crate::session) fn opens_transaction(frame: &[u8]) -> bool {
    effects_of(frame, true).is_some_and(|effects| effects.contains(Effects::TRANSACTION))
}

/// What the text of a Query or Parse says that it leaves behind, if all of it is there.
pub(super) fn effects_of(frame: &[u8], plain_strings: bool) -> Option<Effects> {
    let header = Header::parse(frame).ok().flatten()?;
    if frame.len() < header.frame_len() || !matches!(header.tag, b'Q' | b'P') {
        return None;
    }
    let (mut reader, mut unnamed) = (RequestReader::default(), Unnamed::default());
    reader.begin(header, StatementReader::new(plain_strings), &mut unnamed);
    let told = reader.read(&frame[..header.frame_len()], true, &mut unnamed)?;
    let (Told::Text(effects) | Told::Named(effects)) = told;
    Some(effects)
}
