//! Names of prepared statements on their way to the backend: a client's name becomes the shared statement's, and the
//! statement is prepared there first if it is not.
//!
//! Where the backend has a statement that the client prepares, or keeps one that the client closes, it is sent a Close of
//! a statement that nobody has instead: that is answered in the same place, with a message of the same shape, and it is
//! skipped after an error as the client's own message would have been.

use super::causes::Text;
use super::scope::Around;
use super::{Relay, RelayEnd, Scan, Sides};
use crate::backend::connection::BackendConnection;
use crate::backend::prepared::StatementId;
use crate::session::deallocate::{begins_deallocate, deallocate_message, deallocated};
use crate::session::prepared::{
    Name, Named, Note, PARSE_LEN_MAX, Scope, Statement, close_message, effects_of, named,
    parse_message, renamed_front,
};
use crate::session::reading::{has_literal, names_a_moment};
use crate::session::relay::Hold;
use crate::session::replies::{Expect, ReplyAction};
use crate::session::requests::{Unnamed, Violation};
use crate::session::statement::Effects;
use crate::wire::flow::Flow;
use crate::wire::frame::{HEADER_LEN, Header};
use crate::wire::from_backend::TxStatus;
use std::sync::Arc;

/// The tag of ParseComplete, which has the shape of CloseComplete.
const PARSE_COMPLETE: u8 = b'1';

