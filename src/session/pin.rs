//! Why a backend can't be multiplexed for now.

use crate::session::statement::Effects;

/// The reason a session keeps its backend between transactions. Log text and metric label come from here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PinReason {
    /// Run-time parameters were changed and the server could not be asked for them.
    Settings,
    /// A prepared statement with a name of the protocol's Parse that can't be shared: too long, or too many.
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
    /// A library: LOAD, or a function in C made.
    Load,
    /// A function was called by its number (the protocol's FunctionCall): what it does can't be told.
    FunctionCall,
    /// Sequence values, in a session that asks for them by currval or lastval.
    Sequence,
    /// The pool's mode is `session`.
    SessionMode,
}

impl PinReason {
    /// Every reason, in the order of the sets' bits.
    pub const ALL: [PinReason; 12] = [
        PinReason::Settings,
        PinReason::NamedStatement,
        PinReason::UnnamedStatement,
        PinReason::SqlPrepare,
        PinReason::TempObject,
        PinReason::HoldCursor,
        PinReason::Listen,
        PinReason::AdvisoryLock,
        PinReason::Load,
        PinReason::FunctionCall,
        PinReason::Sequence,
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
            PinReason::FunctionCall => "function_call",
            PinReason::Sequence => "sequence",
            PinReason::SessionMode => "session_mode",
        }
    }

    /// What the operator can tell the application's owner.
    pub fn advice(self) -> &'static str {
        match self {
            PinReason::Settings => {
                "the server did not say what is set; use SET LOCAL or startup parameters"
            }
            PinReason::NamedStatement => {
                "prepare shorter statements, or fewer, or raise pool.max_prepared_statements"
            }
            PinReason::UnnamedStatement => "send Parse, Bind and Execute before one Sync",
            PinReason::SqlPrepare => {
                "DEALLOCATE it, or use the driver's parameters instead of PREPARE"
            }
            PinReason::TempObject => {
                "drop it when it is not needed, or use ON COMMIT DROP or an ordinary table"
            }
            PinReason::HoldCursor => "close it when it is not needed, or declare it without HOLD",
            PinReason::Listen => "listen on a connection of its own",
            PinReason::AdvisoryLock => "use pg_advisory_xact_lock",
            PinReason::Load => "set session_preload_libraries on the server",
            PinReason::FunctionCall => "call functions in SQL",
            PinReason::Sequence => "use INSERT … RETURNING instead of currval and lastval",
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

    /// Those of `session_pinning_filters`, by their labels.
    pub fn of_labels(labels: &[&str]) -> Self {
        let mut reasons = Self::default();
        let named = |reason: &PinReason| labels.contains(&reason.label());
        PinReason::ALL
            .into_iter()
            .filter(named)
            .for_each(|reason| reasons.insert(reason));
        reasons
    }

    /// One alone.
    pub fn of(reason: PinReason) -> Self {
        PinReasons(reason.bit())
    }

    /// What a statement may leave behind.
    pub fn of_effects(effects: Effects) -> Self {
        let mut reasons = Self::default();
        reasons.insert_effects(effects);
        reasons
    }

    /// Those that are not among `others`.
    pub fn without(self, others: PinReasons) -> PinReasons {
        PinReasons(self.0 & !others.0)
    }

    /// Takes one out.
    pub fn remove(&mut self, reason: PinReason) {
        self.0 &= !reason.bit();
    }

    /// True if it is there.
    pub fn contains(self, reason: PinReason) -> bool {
        self.0 & reason.bit() != 0
    }

    /// Some of `others` is there.
    pub fn contains_any(self, others: &[PinReason]) -> bool {
        others.iter().any(|reason| self.contains(*reason))
    }

    /// Adds others.
    pub fn insert_all(&mut self, others: PinReasons) {
        self.0 |= others.0;
    }

    /// Those in both.
    pub fn and(self, others: PinReasons) -> PinReasons {
        PinReasons(self.0 & others.0)
    }

    /// What a survey has found takes the place of what it can find.
    pub fn replace_surveyed(&mut self, surveyed: &[PinReason], found: PinReasons) {
        for reason in surveyed {
            self.remove(*reason);
        }
        self.0 |= found.0;
    }

    /// DISCARD ALL has run: a loaded library stays.
    pub fn keep_only_lasting(&mut self) {
        self.0 &= PinReason::Load.bit();
    }

    /// Adds what a statement leaves behind.
    pub fn insert_effects(&mut self, effects: Effects) {
        for (effect, reason) in [
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PINNING_FILTERS;

    #[test]
    fn every_reason_but_the_mode_can_be_filtered() {
        let listed = |reason: &PinReason| {
            let twin = (reason.label(), reason.label());
            PINNING_FILTERS.contains(&twin)
        };
        let (filterable, others): (Vec<_>, Vec<_>) = PinReason::ALL.into_iter().partition(listed);
        assert_eq!(filterable.len(), PINNING_FILTERS.len());
        assert_eq!(others, [PinReason::SessionMode]);
    }

    #[test]
    fn labels_name_reasons() {
        let reasons = PinReasons::of_labels(&["listen", "load", "no such"]);
        let expected = [PinReason::Listen, PinReason::Load];
        assert_eq!(reasons.iter().collect::<Vec<_>>(), expected);
        let rest = reasons.without(PinReasons::of(PinReason::Load));
        assert_eq!(rest, PinReasons::of(PinReason::Listen));
    }
}
