//! Why a backend can't be multiplexed for now.

use crate::session::statement::Effects;

/// The reason a session keeps its backend between transactions. Log text and metric label come from here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PinReason {
    /// SET, RESET, set_config, or a parameter the server reported as changed.
    Settings,
    /// A prepared statement with a name of the protocol's Parse.
    NamedStatement,
    /// An unnamed statement prepared in one batch, to be used in a later one.
    UnnamedStatement,
    /// PREPARE in SQL.
    SqlPrepare,
    /// A temporary table, view or sequence.
    TempObject,
    /// A cursor WITH HOLD.
    HoldCursor,
    /// LISTEN.
    Listen,
    /// A session-level advisory lock.
    AdvisoryLock,
    /// LOAD.
    Load,
    /// The pool's mode is `session`.
    SessionMode,
}

impl PinReason {
    /// Every reason, in the order of the sets' bits.
    pub const ALL: [PinReason; 10] = [
        PinReason::Settings,
        PinReason::NamedStatement,
        PinReason::UnnamedStatement,
        PinReason::SqlPrepare,
        PinReason::TempObject,
        PinReason::HoldCursor,
        PinReason::Listen,
        PinReason::AdvisoryLock,
        PinReason::Load,
        PinReason::SessionMode,
    ];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            PinReason::Settings => "settings",
            PinReason::NamedStatement => "named_statement",
            PinReason::UnnamedStatement => "unnamed_statement",
            PinReason::SqlPrepare => "sql_prepare",
            PinReason::TempObject => "temp_object",
            PinReason::HoldCursor => "hold_cursor",
            PinReason::Listen => "listen",
            PinReason::AdvisoryLock => "advisory_lock",
            PinReason::Load => "load",
            PinReason::SessionMode => "session_mode",
        }
    }

    /// What the operator can tell the application's owner.
    pub fn advice(self) -> &'static str {
        match self {
            PinReason::Settings => "use SET LOCAL inside a transaction, or startup parameters",
            PinReason::NamedStatement => "turn named prepared statements off in the driver",
            PinReason::UnnamedStatement => "send Parse, Bind and Execute before one Sync",
            PinReason::SqlPrepare => "use the driver's parameters instead of PREPARE",
            PinReason::TempObject => "drop it by DISCARD ALL, or use an ordinary table",
            PinReason::HoldCursor => "close it by DISCARD ALL, or declare it without HOLD",
            PinReason::Listen => "listen on a connection of its own",
            PinReason::AdvisoryLock => "use pg_advisory_xact_lock",
            PinReason::Load => "set session_preload_libraries on the server",
            PinReason::SessionMode => "set the pool's mode to transaction",
        }
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// A set of reasons.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PinReasons(u16);

impl PinReasons {
    /// No reason left.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds one.
    pub fn insert(&mut self, reason: PinReason) {
        self.0 |= reason.bit();
    }

    /// Takes one out.
    pub fn remove(&mut self, reason: PinReason) {
        self.0 &= !reason.bit();
    }

    /// True if it is there.
    pub fn contains(self, reason: PinReason) -> bool {
        self.0 & reason.bit() != 0
    }

    /// DISCARD ALL has run: a loaded library stays.
    pub fn keep_only_lasting(&mut self) {
        self.0 &= PinReason::Load.bit();
    }

    /// Adds what a statement leaves behind.
    pub fn insert_effects(&mut self, effects: Effects) {
        for (effect, reason) in [
            (Effects::SETTINGS, PinReason::Settings),
            (Effects::SQL_PREPARE, PinReason::SqlPrepare),
            (Effects::TEMP_OBJECT, PinReason::TempObject),
            (Effects::HOLD_CURSOR, PinReason::HoldCursor),
            (Effects::LISTEN, PinReason::Listen),
            (Effects::ADVISORY_LOCK, PinReason::AdvisoryLock),
            (Effects::LOAD, PinReason::Load),
        ] {
            if effects.contains(effect) {
                self.insert(reason);
            }
        }
    }

    /// The reasons, one by one.
    pub fn iter(self) -> impl Iterator<Item = PinReason> {
        PinReason::ALL
            .into_iter()
            .filter(move |reason| self.contains(*reason))
    }
}