/// No statement has it.
const NOBODY: StatementId = StatementId(0);

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
        if let Some(translated) = self.deallocate(header, sides) {
            return Ok(translated);
        }
        if let Some(translated) = self.rename_in_text(header, sides) {
            return Ok(translated);
        }
        let too_long = header.tag == b'P' && header.frame_len() > PARSE_LEN_MAX;
        let names = &sides.memory.names;
        Ok(match named(header, sides.up.unread()) {
            Named::No => Translated::Untouched,
            _ if too_long => Translated::Untouched,
            // Shared statements are read as most clients' are.
            Named::Parse { name, .. } if !self.plain_strings && names.find(name).is_none() => {
                Translated::Untouched
            }
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
                self.bring_sql_prepared(sides);
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
                self.before_statement(statement.effects, sides);
                let Some(brought) = self.bring(&name, statement, sides) else {
                    return Ok(Translated::Incomplete);
                };
                let expect = expect.unwrap_or(Expect::Describe);
                self.use_statement(header, expect, &before, (name, brought), sides)
            }
        })
    }

    /// A batch before this one is in flight that changes names or statements, or may: whether it does is known when it is
    /// answered. What ends it has been sent, so it will be.
    pub(super) fn must_wait(&mut self) -> bool {
        let changes = |note: &Note| {
            note.named.is_some()
                || note.unnamed.is_some()
                || note.prepared.is_some()
                || note.evicted.is_some()
        };
        let ended = self.replies.outstanding() > 0 && !self.replies.is_batch_open();
        self.replies.has_earlier(changes) || (ended && self.is_doubtful())
    }

    /// The backend has the statement, whatever becomes of what is in flight.
    fn is_here(&mut self, id: StatementId, conn: &mut BackendConnection) -> bool {
        conn.prepared.touch(id) && !self.is_doubtful()
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
        // One that means what it meant at this moment, or what another name means, can't be prepared elsewhere.
        let can_move = |body| !names_a_moment(body) && !executes(body);
        if sides.memory.names.is_full() || !can_move(body) {
            return Translated::Untouched;
        }
        let Some(scope) = self.scope_now(None, sides) else {
            return Translated::Incomplete;
        };
        sides.up.remove(header.frame_len());
        let statement = sides.memory.statements.intern(body, &scope);
        sides.memory.names.insert(name.clone(), statement.clone());
        let mut note = Note {
            named: Some(name.clone()),
            used: Some((name, statement.clone())),
            ..Note::default()
        };
        let here = self.is_here(statement.id, sides.conn);
        if here && sides.conn.status != TxStatus::Failed {
            sides.up.insert(&close_message(NOBODY));
            let action = ReplyAction::Retag(PARSE_COMPLETE);
            self.send_noted(Expect::Close, action, note);
            return Translated::Whole;
        }
        if sides.conn.prepared.has(statement.id) {
            // A failed transaction refuses most statements when they are prepared: the server shall say which.
            self.evict(statement.id, sides.conn, sides.up);
        }
        self.make_room(statement.id, sides.conn, sides.up);
        sides
            .up
            .insert(&parse_message(statement.id, &statement.body));
        note.prepared = Some(statement.id);
        self.send_noted(Expect::Parse, ReplyAction::Forward, note);
        Translated::Whole
    }

    /// A name in use is refused by the server in its own words, so that the batch and the transaction fail as they would:
    /// the client's text goes under the name that the backend has, as what is wrong with the text is said first.
    fn refuse_name(
        &mut self,
        header: Header,
        name: Name,
        existing: Arc<Statement>,
        sides: &mut Sides<'_>,
    ) -> Translated {
        let Some(existing) = self.bring(&name, existing, sides) else {
            return Translated::Incomplete;
        };
        let came = HEADER_LEN + name.len() + 1;
        let front = renamed_front(header, b"", &name, existing.id);
        sides.up.remove(came);
        sides.up.insert(&front);
        let note = Note {
            used: Some((name, existing)),
            ..Note::default()
        };
        self.send_noted(Expect::Parse, ReplyAction::Forward, note);
        Translated::Front(header.frame_len() - came)
    }

    /// SQL's DEALLOCATE of a name of the protocol's, as some drivers send it: it is carried out on the name that the
    /// backend knows.
    fn deallocate(&mut self, header: Header, sides: &mut Sides<'_>) -> Option<Translated> {
        let front_len = match (header.tag, sides.up.unread().get(HEADER_LEN)) {
            (b'Q', _) => HEADER_LEN,
            (b'P', Some(0)) => HEADER_LEN + 1,
            _ => return None,
        };
        if sides.memory.names.is_empty() || header.frame_len() > PARSE_LEN_MAX {
            return None;
        }
        let text = sides.up.unread().get(front_len..)?;
        if !begins_deallocate(text) {
            return None;
        }
        let Some(text) = sides.up.unread().get(front_len..header.frame_len()) else {
            return Some(Translated::Incomplete);
        };
        let name = deallocated(text.split(|&byte| byte == 0).next().unwrap_or_default())?;
        if self.must_wait() {
            self.held = true;
            return Some(Translated::Incomplete);
        }
        let statement = sides.memory.names.remove(&name)?;
        let id = statement.id;
        if !self.is_here(id, sides.conn) {
            if sides.conn.prepared.has(id) {
                self.evict(id, sides.conn, sides.up);
            }
            // Anything of that name will do, and an empty text is never refused: a query behind a Parse that fails is
            // skipped.
            sides.up.insert(&parse_message(id, b"\0\0\0"));
            self.replies.push(Expect::Parse, ReplyAction::Skip);
        }
        sides.conn.prepared.remove(id);
        let before = std::mem::take(&mut sides.memory.unnamed);
        self.unnamed_here = true;
        sides.up.remove(header.frame_len());
        sides.up.insert(&deallocate_message(header.tag, id));
        let note = Note {
            evicted: Some(id),
            unnamed: Some((name, statement)),
            replaced_unnamed: Some(before),
            ..Note::default()
        };
        let expect = match header.tag {
            b'Q' => Expect::Query,
            _ => Expect::Parse,
        };
        self.send_noted(expect, ReplyAction::Forward, note);
        Some(Translated::Whole)
    }

    /// Close: the backend keeps the statement, for others.
    fn close(
        &mut self,
        header: Header,
        name: Name,
        statement: Arc<Statement>,
        sides: &mut Sides<'_>,
    ) -> Translated {
        sides.memory.names.remove(&name);
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
        (name, statement): (Name, Arc<Statement>),
        sides: &mut Sides<'_>,
    ) -> Translated {
        let text = Text::of_body(&statement.body);
        self.note_text(statement.effects, text);
        self.note_sequences(statement.effects, text, &mut sides.memory.reads_sequences);
        if statement.effects.contains(Effects::MAY_SET) {
            let bind = sides.up.unread().get(..header.frame_len());
            self.note_custom(bind, false);
            self.note_custom(
                Some(&statement.body),
                statement.effects.contains(Effects::OPAQUE),
            );
        }
        let came = HEADER_LEN + before.len() + name.len() + 1;
        let front = renamed_front(header, before, &name, statement.id);
        sides.up.remove(came);
        sides.up.insert(&front);
        let note = Note {
            used: Some((name, statement)),
            ..Note::default()
        };
        self.send_noted(expect, ReplyAction::Forward, note);
        Translated::Front(header.frame_len() - came)
    }

    /// Prepares a statement on the backend if it is not there; what it is known as from then on, or `None` while the server
    /// is asked what its text would mean now.
    pub(super) fn bring(
        &mut self,
        name: &Name,
        statement: Arc<Statement>,
        sides: &mut Sides<'_>,
    ) -> Option<Arc<Statement>> {
        if self.is_here(statement.id, sides.conn) {
            return Some(statement);
        }
        let now = self.scope_now(Some(&statement), sides)?;
        let statement = in_place(name, statement, &now, sides);
        if self.is_here(statement.id, sides.conn) {
            return Some(statement);
        }
        if sides.conn.prepared.has(statement.id) {
            self.evict(statement.id, sides.conn, sides.up);
        }
        self.make_room(statement.id, sides.conn, sides.up);
        let parse = parse_message(statement.id, &statement.body);
        let note = Note {
            prepared: Some(statement.id),
            used: Some((name.clone(), statement.clone())),
            ..Note::default()
        };
        let push = |relay: &mut Self| relay.send_noted(Expect::Parse, ReplyAction::Skip, note);
        let reading = has_literal(&statement.body).then_some(&statement.scope.reading);
        let around = reading.and_then(|was| Around::reading(was, &now.reading, sides.conn));
        self.insert_between(around, &parse, sides.up, push);
        Some(statement)
    }

    fn make_room(&mut self, id: StatementId, conn: &mut BackendConnection, up: &mut Flow) {
        if let Some(least_used) = conn.prepared.insert(id) {
            self.evict(least_used, conn, up);
        }
    }

    fn evict(&mut self, id: StatementId, conn: &mut BackendConnection, up: &mut Flow) {
        conn.prepared.remove(id);
        up.insert(&close_message(id));
        let note = Note {
            evicted: Some(id),
            ..Note::default()
        };
        self.send_noted(Expect::Close, ReplyAction::Skip, note);
    }

    fn send_noted(&mut self, expect: Expect, action: ReplyAction, note: Note) {
        self.replies
            .push_noted(expect, action, Some(Box::new(note)));
    }

    /// What messages were to change that the server has not carried out.
    pub(super) fn undo_changes(&mut self, sides: &mut Sides<'_>) {
        for note in self.replies.take_undone() {
            if let Some(id) = note.prepared {
                sides.conn.prepared.remove(id);
            }
            if let Some(id) = note.evicted {
                sides.conn.prepared.restore(id);
            }
            if let Some(name) = note.sql_prepared {
                sides.conn.sql_prepared.remove(&name);
            }
            if let Some((name, id)) = note.sql_gone {
                sides.conn.sql_prepared.insert(name, id);
            }
            if let Some(name) = note.named {
                sides.memory.names.remove(&name);
            }
            if let Some((name, statement)) = note.unnamed {
                sides.memory.names.insert(name, statement);
            }
            if let Some(before) = note.replaced_unnamed {
                // A Parse that fails leaves no unnamed statement; one that is skipped leaves the one before.
                let left = if note.failed { Unnamed::None } else { before };
                match self.replies.next_replacing_unnamed() {
                    // Another has taken its place since.
                    Some(next) => *next = left,
                    None => {
                        sides.memory.unnamed = left;
                        self.unnamed_here = false;
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

/// What is to be prepared anew where its names mean something else is another statement from then on: the first decides the
/// shape of the rows.
fn in_place(
    name: &Name,
    statement: Arc<Statement>,
    now: &Scope,
    sides: &mut Sides<'_>,
) -> Arc<Statement> {
    if statement.scope.place == now.place || sides.conn.prepared.has(statement.id) {
        return statement;
    }
    let scope = Scope {
        place: now.place.clone(),
        reading: statement.scope.reading.clone(),
    };
    let anew = sides.memory.statements.intern(&statement.body, &scope);
    sides.memory.names.insert(name.clone(), anew.clone());
    anew
}
