//! RESET, SET … TO DEFAULT and DISCARD ALL go back to what the session asked for at login. To its backend, which others
//! share, that is no default: a query of ours behind the client's, in the same write and the same transaction, sets again
//! what has been reset.
//!
//! ```text
//!   client ── Query RESET ──► Query RESET, Query set_config(…) ── backend
//!   client ◄── its answer, ParameterStatus of what differs in the end, ReadyForQuery ── backend
//! ```
//! A batch gets it before its Sync. What comes between the RESET and the end of its message, or batch, still sees the
//! backend's default. In a transaction block it is a query like any other: SET TRANSACTION ISOLATION LEVEL can't follow.

use super::{Relay, Sides};
use crate::backend::connection::Parameters;
use crate::backend::settings::{Settings, literal};
use crate::session::custom::{dotted_names, has_word};
use crate::session::replies::Expect;
use crate::session::statement::Effects;
use crate::wire::encode;
use bytes::BytesMut;

/// What has been reset since the last restore.
#[derive(Debug, Default)]
pub(super) struct Resets {
    pending: bool,
    /// Parameters of one's own, whose values do not tell that they were reset: all of them, or these.
    all_custom: bool,
    /// A COPY may follow in the same text, and wait for the client's data: nothing of ours may come before them.
    copies: bool,
    custom: Vec<String>,
    /// What the client knew before.
    told: Option<Parameters>,
}

impl Resets {
    /// A text that may reset something runs, or will in this batch. `text`: all of it, or not known.
    pub(super) fn note(&mut self, effects: Effects, text: Option<&[u8]>) {
        if !effects.contains(Effects::RESET | Effects::OPAQUE | Effects::DISCARD) {
            return;
        }
        self.pending = true;
        let text = text.unwrap_or_default();
        self.copies |= has_word(text, b"copy");
        self.all_custom |= has_word(text, b"all");
        self.custom.extend(dotted_names(text));
    }

    /// A parameter's new value has come, of which the client is told later, if it still differs then.
    pub(super) fn remember(&mut self, before: &Parameters) {
        self.told.get_or_insert_with(|| before.clone());
    }

    fn take_sql(&mut self, startup: &Settings) -> Option<String> {
        let pending = std::mem::take(&mut self.pending);
        let all = std::mem::take(&mut self.all_custom);
        let custom = std::mem::take(&mut self.custom);
        if std::mem::take(&mut self.copies) {
            // The survey at the transaction's end finds what is missing.
            return None;
        }
        let is_reset = |name: &str| all || custom.iter().any(|other| other == name);
        let wanted: Vec<String> = startup
            .iter()
            .filter(|(name, _)| !name.contains('.') || is_reset(name))
            .map(|(name, value)| format!("({},{})", literal(name), literal(value)))
            .collect();
        // A parameter of one's own that was reset is empty, and is in no view.
        (pending && !wanted.is_empty()).then(|| {
            format!(
                "SELECT pg_catalog.set_config(name, value, false) FROM (VALUES {}) AS wanted(name, value) \
                 WHERE CASE pg_catalog.strpos(name, '.') WHEN 0 THEN EXISTS (SELECT FROM pg_catalog.pg_settings AS it \
                 WHERE pg_catalog.lower(it.name) = wanted.name AND it.source <> 'session') \
                 ELSE coalesce(pg_catalog.current_setting(name, true), '') = '' END",
                wanted.join(",")
            )
        })
    }
}

impl Relay {
    /// A simple query of the client's has been passed, all of it.
    pub(super) fn restore_behind_query(&mut self, sides: &mut Sides<'_>) {
        if self.replies.sent_query_last()
            && let Some(sql) = self.resets.take_sql(&sides.memory.startup)
        {
            self.replies.hold_ready();
            self.insert_query(&sql, Expect::Restore, sides.up);
            self.unnamed_here = true; // there is none, as after the client's own
        }
    }

    /// A Sync of the client's comes next.
    pub(super) fn restore_before_sync(&mut self, sides: &mut Sides<'_>) {
        if self.replies.is_copying_in() || !self.replies.is_batch_open() {
            return;
        }
        let Some(sql) = self.resets.take_sql(&sides.memory.startup) else {
            return;
        };
        self.insert_own(&sql, Expect::Execute, None, sides.up);
    }

    /// The client is told what differs from what it knew, in PostgreSQL's order: sorted (src/backend/utils/misc/guc.c,
    /// `guc_name_compare`).
    pub(super) fn tell_restored(&mut self, sides: &Sides<'_>) {
        let Some(told) = self.resets.told.take() else {
            return;
        };
        let news =
            (sides.conn.parameters.iter()).filter(|(name, value)| told.get(name) != Some(value));
        let mut news: Vec<_> = news.collect();
        news.sort_by_key(|(name, _)| name.to_ascii_lowercase());
        let mut messages = BytesMut::new();
        for (name, value) in news {
            encode::parameter_status(&mut messages, name.as_bytes(), value.as_bytes());
        }
        self.down.insert(&messages);
    }
}
