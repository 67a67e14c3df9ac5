//! Reads SQL text for what it leaves behind in the server's session. A lexer, not a grammar: it skips comments,
//! strings and dollar quotes, and looks at the leading words of each statement and at a few names.
//!
//! Text comes in pieces of any size ([`StatementReader::feed`]), so a statement of a gigabyte is read in constant
//! memory. Where the reading is unsure it says too much rather than too little: a missed effect would reach the next
//! client. What text can't show is for other witnesses to find: functions, procedures and rules that change the
//! session inside, SQL in strings, values of parameters, and the `nextval` of a column's default.
//!
//! The text is read in the client's encoding, byte by byte. In those where a character's second byte may look like
//! ASCII (SJIS, BIG5, GBK, UHC, GB18030, JOHAB: only clients can use them) a backslash may be half a character: an
//! `E'…'` there, or any string while `standard_conforming_strings` is off, may be read wrongly.

mod leading;
mod lexer;
mod search;
mod set_config;
#[cfg(test)]
mod tests;

use leading::Leading;
use lexer::Lexer;

/// What a statement leaves behind or may end, as a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Effects(u32);

impl Effects {
    /// SET, RESET, set_config, UPDATE pg_settings: run-time parameters, role, session authorization.
    pub const SETTINGS: Effects = Effects(1);
    /// PREPARE name AS …
    pub const SQL_PREPARE: Effects = Effects(1 << 1);
    /// CREATE TEMP …, SELECT … INTO TEMP, anything named in pg_temp, a search path with pg_temp in it.
    pub const TEMP_OBJECT: Effects = Effects(1 << 2);
    /// DECLARE … WITH HOLD
    pub const HOLD_CURSOR: Effects = Effects(1 << 3);
    /// LISTEN
    pub const LISTEN: Effects = Effects(1 << 4);
    /// Session-level advisory locks.
    pub const ADVISORY_LOCK: Effects = Effects(1 << 5);
    /// LOAD, CREATE FUNCTION … LANGUAGE C
    pub const LOAD: Effects = Effects(1 << 6);
    /// BEGIN, START TRANSACTION, COMMIT or ROLLBACK AND CHAIN: a transaction block is open afterwards.
    pub const TRANSACTION: Effects = Effects(1 << 7);
    /// nextval, setval: what currval and lastval answer changes.
    pub const SEQUENCE_WRITE: Effects = Effects(1 << 8);
    /// currval, lastval: the answer depends on what this session did before.
    pub const SEQUENCE_READ: Effects = Effects(1 << 9);
    /// DEALLOCATE, DROP, CLOSE, UNLISTEN, DISCARD, pg_advisory_unlock…: may undo what an earlier statement left.
    pub const MAY_RELEASE: Effects = Effects(1 << 10);
    /// EXECUTE name, also in CREATE TABLE … AS: the name may be one of the protocol's Parse.
    pub const SQL_EXECUTE: Effects = Effects(1 << 11);
    /// DEALLOCATE name or ALL: the name may be one of the protocol's Parse.
    pub const SQL_DEALLOCATE: Effects = Effects(1 << 12);
    /// RESET, SET … TO DEFAULT: the value is the one that a new session would have. Always beside `SETTINGS`.
    pub const RESET: Effects = Effects(1 << 13);
    /// DO, CALL: the text doesn't show what they do.
    pub const OPAQUE: Effects = Effects(1 << 14);
    /// SET, SET LOCAL, RESET of a parameter that decides what a text means when it is prepared (DateStyle, search_path, …).
    pub const MEANING: Effects = Effects(1 << 15);
    /// set_config: what it sets, and for how long, is in its arguments. [`Effects::read_set_config`] looks at them.
    pub const SET_CONFIG: Effects = Effects(1 << 16);
    /// DISCARD, perhaps ALL.
    pub const DISCARD: Effects = Effects(1 << 17);
    /// `pg_prepared_statements`: the view shows what this session has prepared.
    pub const STATEMENTS_SHOWN: Effects = Effects(1 << 18);

    /// UNLISTEN
    pub const UNLISTEN: Effects = Effects(1 << 19);
    /// pg_listening_channels: the answer depends on what this session listens to.
    pub const LISTENING_READ: Effects = Effects(1 << 20);
    /// NOTIFY, pg_notify: who listens to it hears it before the statement is done.
    pub const NOTIFY: Effects = Effects(1 << 21);

