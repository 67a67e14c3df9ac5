//! What a session has left on its backend, settled before the backend goes: asked for, taken over, or a reason to keep it.

use super::down::Done;
use super::{Hold, Relay, Sides};
use crate::backend::connection::BackendConnection;
use crate::backend::settings::Settings;
use crate::session::custom::{dotted_names, is_sure};
use crate::session::pin::{PinReason, PinReasons};
use crate::session::replies::Expect;
use crate::session::requests::Unnamed;
use crate::session::statement::Effects;
use crate::session::survey::{self, Survey};
use crate::wire::from_backend::TxStatus;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// A session that stays pinned is surveyed again after this, at the end of a transaction: not every end of a reason shows.
const SURVEY_AGAIN: Duration = Duration::from_secs(1);

/// Custom parameters asked for by name in one survey; beyond it the session keeps its backend.
const CUSTOM_MAX: usize = 256;

/// What is known, and not yet known, of a session's state on its backend.
#[derive(Debug, Default)]
pub(super) struct StateLeft {
    /// Reasons to keep the backend.
    pub(super) pins: PinReasons,
    told: PinReasons,
    verified: PinReasons,
    /// Those that came up after the survey was sent: it can't have seen them.
    since_survey: PinReasons,
    /// Run-time parameters may have been changed.
    pub(super) settings_touched: bool,
    /// The channels may have changed.
    pub(super) listening_touched: bool,
    /// Something that pins may be gone.
    may_release: bool,
    /// Custom parameters that may have been changed.
    custom: BTreeSet<String>,
    /// Those that the survey has asked for.
    asked: BTreeSet<String>,
    /// What was changed went by in pieces, or its name was made up on the way: it can't be asked for.
    pub(super) unknown: bool,
    /// Something ran whose text does not show what it does.
    opaque: bool,
    /// Parameters were reset.
    reset: bool,
    /// The same, of what the survey looks at.
    pub(super) explained: bool,
    was_reset: bool,
    pub(super) before_survey: PinReasons,
    /// The survey has found what nobody's text explains: somebody's function has left it, unseen.
    pub(super) leaked: bool,
    surveyed_at: Option<Instant>,
    /// Some of what the session should have set has been reset.
    restore: bool,
    /// A text in flight may take statements away from the backend.
    doubtful: bool,
    /// The transaction has changed settings: which a text was read under is not known.
    pub(super) unsure: bool,
    /// A text in flight may begin a transaction.
    opens: bool,
    /// The session has statements of SQL's PREPARE.
    pub(super) has_sql: bool,
    /// DISCARD ALL has run; its ReadyForQuery has not come yet.
    discarding: bool,
}

impl StateLeft {
    /// Something may have been left that only DISCARD ALL surely takes away.
    pub(super) fn is_clean(&self) -> bool {
        self.pins.is_empty() && !self.settings_touched && !self.restore
    }

    fn wants_survey(&self) -> bool {
        let again = || {
            let due = |at: Instant| at.elapsed() >= SURVEY_AGAIN;
            self.may_release
                || self.listening_touched
                || self.pins != self.verified
                || self.surveyed_at.is_none_or(due)
        };
        self.settings_touched || (self.pins.contains_any(&survey::SURVEYED) && again())
    }
}

impl Relay {
    /// Reasons to keep the backend that have come up since the last call.
    pub(in crate::session) fn new_pins(&mut self) -> impl Iterator<Item = PinReason> + use<> {
        let new = self.kept();
        let told = std::mem::replace(&mut self.state.told, new);
        new.iter().filter(move |reason| !told.contains(*reason))
    }

    /// Reasons to keep the backend.
    pub(in crate::session) fn pins(&self) -> PinReasons {
        self.state.pins
    }

    /// What runs, or has been prepared to run, may leave this behind.
    pub(super) fn note_effects(&mut self, effects: Effects) {
        self.state.settings_touched |=
            effects.contains(Effects::MAY_SET) && self.hold != Hold::Session;
        if effects.contains(Effects::MAY_CHANGE_MEANING) {
            self.touch_meaning();
        }
        self.state.reset |= effects.contains(Effects::RESET);
        self.state.opaque |= effects.contains(Effects::OPAQUE);
        self.state.doubtful |= effects.contains(Effects::MAY_RELEASE.union(Effects::OPAQUE));
        self.state.opens |= effects.contains(Effects::TRANSACTION.union(Effects::OPAQUE));
        self.state.may_release |= effects.contains(Effects::MAY_RELEASE);
        self.state.settings_touched |=
            self.state.has_sql && effects.contains(Effects::SQL_DEALLOCATE);
        self.listening.note(effects);
        self.state.listening_touched |= effects.contains(Effects::CHANGES_LISTENING);
        self.state.pins.insert_effects(effects);
        self.state.since_survey.insert_effects(effects);
    }

    /// A reason to keep the backend has come up.
    pub(super) fn pin(&mut self, reason: PinReason) {
        self.state.pins.insert(reason);
        self.state.since_survey.insert(reason);
    }

