//! Looks for `pg_temp` in a string that comes in pieces, whatever its case.

use memchr::memchr;

/// What makes `pg` the name of the temporary schema.
const TEMP: &[u8] = b"_temp";

/// How long a piece must be to be worth a call of memchr.
const SHORT: usize = 16;

/// What the string so far ends with.
#[derive(Debug, Default)]
pub(super) struct TempSearch {
    /// Its last two bytes.
    before: [u8; 2],
    /// How much of `TEMP` they and those before have matched.
    matched: usize,
}

impl TempSearch {
    /// Reads the string's next piece; true if the name ends in it. By its rarest byte: long strings are to be quick.
    pub(super) fn read(&mut self, run: &[u8]) -> bool {
        let mut found = false;
        let mut at = 0;
        if run.len() <= SHORT && self.matched == 0 && !run.contains(&b'_') {
            at = run.len();
        }
        while at < run.len() {
            if self.matched == 0 {
                let Some(skipped) = memchr(b'_', &run[at..]) else {
                    break;
                };
                at += skipped;
                let before = match at {
                    0 => self.before,
                    1 => [self.before[1], run[0]],
                    _ => [run[at - 2], run[at - 1]],
                };
                self.matched = usize::from(before.eq_ignore_ascii_case(b"pg"));
            } else if run[at].eq_ignore_ascii_case(&TEMP[self.matched]) {
                self.matched += 1;
            } else {
                // The byte can't be the `_` of another match: `pg` doesn't stand before it.
                self.matched = 0;
            }
            if self.matched == TEMP.len() {
                self.matched = 0;
                found = true;
            }
            at += 1;
        }
        self.before = match run {
            [.., a, b] => [*a, *b],
            [b] => [self.before[1], *b],
            [] => self.before,
        };
        found
    }
}
