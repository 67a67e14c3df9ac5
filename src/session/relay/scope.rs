//! The settings under which a statement was first prepared, given back to it for as long as it is prepared on another
//! backend: the server reads a text's literals once, under the settings of that moment.
//!
//! ```text
//!   set_config(…, true) as it was · Parse · set_config(…, true) as it is      in the same write, answers swallowed
//! ```
//! Where the transaction has changed settings, what they are now is known to the server alone: it is asked first, which
//! costs a round trip, and only for a statement that the backend lacks.

use super::{Relay, Sides};
use crate::backend::connection::BackendConnection;
use crate::backend::settings::{Settings, literal, set_config_locally};
use crate::session::pin::PinReason;
use crate::session::prepared::{Note, Scope, Statement};
use crate::session::replies::{Expect, ReplyAction};
use crate::session::survey::Survey;
use crate::wire::flow::Flow;
use crate::wire::from_backend::TxStatus;
use crate::wire::to_backend;
use bytes::BytesMut;
use std::collections::BTreeSet;

/// Parameters that decide what a text means, on every server; those that the session or the statement has are asked for,
/// too. (They are what input functions and the parser read.)
const MEANING: [&str; 15] = [
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "default_text_search_config",
    "intervalstyle",
    "lc_monetary",
    "role",
    "search_path",
    "standard_conforming_strings",
    "timezone",
    "timezone_abbreviations",
    "transform_null_equals",
    "xmlbinary",
    "xmloption",
];

/// Name of the statements and portals of the proxy's own small queries; closed in the same write.
const OWN: &str = "pgsluice_own";

/// What is known of the settings that texts are read under.
#[derive(Debug, Default)]
pub(super) struct Meaning {
    /// The transaction may have changed some.
    touched: bool,
    asked: Asked,
}

#[derive(Debug, Default)]
enum Asked {
    #[default]
    No,
    Waiting(Survey),
    Known(Settings),
}

impl Meaning {
    /// The server has been asked, whether it has answered or not.
    pub(super) fn has_asked(&self) -> bool {
        !matches!(self.asked, Asked::No)
    }
}

impl Relay {
    /// Settings that decide meanings may have been changed, for this transaction or for longer.
    pub(super) fn touch_meaning(&mut self) {
        self.meaning.touched = true;
    }

    /// What is set is what the proxy knows, or learns now; true if it was not known.
    pub(super) fn settle_meaning(&mut self) -> bool {
        std::mem::take(&mut self.meaning).touched
    }

    /// What is set now is known to the server alone.
    pub(super) fn is_meaning_touched(&self) -> bool {
        self.meaning.touched || self.state.pins.contains(PinReason::Settings)
    }

    /// The settings that a text is read under now; `None` while the server is being asked for them.
    pub(super) fn scope_now(
        &mut self,
        statement: Option<&Statement>,
        sides: &mut Sides<'_>,
    ) -> Option<Scope> {
        // What stands behind an error is not looked at, and a failed transaction answers no question.
        let fails = self.replies.is_skipping() || sides.conn.status == TxStatus::Failed;
        if !self.is_meaning_touched() || fails {
            return Some(Scope::of(&sides.memory.settings));
        }
        if self.transaction_may_fail(sides) {
            self.held = true;
            return None;
        }
        match std::mem::take(&mut self.meaning.asked) {
            Asked::Known(settings) => return Some(Scope::of(&settings)),
            Asked::Waiting(survey) => self.meaning.asked = Asked::Waiting(survey),
            Asked::No => self.ask_settings(statement, sides),
        }
        None
    }

    fn ask_settings(&mut self, statement: Option<&Statement>, sides: &mut Sides<'_>) {
        let here = Scope::of(&sides.memory.settings);
        let names = here
            .names()
            .chain(statement.into_iter().flat_map(|it| it.scope.names()));
        let names: BTreeSet<&str> = names.chain(MEANING).collect();
        let names: Vec<String> = names.into_iter().map(literal).collect();
        let sql = format!(
            "SELECT 's', name, pg_catalog.encode(pg_catalog.convert_to(pg_catalog.current_setting(name, true), \
             pg_catalog.getdatabaseencoding()), 'hex') FROM pg_catalog.unnest(ARRAY[{}]) AS name \
             WHERE pg_catalog.current_setting(name, true) IS NOT NULL",
            names.join(",")
        );
        self.insert_own(&sql, Expect::Ask, None, sides.up);
        let mut flush = BytesMut::new();
        to_backend::flush(&mut flush);
        sides.up.insert(&flush);
        self.meaning.asked = Asked::Waiting(Survey::default());
    }