    /// A message that changes run-time parameters passes: `frame` is all of it, or not known.
    pub(super) fn note_custom(&mut self, frame: Option<&[u8]>, calls: bool) {
        if self.hold == Hold::Session {
            return;
        }
        match frame {
            Some(frame) => {
                self.state.custom.extend(dotted_names(frame));
                self.state.unknown |= !is_sure(frame, calls);
            }
            None => self.state.unknown = true,
        }
        self.state.unknown |= self.state.custom.len() > CUSTOM_MAX;
    }

    /// The server's own words about what is left, beside what the text told.
    pub(in crate::session) fn note_state_left(&mut self, conn: &BackendConnection) {
        if self.hold == Hold::Session {
            self.state.pins.insert(PinReason::SessionMode);
        }
        if conn.parameters != self.parameters && self.hold != Hold::Session {
            self.state.settings_touched = true;
        }
    }

    /// The backend can be lent to somebody else as it is.
    pub(in crate::session) fn is_clean(&self) -> bool {
        self.state.is_clean()
    }

    /// Texts in flight may take statements away from the backend; they do not once everything is answered.
    pub(super) fn is_doubtful(&mut self) -> bool {
        self.state.doubtful &= !self.replies.is_settled();
        self.state.doubtful
    }

    /// A batch before this one is in flight in a transaction, or may begin one: whether it fails, the server knows.
    pub(super) fn transaction_may_fail(&mut self, sides: &Sides<'_>) -> bool {
        self.state.opens &= !self.replies.is_settled();
        let within = self.state.opens || sides.conn.status == TxStatus::InTransaction;
        within && self.replies.has_earlier_batch()
    }

    /// The backend has what no text explains.
    pub(in crate::session) fn has_leak(&self) -> bool {
        self.state.leaked
    }

    /// Nothing keeps the backend, as far as is known.
    pub(super) fn may_go(&self, sides: &Sides<'_>) -> bool {
        self.hold != Hold::Session
            && self.state.is_clean()
            && sides.conn.status == TxStatus::Idle
            && self.is_at_rest(sides.up)
    }

    /// The next request is not looked at before the state is settled. What the session has set may have been reset, and is
    /// set again. (RESET goes back to what the login asked for, which is no default of the backend's.) And a client that
    /// asks again while the server is being asked would keep its backend for ever from those who wait.
    pub(super) fn holds_client(&self, sides: &Sides<'_>) -> bool {
        if self.listening.is_moving() {
            return self.requests.at_boundary() && !self.replies.is_batch_open();
        }
        // In a transaction nothing is settled before its end.
        let restores = self.state.restore && sides.conn.status == TxStatus::Idle;
        let settling = self.survey.is_some() || restores || self.restoring;
        // A batch that is open must get its Sync, or nothing is ever settled.
        let client_is_due = self.replies.is_batch_open() || self.replies.is_copying_in();
        settling && !client_is_due && !self.keeps_long_unnamed(sides) && self.requests.at_boundary()
    }

    /// Its unnamed statement lives on this backend alone.
    pub(super) fn keeps_long_unnamed(&self, sides: &Sides<'_>) -> bool {
        matches!(sides.memory.unnamed, Unnamed::TooLong) && self.unnamed_here
    }

    /// Notifications are the client's.
    pub(super) fn may_listen(&self) -> bool {
        self.hold == Hold::Session || self.state.pins.contains(PinReason::Listen)
    }

    /// Asks the server, or tells it, what must be settled before the backend can go; true while that is under way.
    pub(super) fn settle_state(&mut self, sides: &mut Sides<'_>) -> bool {
        if self.keeps_long_unnamed(sides) {
            // A query of ours would drop it.
            self.state.pins.insert(PinReason::UnnamedStatement);
            if !self.filtered().contains(PinReason::UnnamedStatement) {
                return false;
            }
        }
        let wanted = match self.hold {
            // Nothing is to be known here but what RESET has to go back to.
            Hold::Session => self.state.reset && !sides.memory.startup.is_empty(),
            _ => self.state.wants_survey(),
        };
        if wanted {
            let known = sides.memory.settings.iter().map(|(name, _)| name);
            self.state.asked = std::mem::take(&mut self.state.custom);
            let custom = self.state.asked.iter().map(String::as_str);
            let names: BTreeSet<&str> = known
                .filter(|name| name.contains('.'))
                .chain(custom)
                .collect();
            let sql = survey::sql(names.into_iter());
            self.insert_query(&sql, Expect::Survey, sides.up);
            self.unnamed_here = false; // it is a simple query
            self.survey = Some(Survey::default());
            self.state.surveyed_at = Some(Instant::now());
            self.state.since_survey = PinReasons::default();
            self.state.before_survey = self.state.pins;
            self.state.explained = std::mem::take(&mut self.state.opaque);
            self.state.was_reset = std::mem::take(&mut self.state.reset) || self.state.explained;
            self.state.unsure = self.settle_meaning();
            self.state.settings_touched = false;
            self.state.may_release = false;
            self.state.listening_touched = false;
            return true;
        }
        if std::mem::take(&mut self.state.restore) {
            let settings = sides.memory.settings.clone();
            self.restoring = self.replay(&settings, sides.conn, sides.up);
            self.unnamed_here &= !self.restoring;
            return self.restoring;
        }
        false
    }

