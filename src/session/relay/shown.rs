//! `pg_prepared_statements` shows a session its own statements by its own names, and nobody else's.
//!
//! For as long as a text that names the view runs, the backend has the session's statements under its names, and none of
//! the shared ones: those are closed, and prepared again when they are next used. That is work, for a question that hardly
//! anybody asks.

use super::scope::Around;
use super::{Relay, Sides};
use crate::backend::connection::BackendConnection;
use crate::session::prepared::{Note, Scope, Statement, close_named, parse_named};
use crate::session::reading::has_literal;
use crate::session::replies::{Expect, ReplyAction};
use crate::session::sql_statements::{quietly, quoted};
use crate::wire::flow::Flow;
use crate::wire::from_backend::TxStatus;
use std::sync::Arc;

impl Relay {
    /// A text that names the view is about to run.
    pub(super) fn show_own(&mut self, sides: &mut Sides<'_>) {
        if sides.conn.status == TxStatus::Failed || self.replies.is_skipping() {
            return;
        }
        self.hide_own(sides.conn, sides.up);
        for (id, known_as) in sides.conn.prepared.take_all() {
            self.close_here(id, known_as, sides.up);
        }
        self.close_unused(sides);
        for (name, statement) in sides.memory.names.in_order() {
            let Ok(text) = std::str::from_utf8(&name) else {
                continue;
            };
            sides.conn.shown.push(text.to_owned());
            self.show(text, &statement, sides);
        }
    }

    fn show(&mut self, name: &str, statement: &Arc<Statement>, sides: &mut Sides<'_>) {
        let body = match statement.shape() {
            Some(shape) => shape.parse_body(&statement.body),
            None => statement.body.as_ref().into(),
        };
        let parse = parse_named(name.as_bytes(), &body);
        let note = Note {
            shown: Some(name.to_owned()),
            ..Note::default()
        };
        let now = Scope::of(&sides.memory.settings).reading;
        let reading = has_literal(&statement.body).then_some(&statement.scope.reading);
        let around = reading.and_then(|was| Around::reading(was, &now, sides.conn));
        let push = |relay: &mut Self| relay.send_noted(Expect::Parse, ReplyAction::Skip, note);
        self.insert_between(around, &parse, sides.up, push);
    }

    /// The text has run, or is about to end with its batch.
    pub(super) fn hide_own(&mut self, conn: &mut BackendConnection, up: &mut Flow) {
        // What stands behind an error is not carried out: they are there still.
        if self.replies.is_skipping() {
            return;
        }
        for name in std::mem::take(&mut conn.shown) {
            up.insert(&close_named(name.as_bytes()));
            let note = Note {
                hidden: Some(name),
                ..Note::default()
            };
            self.send_noted(Expect::Close, ReplyAction::Skip, note);
        }
    }

    /// At the start of a lease: another session's are still there, as its batch failed.
    pub(super) fn clear_shown(&mut self, conn: &mut BackendConnection, up: &mut Flow) {
        let names = std::mem::take(&mut conn.shown);
        if !names.is_empty() {
            let all = names
                .iter()
                .map(|name| quietly(&format!("DEALLOCATE {}", quoted(name))) + ";");
            self.insert_query(&all.collect::<String>(), Expect::Query, up);
        }
    }
}
