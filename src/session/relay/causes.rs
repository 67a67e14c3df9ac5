//! Which statement gave a reason to keep the backend. Only texts that may leave something behind are looked at.

use super::{Hold, Relay};
use crate::session::digest::Digest;
use crate::session::pin::{PinReason, PinReasons};
use crate::session::prepared::PARSE_LEN_MAX;
use crate::session::statement::Effects;
use crate::wire::frame::{HEADER_LEN, Header};

/// Of a message that passes in pieces this much is kept until its text has been read.
const BEGINNING_MAX: usize = 1024;

/// A statement's text, or as much of it as is at hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    sql: &'a [u8],
    whole: bool,
}

/// What pins, and what may.
#[derive(Debug, Default)]
pub(super) struct Causes {
    by_reason: Vec<(PinReason, Digest)>,
    /// The message that passes in pieces.
    beginning: Vec<u8>,
    collecting: bool,
}

impl<'a> Text<'a> {
    /// The text of a Query or a Parse.
    pub(super) fn of_frame(frame: &'a [u8]) -> Self {
        let body = frame.get(HEADER_LEN..).unwrap_or_default();
        match frame.first() {
            Some(b'P') => {
                Self::of_body(body.splitn(2, |&byte| byte == 0).nth(1).unwrap_or_default())
            }
            _ => Self::of_body(body),
        }
    }

    /// The text that something begins with; a zero byte ends it.
    pub(super) fn of_body(sql: &'a [u8]) -> Self {
        Self { sql, whole: true }
    }

    /// All of it, if it is at hand.
    pub(super) fn whole(self) -> Option<&'a [u8]> {
        self.whole.then_some(self.sql)
    }
}

impl Causes {
    /// A message begins to pass.
    pub(super) fn begin(&mut self, header: Header) {
        self.beginning.clear();
        // Shorter ones come whole.
        self.collecting = matches!(header.tag, b'Q' | b'P') && header.frame_len() > PARSE_LEN_MAX;
    }

    /// A piece of it passes.
    pub(super) fn collect(&mut self, piece: &[u8]) {
        if self.collecting {
            let free = BEGINNING_MAX - self.beginning.len();
            self.beginning
                .extend_from_slice(&piece[..piece.len().min(free)]);
        }
    }

    /// What has been collected of it, if it was not to come whole.
    pub(super) fn take_beginning(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.collecting).then(|| std::mem::take(&mut self.beginning))
    }

    fn put(&mut self, reasons: PinReasons, digest: &Digest) {
        self.by_reason
            .retain(|(reason, _)| !reasons.contains(*reason));
        let causes = reasons.iter().map(|reason| (reason, digest.clone()));
        self.by_reason.extend(causes);
    }
}

impl Relay {
    /// The statement that gave the reason, as far as is known.
    pub(in crate::session) fn cause(&self, reason: PinReason) -> Option<Digest> {
        let mut causes = self.causes.by_reason.iter();
        causes
            .find(|(other, _)| *other == reason)
            .map(|(_, digest)| digest.clone())
    }

    /// A text that runs, or has been prepared to run, may leave this behind.
    pub(super) fn note_text(&mut self, effects: Effects, text: Text<'_>) {
        if effects.is_empty() {
            return;
        }
        let mut reasons = PinReasons::of_effects(effects);
        let sets = effects.contains(Effects::MAY_SET) && self.hold != Hold::Session;
        // The one whose names can't be asked for is to blame, not one before or after it.
        if sets && !self.state.unknown {
            reasons.insert(PinReason::Settings);
        }
        self.blame(reasons, text);
        self.note_effects(effects);
    }

    /// A text is a reason to keep the backend.
    pub(super) fn pin_by(&mut self, reason: PinReason, text: Text<'_>) {
        self.blame(PinReasons::of(reason), text);
        self.pin(reason);
    }

    /// A text may be the cause; for a reason that is there already another was.
    pub(super) fn blame(&mut self, reasons: PinReasons, text: Text<'_>) {
        let new = reasons.without(self.state.pins);
        if !new.is_empty() {
            self.causes.put(new, &Digest::of(text.sql, text.whole));
        }
    }

    /// A call by the function's number has no text.
    pub(super) fn pin_by_call(&mut self, oid: u32) {
        if !self.state.pins.contains(PinReason::FunctionCall) {
            let digest = Digest::of_words(&format!("FunctionCall of function {oid}"));
            self.causes
                .put(PinReasons::of(PinReason::FunctionCall), &digest);
        }
        self.pin(PinReason::FunctionCall);
    }

    /// Reasons that have come to nothing have no cause any more.
    pub(super) fn settle_causes(&mut self) {
        let mut reasons = self.state.pins;
        if self.state.settings_touched {
            // Since the survey was sent.
            reasons.insert(PinReason::Settings);
        }
        let causes = &mut self.causes.by_reason;
        causes.retain(|(reason, _)| reasons.contains(*reason));
    }

    /// Reasons to keep the backend, but for those that `session_pinning_filters` names.
    pub(in crate::session) fn kept(&self) -> PinReasons {
        self.state.pins.without(self.terms.filters)
    }

    /// Reasons that would have kept the backend, were they not filtered.
    pub(in crate::session) fn filtered(&self) -> PinReasons {
        self.state.pins.and(self.terms.filters)
    }
}

/// The beginning of a text that passed in pieces.
pub(super) fn beginning_of(frame: &[u8]) -> Text<'_> {
    Text {
        whole: false,
        ..Text::of_frame(frame)
    }
}