    /// The survey's answer is complete.
    pub(super) fn finish_survey(&mut self, sides: &mut Sides<'_>) {
        let Some(survey) = self.survey.take() else {
            return;
        };
        self.parameters = sides.conn.parameters.clone();
        match survey.finish(sides.conn.login_role()) {
            Some(found) => {
                let explained = match self.state.explained {
                    true => found.left,
                    false => found.left.and(self.state.before_survey),
                };
                self.state.leaked |= explained != found.left;
                let pins = &mut self.state.pins;
                pins.replace_surveyed(&survey::SURVEYED, explained);
                if !found.channels.is_empty() {
                    self.listening.found(found.channels);
                }
                self.learn_settings(found.settings, sides);
                self.learn_sql_prepared(found.sql_prepared, sides);
            }
            None => {
                self.state.custom.append(&mut self.state.asked);
                self.state.pins.insert(PinReason::Settings);
            }
        }
        self.state.verified = self.state.pins;
        self.state.pins.insert_all(self.state.since_survey);
        self.settle_causes();
    }

    /// What the server says is set is what the session has set; what it asked for at login and is not there any more has
    /// been reset, and RESET goes back to the login's values.
    fn learn_settings(&mut self, found: Settings, sides: &mut Sides<'_>) {
        let memory = &mut *sides.memory;
        // What is missing has been reset, or is not shown to another role.
        let hidden = found.has_role()
            && !self.state.was_reset
            && !(memory.startup.is_within(&found) && memory.settings.is_within_but_roles(&found));
        if self.state.unknown || hidden {
            // Not all that is set is known, or shown to another role.
            self.state.pins.insert(PinReason::Settings);
            if hidden || !self.filtered().contains(PinReason::Settings) {
                return;
            }
        }
        memory.settings = found.with_defaults(&memory.startup);
        sides.conn.applied = match self.state.was_reset && sides.conn.has_init_query() {
            // What init_query had set may have been reset, too.
            true => None,
            false => Some(found),
        };
        self.state.restore = sides.conn.applied.as_ref() != Some(&memory.settings);
    }

    /// A statement of the client's is done. `last`: nothing is in flight behind it.
    pub(super) fn on_done(&mut self, done: Done, last: bool, sides: &mut Sides<'_>) {
        match done {
            Done::Other => {}
            Done::MayRelease => self.state.may_release = true,
            Done::DiscardSequences => self.state.pins.remove(PinReason::Sequence),
            // Literals are read again at the next use, under this session's settings: no other may get that.
            Done::DiscardPlans => {
                for (_, known_as) in sides.conn.prepared.take_all() {
                    sides.conn.prepared.add_unused(known_as);
                }
            }
            Done::DeallocateAll => {
                self.forget_statements(sides);
                self.state.may_release = true;
            }
            Done::DiscardAll => {
                self.forget_statements(sides);
                sides.conn.was_discarded_but_for_statements();
                sides.memory.settings = sides.memory.startup.clone();
                sides.memory.subscription = None;
                self.state.discarding = true;
                self.state.restore = true;
                if last {
                    self.state.unknown = false;
                    self.state.pins.keep_only_lasting();
                    self.state.settings_touched = false;
                } else {
                    // What is in flight may set something anew: the server will tell.
                    self.state.settings_touched = true;
                    self.state.may_release = true;
                }
            }
        }
    }

    /// What DISCARD ALL has reset has been reported by the time it is ready (src/backend/utils/misc/guc.c:
    /// `ReportChangedGUCOptions` runs before ReadyForQuery).
    pub(super) fn on_idle_after_discard(&mut self, sides: &mut Sides<'_>) {
        if self.state.discarding && sides.conn.status == TxStatus::Idle {
            self.state.discarding = false;
            self.parameters = sides.conn.parameters.clone();
        }
    }

    /// Every statement is gone from the backend and from the client's names, but for those in flight.
    fn forget_statements(&mut self, sides: &mut Sides<'_>) {
        let names = &mut sides.memory.names;
        let kept: Vec<_> = (self.replies.notes())
            .filter_map(|note| note.named.as_ref())
            .filter_map(|name| Some((name.clone(), names.find(name)?.clone())))
            .collect();
        names.clear();
        kept.into_iter()
            .for_each(|(name, statement)| names.insert(name, statement));
        sides.conn.prepared.clear();
        sides.conn.sql_prepared.clear();
        sides.conn.shown.clear();
        sides.memory.sql.clear();
        for id in self.replies.notes().filter_map(|note| note.prepared) {
            sides.conn.prepared.restore(id, id);
        }
    }
}
