//! Names of prepared statements on their way to the backend: a client's name becomes the shared statement's, and the
//! statement is prepared there first if it is not.
//!
//! Where the backend keeps a statement that the client closes, it is sent a Close of a statement that nobody has instead:
//! that is answered in the same place, and skipped after an error as the client's own message would have been.

use super::causes::Text;
use super::{Relay, RelayEnd, Scan, Sides};
use crate::backend::prepared::StatementId;
use crate::session::pin::PinReason;
use crate::session::prepared::{
    EMPTY, Name, Named, Note, PARSE_LEN_MAX, Statement, Used, close_message, effects_of, named,
    parse_message, renamed_front,
};
use crate::session::reading::names_a_moment;
use crate::session::relay::Hold;
use crate::session::replies::{Expect, ReplyAction};
use crate::session::requests::{Unnamed, Violation};
use crate::session::sql_statements::Uses;
use crate::session::statement::Effects;
use crate::wire::frame::{HEADER_LEN, Header};
use std::sync::Arc;

/// No statement has it.
pub(super) const NOBODY: StatementId = StatementId(0);

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Translated {
    /// Nothing: it goes as it came.
    Untouched,
    /// It must come whole first.
    Incomplete,
    /// It is on its way, all of it.
    Whole,
    /// Its front is on its way; this many bytes of it follow as they come.
    Front(usize),
}

impl Relay {
    /// Translates the frame at the front of what has come, if it names a statement that is shared.
    pub(super) fn translate(
        &mut self,
        header: Header,
        expect: Option<Expect>,
        sides: &mut Sides<'_>,
    ) -> Scan<Translated> {
        if !matches!(header.tag, b'P' | b'B' | b'D' | b'C' | b'Q')
            || self.hold == Hold::Session
            || !sides.conn.prepared.is_enabled()
        {
            return Ok(Translated::Untouched);
        }
        if header.tag != b'Q' {
            self.close_unused(sides);
        }
        if let Some(translated) = self.deallocate(header, sides) {
            return Ok(translated);
        }
        if let Some(translated) = self.rename_in_text(header, sides) {
            return Ok(translated);
        }
        let too_long = header.tag == b'P' && header.frame_len() > PARSE_LEN_MAX;
        Ok(match named(header, sides.up.unread()) {
            Named::No => Translated::Untouched,
            _ if too_long => Translated::Untouched,
            Named::Endless => {
                return Err(RelayEnd::ClientFault(Violation::BadName(header.tag)));
            }
            Named::Incomplete => Translated::Incomplete,
            _ if self.must_wait() => {
                self.held = true;
                Translated::Incomplete
            }
            // The server knows a name that SQL has given, once it is there.
            Named::Parse { name, .. } | Named::Use { name, .. }
                if std::str::from_utf8(name)
                    .is_ok_and(|name| sides.memory.sql.find(name).is_some()) =>
            {
                self.state.settings_touched |= header.tag == b'C';
                let uses = Uses::Named(vec![Name::from(name)]);
                self.bring_sql_prepared(&uses, sides);
                Translated::Untouched
            }
            // Shared statements are read as most clients' are.
            Named::Parse { name, .. }
                if !self.plain_strings && sides.memory.names.find(name).is_none() =>
            {
                Translated::Untouched
            }
            Named::Parse { name, body } => {
                let (name, body) = (Name::from(name), body.to_vec());
                self.parse(header, name, &body, sides)
            }
            Named::Use { before, name } => {
                let Some(statement) = sides.memory.names.find(name).cloned() else {
                    // Not prepared by the protocol: by SQL, or not at all. The server knows.
                    return Ok(Translated::Untouched);
                };
                let (before, name) = (before.to_vec(), Name::from(name));
                if header.tag == b'C' {
                    return Ok(self.close(header, name, statement, sides));
                }
                let Some(used) = self.fetch(header, &name, statement, sides) else {
                    return Ok(Translated::Incomplete);
                };
                let expect = expect.unwrap_or(Expect::Describe);
                self.use_statement(header, expect, &before, used, sides)
            }
        })
    }

    /// A statement is about to be used.
    fn fetch(
        &mut self,
        header: Header,
        name: &Name,
        statement: Arc<Statement>,
        sides: &mut Sides<'_>,
    ) -> Option<Used> {
        // Once, and not again when the server has answered what it was asked meanwhile.
        if !self.has_asked() {
            self.before_statement(statement.effects, sides);
            if header.tag == b'B' && statement.effects.contains(Effects::STATEMENTS_SHOWN) {
                self.show_own(sides);
            }
        }
        self.bring(name, statement, sides)
    }

    /// A batch before this one is in flight that changes names or statements, or may: whether it does is known when it is
    /// answered. What ends it has been sent, so it will be.
    pub(super) fn must_wait(&mut self) -> bool {
        let changes = |note: &Note| {
            note.named.is_some()
                || note.unnamed.is_some()
                || note.prepared.is_some()
                || note.evicted.is_some()
                || note.described.is_some()
        };
        self.replies.has_earlier(changes)
            || (self.replies.has_earlier_batch() && self.is_doubtful())
    }

