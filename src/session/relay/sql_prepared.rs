//! Statements of SQL's PREPARE on their way to the backend: prepared there before a text that may use them, and taken away
//! before another session's first request. Names of the protocol's that a text speaks of by SQL are given the names
//! that the backend knows.

use super::causes::Text;
use super::names::Translated;
use super::scope::Around;
use super::{Relay, Sides};
use crate::backend::connection::BackendConnection;
use crate::session::memory::Memory;
use crate::session::pin::PinReason;
use crate::session::prepared::{Name, Note, Scope, Statement};
use crate::session::replies::{Expect, ReplyAction};
use crate::session::sql_statements::{
    SqlStatement, Uses, is_one_prepare, may_deallocate, may_show, names_used, quietly, quoted, uses,
};
use crate::session::statement::Effects;
use crate::wire::flow::Flow;
use crate::wire::frame::{HEADER_LEN, Header};
use crate::wire::from_backend::TxStatus;
use crate::wire::to_backend;
use bytes::BytesMut;
use std::ops::Range;
use std::sync::Arc;

impl Relay {
    /// At the start of a lease: what another session has prepared here goes, and what this one has meanwhile lost.
    pub(super) fn clear_sql_prepared(
        &mut self,
        memory: &Memory,
        conn: &mut BackendConnection,
        up: &mut Flow,
    ) {
        conn.sql_prepared.unsure = false;
        let is_own = |name: &str, id| memory.sql.find(name).is_some_and(|own| own.id == id);
        let gone = conn.sql_prepared.extract(|name, id| !is_own(name, id));
        if gone.is_empty() {
            return;
        }
        let sql: String = gone
            .iter()
            .map(|name| quietly(&format!("DEALLOCATE {}", quoted(name))) + ";")
            .collect();
        self.insert_query(&sql, Expect::Query, up);
    }

    /// A text is about to be sent: it begins the unread bytes.
    pub(super) fn before_sql_text(&mut self, header: Header, sides: &mut Sides<'_>) {
        let come = header.frame_len().min(sides.up.unread().len());
        let frame = &sides.up.unread()[..come];
        let shows = may_show(frame);
        let (uses, deallocates) = match text_of(frame) {
            _ if sides.memory.sql.is_empty() => (Uses::Nothing, false),
            Some(text) => (uses(&frame[text.clone()]), may_deallocate(&frame[text])),
            // One that has not come whole is not read.
            None => (Uses::Anything, true),
        };
        if uses == Uses::Nothing && !shows {
            return;
        }
        let alone = header.tag == b'Q' && !self.replies.is_batch_open();
        // What is used stays; what this takes away the server will tell.
        self.state.settings_touched |= deallocates;
        if shows {
            self.show_own(sides);
        }
        self.bring_sql_prepared(&uses, sides);
        self.sync_behind |= alone && self.replies.is_batch_open();
    }

    /// Prepares what the backend lacks of what is used. Whatever is executed may do what its text does.
    pub(super) fn bring_sql_prepared(&mut self, uses: &Uses, sides: &mut Sides<'_>) {
        let is_used = |name: &str| match uses {
            Uses::Nothing => false,
            Uses::Named(names) => names.iter().any(|used| **used == *name.as_bytes()),
            Uses::Anything => true,
        };
        let used: Vec<(String, Arc<SqlStatement>)> = (sides.memory.sql.iter())
            .filter(|(name, _)| is_used(name))
            .map(|(name, statement)| (name.clone(), statement.clone()))
            .collect();
        for (_, statement) in &used {
            self.note_text(statement.effects, Text::of_body(statement.text.as_bytes()));
            if statement.effects.contains(Effects::MAY_SET) {
                self.note_custom(Some(statement.text.as_bytes()), false);
            }
        }
        // Nothing is looked at but what ends the transaction, and nothing before the next Sync.
        if sides.conn.status == TxStatus::Failed || self.replies.is_skipping() {
            return;
        }
        let lacks = |(name, statement): &(String, Arc<SqlStatement>)| {
            statement.follows && sides.conn.sql_prepared.id(name) != Some(statement.id)
        };
        let lacking: Vec<_> = used.into_iter().filter(lacks).collect();
        for (name, statement) in lacking {
            // That one of them can't be prepared any more is an error only for who uses it.
            let sql = match uses {
                Uses::Anything => {
                    self.state.settings_touched = true;
                    sides.conn.sql_prepared.unsure = true;
                    quietly(&statement.text)
                }
                _ => statement.text.clone(),
            };
            self.bring_one(name, &statement, &sql, sides);
        }
    }

    fn bring_one(
        &mut self,
        name: String,
        statement: &SqlStatement,
        sql: &str,
        sides: &mut Sides<'_>,
    ) {
        if let Some(id) = sides.conn.sql_prepared.remove(&name) {
            let note = Note {
                sql_gone: Some((name.clone(), id)),
                ..Note::default()
            };
            let sql = format!("DEALLOCATE {}", quoted(&name));
            self.insert_own_between(None, &sql, note, sides.up);
        }
        sides.conn.sql_prepared.insert(name.clone(), statement.id);
        let note = Note {
            sql_prepared: Some(name),
            ..Note::default()
        };
        let now = Scope::of(&sides.memory.settings).reading;
        let was = statement.reading.as_ref();
        let around = was.and_then(|was| Around::reading(was, &now, sides.conn));
        self.insert_own_between(around, sql, note, sides.up);
    }

