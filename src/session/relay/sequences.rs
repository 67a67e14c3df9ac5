//! currval and lastval answer for what this session did on this backend, and never for another client.
//!
//! A backend keeps the sequence values of everybody who has used it, and any INSERT may have left some. In a pool where
//! nobody asks for them that costs nothing. Once somebody has, every lease of the pool begins with DISCARD SEQUENCES, in
//! the same write as its first request; a session that asks keeps its backend from its next INSERT or nextval on. So the
//! answer is right, or PostgreSQL's own error that there is none yet.

use super::causes::Text;
use super::{Relay, Sides};
use crate::session::pin::PinReason;
use crate::session::replies::Expect;
use crate::session::statement::Effects;
use crate::wire::flow::Flow;

/// What the relay knows of sequences.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    /// The backend has none of another client's values.
    fresh: bool,
    /// The client has sent something in this lease.
    begun: bool,
    /// It has asked for a value.
    pub(super) read: bool,
}

impl Relay {
    /// At the start of a lease in a pool where somebody asks for values.
    pub(super) fn discard_sequences(&mut self, up: &mut Flow) {
        self.insert_query("DISCARD SEQUENCES", Expect::Query, up);
        self.sequences.fresh = true;
    }

    /// A text is about to be sent: it begins the unread bytes, and is so long.
    pub(super) fn before_text(&mut self, frame_len: usize, up: &mut Flow) {
        let come = frame_len.min(up.unread().len());
        if !self.sequences.fresh && names_sequence_read(&up.unread()[..come]) {
            self.before_read(up);
        }
        self.sequences.begun = true;
    }

    /// A statement prepared before is about to be used.
    pub(super) fn before_statement(&mut self, effects: Effects, sides: &mut Sides<'_>) {
        if !self.sequences.fresh && effects.contains(Effects::SEQUENCE_READ) {
            self.before_read(sides.up);
        }
        self.sequences.begun = true;
    }

    /// The first who asks in a pool. In the middle of a transaction what is there is most likely its own, and stays.
    fn before_read(&mut self, up: &mut Flow) {
        if !self.sequences.begun && !self.replies.is_batch_open() {
            self.discard_sequences(up);
        }
    }

    /// What a text does with sequences, for a session that asks for their values.
    pub(super) fn note_sequences(&mut self, effects: Effects, text: Text<'_>, asks: &mut bool) {
        if effects.contains(Effects::SEQUENCE_READ) {
            self.sequences.read = true;
            *asks = true;
        }
        let inserts = || (text.whole()).is_none_or(|sql| contains_word(sql, b"insert"));
        if *asks && (effects.contains(Effects::SEQUENCE_WRITE) || inserts()) {
            self.pin_by(PinReason::Sequence, text);
        }
    }

    /// The client has asked for a sequence's value.
    pub(in crate::session) fn reads_sequences(&self) -> bool {
        self.sequences.read
    }
}

/// `currval` or `lastval` in any case. A false alarm costs a DISCARD SEQUENCES.
fn names_sequence_read(text: &[u8]) -> bool {
    memchr::memchr2_iter(b'v', b'V', text).any(|at| {
        let before = at.checked_sub(4).and_then(|start| text.get(start..at));
        let names =
            |word: &[u8]| word.eq_ignore_ascii_case(b"curr") || word.eq_ignore_ascii_case(b"last");
        before.is_some_and(names)
            && text
                .get(at..at + 3)
                .is_some_and(|word| word.eq_ignore_ascii_case(b"val"))
    })
}

fn contains_word(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len())
        .any(|window| window.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_are_found_in_any_case_and_place() {
        for text in [
            "select currval('s')",
            "SELECT LASTVAL()",
            "lastVal",
            "xCurrVal",
        ] {
            assert!(names_sequence_read(text.as_bytes()), "{text}");
        }
        for text in ["select nextval('s')", "val", "lastva", "last val", ""] {
            assert!(!names_sequence_read(text.as_bytes()), "{text}");
        }
    }
}