    fn parse(
        &mut self,
        header: Header,
        name: Name,
        body: &[u8],
        sides: &mut Sides<'_>,
    ) -> Translated {
        if let Some(existing) = sides.memory.names.find(&name).cloned() {
            return self.refuse_name(header, name, existing, sides);
        }
        // One that means what it meant at this moment, or what another name means, can't be prepared elsewhere. While the
        // backend has names of the client's own, the server alone knows which are in use.
        let can_move = |body| !names_a_moment(body) && !executes(body);
        let has_own = self.state.pins.contains(PinReason::NamedStatement);
        if sides.memory.names.is_full() || !can_move(body) || has_own {
            return Translated::Untouched;
        }
        let Some(scope) = self.scope_now(None, sides) else {
            return Translated::Incomplete;
        };
        sides.up.remove(header.frame_len());
        let statement = sides.memory.statements.fresh(body, scope);
        sides.memory.names.insert(name.clone(), statement.clone());
        self.make_room(statement.id, sides.conn, sides.up);
        let note = Note {
            named: Some(name.clone()),
            prepared: Some(statement.id),
            used: Some(Used::plain(name.clone(), statement.clone(), statement.id)),
            ..Note::default()
        };
        sides
            .up
            .insert(&parse_message(statement.id, &statement.body));
        self.send_noted(Expect::Parse, ReplyAction::Forward, note);
        self.describe(statement, Some(name), sides.up);
        Translated::Whole
    }

    /// A name in use is refused by the server in its own words, so that the batch and the transaction fail as they would:
    /// the client's text goes under a name that the backend has, as what is wrong with the text is said first.
    fn refuse_name(
        &mut self,
        header: Header,
        name: Name,
        existing: Arc<Statement>,
        sides: &mut Sides<'_>,
    ) -> Translated {
        self.renamed = None;
        let known_as = match self.here(existing.id, sides.conn) {
            Some(known_as) => known_as,
            None => {
                let known_as = StatementId(sides.memory.statements.next_id());
                // Anything of that name will do, and an empty text is never refused.
                sides.up.insert(&parse_message(known_as, EMPTY));
                self.replies.push(Expect::Parse, ReplyAction::Skip);
                sides.conn.prepared.add_unused(known_as);
                known_as
            }
        };
        let came = HEADER_LEN + name.len() + 1;
        let front = renamed_front(header, b"", &name, known_as);
        sides.up.remove(came);
        sides.up.insert(&front);
        let note = Note {
            used: Some(Used::plain(name, existing, known_as)),
            ..Note::default()
        };
        self.send_noted(Expect::Parse, ReplyAction::Forward, note);
        Translated::Front(header.frame_len() - came)
    }

    /// Close: the backend keeps the statement, for others.
    fn close(
        &mut self,
        header: Header,
        name: Name,
        statement: Arc<Statement>,
        sides: &mut Sides<'_>,
    ) -> Translated {
        sides.memory.names.take(&name);
        sides.up.remove(header.frame_len());
        sides.up.insert(&close_message(NOBODY));
        let note = Note {
            unnamed: Some((name, statement)),
            ..Note::default()
        };
        self.send_noted(Expect::Close, ReplyAction::Forward, note);
        Translated::Whole
    }

    /// Bind, Describe of a statement that is on its way.
    fn use_statement(
        &mut self,
        header: Header,
        expect: Expect,
        before: &[u8],
        used: Used,
        sides: &mut Sides<'_>,
    ) -> Translated {
        self.forget_told();
        let statement = &used.statement;
        let text = Text::of_body(&statement.body);
        self.note_text(statement.effects, text);
        self.resets.note(statement.effects, Some(&statement.body));
        self.note_sequences(statement.effects, text, &mut sides.memory.reads_sequences);
        if statement.effects.contains(Effects::MAY_SET) {
            let bind = sides.up.unread().get(..header.frame_len());
            self.note_custom(bind, false);
            self.note_custom(
                Some(&statement.body),
                statement.effects.contains(Effects::OPAQUE),
            );
        }
        let came = HEADER_LEN + before.len() + used.name.len() + 1;
        let front = renamed_front(header, before, &used.name, used.known_as);
        sides.up.remove(came);
        sides.up.insert(&front);
        let note = Note {
            used: Some(used),
            ..Note::default()
        };
        self.send_noted(expect, ReplyAction::Forward, note);
        Translated::Front(header.frame_len() - came)
    }

    pub(super) fn send_noted(&mut self, expect: Expect, action: ReplyAction, note: Note) {
        self.replies
            .push_noted(expect, action, Some(Box::new(note)));
    }

    /// What messages were to change that the server has not carried out.
    pub(super) fn undo_changes(&mut self, sides: &mut Sides<'_>) {
        for note in self.replies.take_undone() {
            if let Some(id) = note.prepared {
                sides.conn.prepared.remove(id);
            }
            if let Some((id, known_as)) = note.evicted {
                sides.conn.prepared.restore(id, known_as);
            }
            if let Some(known_as) = note.closed {
                sides.conn.prepared.add_unused(known_as);
            }
            if let Some(name) = note.shown {
                sides.conn.shown.retain(|other| *other != name);
            }
            sides.conn.shown.extend(note.hidden);
            if let Some(name) = note.sql_prepared {
                sides.conn.sql_prepared.remove(&name);
            }
            if let Some((name, id)) = note.sql_gone {
                sides.conn.sql_prepared.insert(name, id);
            }
            if let Some(name) = note.named {
                sides.memory.names.take(&name);
            }
            if let Some((name, statement)) = note.unnamed {
                sides.memory.names.insert(name, statement);
            }
            if let Some(before) = note.replaced_unnamed {
                // A Parse that fails leaves no unnamed statement; one that is skipped leaves the one before.
                let (left, here) = match note.failed {
                    true => (Unnamed::None, false),
                    false => (before, note.unnamed_was_here),
                };
                match self.replies.next_replacing_unnamed() {
                    // Another has taken its place since.
                    Some(next) => {
                        next.replaced_unnamed = Some(left);
                        next.unnamed_was_here = here;
                    }
                    None => {
                        sides.memory.unnamed = left;
                        self.unnamed_here = here;
                    }
                }
            }
        }
    }
}

/// The text has an EXECUTE in it.
fn executes(body: &[u8]) -> bool {
    effects_of(body).contains(Effects::SQL_EXECUTE)
}