    /// A row of the answer.
    pub(super) fn asked_row(&mut self, body: Option<&[u8]>) {
        if let Asked::Waiting(survey) = &mut self.meaning.asked {
            match body {
                Some(body) => survey.row(body),
                None => survey.fail(),
            }
        }
    }

    /// The answer is complete.
    pub(super) fn finish_asking(&mut self, conn: &BackendConnection) {
        let survey = match std::mem::take(&mut self.meaning.asked) {
            Asked::Waiting(survey) => survey,
            other => return self.meaning.asked = other,
        };
        // Unreadable: then nothing is shared under it, and nothing is given back.
        let found = survey.finish(conn.login_role());
        self.meaning.asked = Asked::Known(found.map_or_else(Settings::empty, |it| it.settings));
    }

    /// The question was refused, or was never looked at.
    pub(super) fn stop_asking(&mut self) {
        if !self.replies.has_asked() {
            self.meaning.asked = Asked::No;
        }
    }

    /// Puts a Parse between two small queries of the proxy's own, where there are any.
    pub(super) fn insert_between(
        &mut self,
        around: Option<Around>,
        parse: &[u8],
        up: &mut Flow,
        push: impl FnOnce(&mut Relay),
    ) {
        let Some(Around { before, after }) = around else {
            up.insert(parse);
            return push(self);
        };
        self.insert_own(&before, Expect::Execute, None, up);
        up.insert(parse);
        push(self);
        self.insert_own(&after, Expect::Execute, None, up);
    }

    /// A statement of the proxy's own, carried out between two others where there are any.
    pub(super) fn insert_own_between(
        &mut self,
        around: Option<Around>,
        sql: &str,
        note: Note,
        up: &mut Flow,
    ) {
        let (before, after) = around.map_or((None, None), |it| (Some(it.before), Some(it.after)));
        let statements = [
            (before, None),
            (Some(sql.to_owned()), Some(Box::new(note))),
            (after, None),
        ];
        for (sql, note) in statements {
            if let Some(sql) = sql {
                self.insert_own(&sql, Expect::Execute, note, up);
            }
        }
    }

    /// A small query of the proxy's own among the client's extended-protocol messages.
    pub(super) fn insert_own(
        &mut self,
        sql: &str,
        execute: Expect,
        note: Option<Box<Note>>,
        up: &mut Flow,
    ) {
        let mut messages = BytesMut::new();
        to_backend::own_statement(&mut messages, OWN, sql.as_bytes());
        up.insert(&messages);
        for expect in [Expect::Close, Expect::Parse, Expect::Bind] {
            self.replies.push(expect, ReplyAction::Skip);
        }
        self.replies.push_noted(execute, ReplyAction::Skip, note);
        for expect in [Expect::Close, Expect::Close] {
            self.replies.push(expect, ReplyAction::Skip);
        }
    }
}

/// What goes before and behind a Parse.
#[derive(Debug)]
pub(super) struct Around {
    before: String,
    after: String,
}

impl Around {
    /// What makes literals be read as they were, and then as they are `now`; `None` where that is the same.
    pub(super) fn reading(
        was: &Settings,
        now: &Settings,
        conn: &BackendConnection,
    ) -> Option<Self> {
        let names: BTreeSet<&str> = was.iter().chain(now.iter()).map(|(name, _)| name).collect();
        let differs = names
            .into_iter()
            .filter(|name| was.value(name) != now.value(name));
        let calls = differs.map(|name| {
            let default = conn.default_value(name);
            let call = |value: Option<&str>| set_config_locally(name, value.or(default));
            (call(was.value(name)), call(now.value(name)))
        });
        let (to, back): (Vec<_>, Vec<_>) = calls.unzip();
        (!to.is_empty()).then(|| Self {
            before: format!("SELECT {}", to.join(",")),
            after: format!("SELECT {}", back.join(",")),
        })
    }
}
