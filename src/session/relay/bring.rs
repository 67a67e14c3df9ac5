//! Brings statements to the backend: prepared there when they are first used, closed when there are too many, and the same
//! there as they were when their client prepared them.
//!
//! The server deduces the types of a text's parameters and columns from its tables, and these change. So a client's own
//! Parse is always carried out, and described to us: what turns out to be the same as another client's statement is shared.
//! Elsewhere a statement is prepared with the types that it has, and described: its client waits for that answer, as it
//! may not get rows of another shape than it knows. Then it gets the error that PostgreSQL has for this.

use super::names::NOBODY;
use super::scope::Around;
use super::{Relay, Sides};
use crate::backend::connection::BackendConnection;
use crate::backend::prepared::StatementId;
use crate::session::prepared::{
    Name, Note, Statement, Used, close_message, describe_message, parse_message,
};
use crate::session::reading::has_literal;
use crate::session::replies::{Expect, ReplyAction};
use crate::session::shape::Shape;
use crate::wire::flow::Flow;
use crate::wire::to_backend;
use bytes::BytesMut;
use std::collections::HashMap;
use std::sync::Arc;

/// A statement that the backend describes.
#[derive(Debug, Default)]
pub(super) struct Shaping {
    /// What has come of the answer.
    shape: Shape,
    /// A client waits for it.
    waiting: bool,
    /// What came of it, for the message at the front: the statement is what it was, or is not.
    told: HashMap<StatementId, bool>,
}

impl Relay {
    /// The backend's name for a statement that it has, whatever becomes of what is in flight.
    pub(super) fn here(
        &mut self,
        id: StatementId,
        conn: &mut BackendConnection,
    ) -> Option<StatementId> {
        let known_as = conn.prepared.touch(id)?;
        (!self.is_doubtful()).then_some(known_as)
    }

    /// Prepares a statement on the backend if it is not there, and makes sure that it is still what its client knows;
    /// `None` while the server is asked.
    pub(super) fn bring(
        &mut self,
        name: &Name,
        statement: Arc<Statement>,
        sides: &mut Sides<'_>,
    ) -> Option<Used> {
        let used = |known_as| Used::plain(name.clone(), statement.clone(), known_as);
        // What stands behind an error is not looked at.
        if self.replies.is_skipping() {
            return Some(used(NOBODY));
        }
        if self.shaping.waiting {
            return None;
        }
        match self.shaping.told.get(&statement.id) {
            Some(true) => {
                let known_as = sides.conn.prepared.touch(statement.id);
                return Some(used(known_as.unwrap_or(NOBODY)));
            }
            Some(false) => {
                let is_stale = true;
                return Some(Used {
                    is_stale,
                    ..used(NOBODY)
                });
            }
            None => {}
        }
        if let Some(known_as) = self.here(statement.id, sides.conn) {
            return Some(used(known_as));
        }
        let now = self.scope_now(Some(&statement), sides)?;
        self.close_unused(sides);
        self.evict(statement.id, sides.conn, sides.up);
        self.make_room(statement.id, sides.conn, sides.up);
        let body = match statement.shape() {
            Some(shape) => shape.parse_body(&statement.body),
            None => BytesMut::from(&statement.body[..]),
        };
        let parse = parse_message(statement.id, &body);
        let note = Note {
            prepared: Some(statement.id),
            used: Some(used(statement.id)),
            ..Note::default()
        };
        let push = |relay: &mut Self| relay.send_noted(Expect::Parse, ReplyAction::Skip, note);
        let reading = has_literal(&statement.body).then_some(&statement.scope.reading);
        let around = reading.and_then(|was| Around::reading(was, &now.reading, sides.conn));
        self.insert_between(around, &parse, sides.up, push);
        if statement.shape().is_none() {
            return Some(used(statement.id));
        }
        self.describe(statement.clone(), None, sides.up);
        let mut flush = BytesMut::new();
        to_backend::flush(&mut flush);
        sides.up.insert(&flush);
        self.shaping.waiting = true;
        None
    }