    /// A name that can't be read may be any of the names looked for.
    const UNREADABLE_NAME: Effects = Effects(
        Effects::SETTINGS.0
            | Effects::MEANING.0
            | Effects::STATEMENTS_SHOWN.0
            | Effects::ADVISORY_LOCK.0
            | Effects::TEMP_OBJECT.0
            | Effects::SEQUENCE_WRITE.0
            | Effects::SEQUENCE_READ.0
            | Effects::MAY_RELEASE.0
            | Effects::LISTENING_READ.0
            | Effects::NOTIFY.0,
    );
    /// Text that can't be read may be anything.
    const UNREADABLE_TEXT: Effects = Effects((1 << 22) - 1);

    /// What may change run-time parameters: what a DO block or a procedure does can't be read.
    pub const MAY_SET: Effects = Effects::SETTINGS
        .union(Effects::OPAQUE)
        .union(Effects::SET_CONFIG);

    /// What may change what a text means.
    pub const MAY_CHANGE_MEANING: Effects = Effects::MEANING
        .union(Effects::OPAQUE)
        .union(Effects::SET_CONFIG);

    /// What may change the channels a session listens to.
    pub const CHANGES_LISTENING: Effects =
        Effects(Effects::LISTEN.0 | Effects::UNLISTEN.0 | Effects::OPAQUE.0);

    /// What needs them on the session's backend: what may change them, or tells them.
    pub const NEEDS_CHANNELS: Effects = Effects(
        Effects::LISTEN.0 | Effects::UNLISTEN.0 | Effects::OPAQUE.0 | Effects::LISTENING_READ.0,
    );

    /// Both.
    pub const fn union(self, other: Effects) -> Effects {
        Effects(self.0 | other.0)
    }

    /// True if any of `other` is in the set.
    pub fn contains(self, other: Effects) -> bool {
        self.0 & other.0 != 0
    }

    /// These without others.
    pub const fn without(self, others: Effects) -> Effects {
        Effects(self.0 & !others.0)
    }

    /// What set_config does in this text: `… , true)` lasts as long as its transaction.
    pub fn read_set_config(self, text: &[u8]) -> Effects {
        if !self.contains(Effects::SET_CONFIG) || !set_config::is_local(text) {
            return self;
        }
        self.without(Effects::SET_CONFIG) | Effects::MEANING
    }

    /// True if there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl std::ops::BitOr for Effects {
    type Output = Effects;

    fn bitor(self, other: Effects) -> Effects {
        Effects(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for Effects {
    fn bitor_assign(&mut self, other: Effects) {
        self.0 |= other.0;
    }
}

/// Reads one Query or Parse text.
#[derive(Debug)]
pub struct StatementReader {
    lexer: Lexer,
    leading: Leading,
}

impl Default for StatementReader {
    fn default() -> Self {
        Self::new(true)
    }
}

impl StatementReader {
    /// The server's `standard_conforming_strings` tells whether a backslash in `'…'` is an ordinary character.
    pub fn new(standard_conforming_strings: bool) -> Self {
        Self {
            lexer: Lexer::new(standard_conforming_strings),
            leading: Leading::default(),
        }
    }

    /// Reads the next piece of the text.
    pub fn feed(&mut self, text: &[u8]) {
        self.lexer.feed(text, &mut self.leading);
    }

    /// The text has ended; what it leaves behind.
    pub fn finish(mut self) -> Effects {
        self.lexer.finish(&mut self.leading);
        self.leading.effects()
    }
}

/// Parameters that change nothing in how a text is parsed; all others are thought to.
pub fn is_harmless(name: &str) -> bool {
    matches!(
        name,
        "application_name"
            | "work_mem"
            | "maintenance_work_mem"
            | "client_min_messages"
            | "synchronous_commit"
            | "extra_float_digits"
            | "bytea_output"
            | "jit"
            | "statement_timeout"
            | "lock_timeout"
            | "idle_in_transaction_session_timeout"
            | "idle_session_timeout"
            | "default_transaction_isolation"
            | "default_transaction_read_only"
            | "default_transaction_deferrable"
    ) || name.starts_with("log_")
        || name.starts_with("enable_")
        || name.contains('.')
}