    /// A simple query has passed behind messages of ours that have no Sync: if one of them fails, the server looks at nothing
    /// before this Sync, and its ReadyForQuery is the query's.
    pub(super) fn sync_behind_query(&mut self, sides: &mut Sides<'_>) {
        if std::mem::take(&mut self.sync_behind) {
            self.hide_own(sides.conn, sides.up);
            let mut sync = BytesMut::new();
            to_backend::sync(&mut sync);
            sides.up.insert(&sync);
            self.replies.push(Expect::Sync, ReplyAction::Skip);
        }
    }

    /// What the server says is prepared by SQL on this backend.
    pub(super) fn learn_sql_prepared(
        &mut self,
        found: Vec<(String, String)>,
        sides: &mut Sides<'_>,
    ) {
        let (here, sql) = (&mut sides.conn.sql_prepared, &mut sides.memory.sql);
        let unsure = std::mem::take(&mut here.unsure);
        for name in here.extract(|name, _| !found.iter().any(|(other, _)| other == name)) {
            // What could not be prepared here is still the session's.
            if !unsure {
                sql.remove(&name);
            }
        }
        let may_have_prepared =
            self.state.explained || self.state.before_survey.contains(PinReason::SqlPrepare);
        let reading = (!self.state.unsure).then_some(&sides.memory.settings);
        for (name, text) in found {
            let known = here.id(&name).is_some_and(|id| {
                let known = sql.find(&name).filter(|known| known.id == id);
                known.is_some_and(|known| known.text == text)
            });
            if !known {
                self.state.leaked |= !may_have_prepared;
                let id = sides.memory.statements.next_id();
                sql.insert(id, &name, &text, reading);
                here.insert(name, id);
            }
        }
        let stays = |(name, statement): (&String, &Arc<SqlStatement>)| {
            !statement.follows && here.id(name) == Some(statement.id)
        };
        self.state.has_sql = !sql.is_empty();
        match sql.iter().any(stays) {
            true => self.state.pins.insert(PinReason::SqlPrepare),
            false => self.state.pins.remove(PinReason::SqlPrepare),
        }
    }

    /// SQL's EXECUTE or PREPARE of a name of the protocol's: the text is given the name that the backend knows. `None`: the
    /// text speaks of none.
    pub(super) fn rename_in_text(
        &mut self,
        header: Header,
        sides: &mut Sides<'_>,
    ) -> Option<Translated> {
        // Not again what has just been renamed.
        if self.renamed.is_some() || !matches!(header.tag, b'Q' | b'P') {
            return None;
        }
        if sides.memory.names.is_empty() {
            return None;
        }
        let frame = sides.up.unread().get(..header.frame_len())?;
        let text = text_of(frame)?;
        let names = &sides.memory.names;
        let used: Vec<(Range<usize>, Name, Arc<Statement>)> = names_used(&frame[text.clone()])
            .into_iter()
            .filter_map(|(at, name)| {
                let statement = names.find(&name)?.clone();
                Some((text.start + at.start..text.start + at.end, name, statement))
            })
            .collect();
        if used.is_empty() {
            return None;
        }
        if self.must_wait() {
            self.held = true;
            return Some(Translated::Incomplete);
        }
        let alone = header.tag == b'Q' && !self.replies.is_batch_open();
        let mut message = BytesMut::from(frame);
        for (at, name, statement) in used.into_iter().rev() {
            let Some(used) = self.bring(&name, statement.clone(), sides) else {
                self.sync_behind |= alone && self.replies.is_batch_open();
                return Some(Translated::Incomplete);
            };
            self.note_text(statement.effects, Text::of_body(&statement.body));
            let behind = message.split_off(at.end);
            message.truncate(at.start);
            message.extend_from_slice(used.known_as.name().as_bytes());
            message.unsplit(behind);
            self.renamed = Some(used);
        }
        let len = (message.len() - 1) as u32; // PARSE_LEN_MAX and some names
        message[1..HEADER_LEN].copy_from_slice(&len.to_be_bytes());
        sides.up.replace(header.frame_len(), &message);
        self.sync_behind |= alone && self.replies.is_batch_open();
        // It is looked at again, and speaks of no name of the protocol's then.
        Some(Translated::Whole)
    }
}

/// The frame's text is a PREPARE and nothing else.
pub(super) fn is_prepare_alone(effects: Effects, frame: &[u8]) -> bool {
    let text = || std::str::from_utf8(frame.get(text_of(frame)?)?).ok();
    effects.contains(Effects::SQL_PREPARE) && text().is_some_and(is_one_prepare)
}

/// The text has a backend's name for a statement in it.
pub(super) fn has_own_name(text: &[u8]) -> bool {
    names_used(text)
        .iter()
        .any(|(_, name)| name.starts_with(b"pgsluice_"))
}

/// Where the text of a Query or a Parse stands in its frame.
pub(super) fn text_of(frame: &[u8]) -> Option<Range<usize>> {
    let body = frame.get(HEADER_LEN..)?;
    let start = match frame[0] {
        b'P' => body.iter().position(|&byte| byte == 0)? + 1,
        _ => 0,
    };
    let len = body[start..].iter().position(|&byte| byte == 0)?;
    Some(HEADER_LEN + start..HEADER_LEN + start + len)
}