    /// The server has been asked something for the message at the front.
    pub(super) fn has_asked(&self) -> bool {
        self.shaping.waiting || !self.shaping.told.is_empty() || self.meaning.has_asked()
    }

    /// Asks what the server has made of a statement that is on its way.
    pub(super) fn describe(
        &mut self,
        statement: Arc<Statement>,
        name: Option<Name>,
        up: &mut Flow,
    ) {
        up.insert(&describe_message(statement.id));
        let note = Note {
            described: Some((statement, name)),
            ..Note::default()
        };
        self.send_noted(Expect::Shape, ReplyAction::Skip, note);
    }

    /// A part of the answer; `body` is `None` where it is too long to be read.
    pub(super) fn shape_came(&mut self, tag: u8, body: Option<&[u8]>, sides: &mut Sides<'_>) {
        match (tag, body) {
            (b't', Some(body)) => return self.shaping.shape = Shape::with_parameters(body),
            (b't', None) => return,
            (b'T', Some(body)) => self.shaping.shape.set_columns(body),
            _ => {}
        }
        let shape = std::mem::take(&mut self.shaping.shape);
        let described = self
            .replies
            .front_note()
            .and_then(|note| note.described.clone());
        match described {
            Some((statement, Some(name))) => {
                let known = sides.memory.statements.share(&statement, shape);
                if Arc::ptr_eq(&known, &statement) {
                    return;
                }
                sides.conn.prepared.adopt(known.id, statement.id);
                let names = &mut sides.memory.names;
                if (names.find(&name)).is_some_and(|it| Arc::ptr_eq(it, &statement)) {
                    names.insert(name, known);
                }
            }
            Some((statement, None)) => {
                self.shaping.waiting = false;
                let is_same = statement.shape() == Some(&shape);
                self.shaping.told.insert(statement.id, is_same);
                if is_same {
                    return;
                }
                if let Some(known_as) = sides.conn.prepared.remove(statement.id) {
                    sides.conn.prepared.add_unused(known_as);
                }
            }
            None => {}
        }
    }

    /// An error has come: the question was refused, or was never looked at, unless it is in flight still.
    pub(super) fn stop_shaping(&mut self) {
        let concerns = |note: &Note| matches!(note.described, Some((_, None)));
        self.shaping.waiting &= self.replies.notes().any(concerns);
    }

    /// The message for which the server was asked is on its way.
    pub(super) fn forget_told(&mut self) {
        self.shaping.told.clear();
    }

    pub(super) fn make_room(
        &mut self,
        id: StatementId,
        conn: &mut BackendConnection,
        up: &mut Flow,
    ) {
        if let Some((least_used, known_as)) = conn.prepared.insert(id) {
            self.close_here(least_used, known_as, up);
        }
    }

    /// Takes a statement off the backend, if it is there.
    pub(super) fn evict(&mut self, id: StatementId, conn: &mut BackendConnection, up: &mut Flow) {
        if let Some(known_as) = conn.prepared.remove(id) {
            self.close_here(id, known_as, up);
        }
    }

    pub(super) fn close_here(&mut self, id: StatementId, known_as: StatementId, up: &mut Flow) {
        up.insert(&close_message(known_as));
        let note = Note {
            evicted: Some((id, known_as)),
            ..Note::default()
        };
        self.send_noted(Expect::Close, ReplyAction::Skip, note);
    }

    /// Closes what turned out to be there twice.
    pub(super) fn close_unused(&mut self, sides: &mut Sides<'_>) {
        for known_as in sides.conn.prepared.take_unused() {
            sides.up.insert(&close_message(known_as));
            let note = Note {
                closed: Some(known_as),
                ..Note::default()
            };
            self.send_noted(Expect::Close, ReplyAction::Skip, note);
        }
    }
}
