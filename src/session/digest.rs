//! A statement as it may be shown to an operator: without its literals, and with a number by which it is known again.
//!
//! Comments go, white space becomes one space, words that are not quoted are folded to lower case (as the server does),
//! and each literal becomes `?`: strings of every kind, numbers, and what SET gives a parameter, which need not be
//! quoted. `$1` stays. A list of literals is one: `IN (1, 2, 3)` and `IN (4)` are the same statement.
//!
//! Where it is not sure where a literal ends, all the rest is hidden. So it need not know
//! `standard_conforming_strings`, and half a character of an encoding whose second bytes look like a backslash can't
//! mislead it. Pure: no I/O. The rules are those of PostgreSQL's scanner (src/backend/parser/scan.l).

use std::fmt;
use std::sync::Arc;

/// Characters of a statement that are shown.
const SHOWN_MAX: usize = 300;

/// Digits of a parameter's number; the protocol counts to 65,535. What is longer is something else.
const PARAMETER_DIGITS_MAX: usize = 5;

/// A statement's normalised text and its number, the same in every version of the proxy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Digest {
    number: u64,
    text: Arc<str>,
}

impl Digest {
    /// The digest of a text, or of the beginning of one (`whole` is false). A zero byte ends the text.
    pub fn of(sql: &[u8], whole: bool) -> Self {
        let sql = sql.split(|&byte| byte == 0).next().unwrap_or_default();
        let mut reader = Normaliser::default();
        let readable = reader.read(sql);
        Self::of_normalised(&reader.finish(), whole && readable)
    }

    /// What is not SQL, in the proxy's own words.
    pub fn of_words(words: &str) -> Self {
        Self::of_normalised(words, true)
    }

    fn of_normalised(text: &str, whole: bool) -> Self {
        let end = text.char_indices().nth(SHOWN_MAX).map(|(at, _)| at);
        let mut shown = text
            .get(..end.unwrap_or(text.len()))
            .unwrap_or(text)
            .to_owned();
        if end.is_some() || !whole {
            shown.push('…');
        }
        Self {
            number: fnv1a(text.as_bytes()),
            text: shown.into(),
        }
    }

    /// The normalised text, or its beginning and `…`.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.number)
    }
}

/// FNV-1a, 64 bits: operators compare digests between versions, which std's hasher does not promise to keep.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Where a statement stands, as far as values without quotes go: `SET name = value`, also in ALTER and CREATE.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Setting {
    /// No word yet.
    #[default]
    Start,
    /// ALTER, CREATE: SET may follow.
    MayFollow,
    /// SET: a value may follow.
    Name,
    /// In the value, which goes to the statement's end.
    Value,
    Never,
}

#[derive(Default)]
struct Normaliser {
    out: Vec<u8>,
    /// White space or a comment came since the last token.
    gap: bool,
    setting: Setting,
}

impl Normaliser {
    /// False if the rest had to be hidden.
    fn read(&mut self, mut sql: &[u8]) -> bool {
        while let Some(&byte) = sql.first() {
            let taken = match byte {
                b'-' if sql.starts_with(b"--") => self.gap(line_len(sql)),
                b'/' if sql.starts_with(b"/*") => self.gap(comment_len(sql)),
                b'\'' => self.string(sql, 0, false),
                b'"' => self.quoted(sql, 0),
                b'$' => self.dollar(sql),
                b'0'..=b'9' => self.literal(number_len(sql)),
                b'?' => self.literal(1),
                _ if is_word_start(byte) => self.word(sql),
                _ if byte.is_ascii_graphic() => self.symbol(byte),
                _ => self.gap(1),
            };
            let Some(rest) = taken.and_then(|count| sql.get(count..)) else {
                self.literal(0);
                return false;
            };
            sql = rest;
        }
        true
    }

    fn finish(self) -> String {
        let text = String::from_utf8_lossy(&self.out);
        let text = text.trim_end_matches([';', ' ']);
        let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        text.chars().map(shown).collect()
    }

    fn gap(&mut self, len: usize) -> Option<usize> {
        self.gap = true;
        Some(len)
    }

    fn push(&mut self, token: &[u8]) {
        if self.setting == Setting::Value {
            return;
        }
        if std::mem::take(&mut self.gap) && !self.out.is_empty() {
            self.out.push(b' ');
        }
        self.out.extend_from_slice(token);
    }

    fn literal(&mut self, len: usize) -> Option<usize> {
        if self.setting != Setting::Value {
            if self.out.ends_with(b"?,") {
                self.out.pop();
            }
            if self.out.ends_with(b"?") {
                self.gap = false;
            } else {
                self.push(b"?");
            }
        }
        Some(len)
    }

    fn symbol(&mut self, byte: u8) -> Option<usize> {
        match (byte, self.setting) {
            (b';', _) => {
                self.setting = Setting::Start;
                self.gap = false;
            }
            (b',', _) => self.gap = false,
            (b'=', Setting::Name) => {
                self.push(b"=");
                self.value();
                return Some(1);
            }
            _ => {}
        }
        self.push(&[byte]);
        Some(1)
    }

    /// A word that is not quoted, or what it is a prefix of.
    fn word(&mut self, sql: &[u8]) -> Option<usize> {
        let len = sql.iter().take_while(|byte| is_word(**byte)).count();
        let word = sql.get(..len)?.to_ascii_lowercase();
        match (word.as_slice(), sql.get(len), sql.get(len + 1)) {
            (b"e", Some(b'\''), _) => return self.string(sql, len, true),
            (b"b" | b"x" | b"n", Some(b'\''), _) => return self.string(sql, len, false),
            (b"u", Some(b'&'), Some(b'\'')) => return self.string(sql, len + 1, false),
            (b"u", Some(b'&'), Some(b'"')) => return self.quoted(sql, len + 1),
            _ => {}
        }
        self.push(&word);
        self.setting = match (self.setting, word.as_slice()) {
            (Setting::Start | Setting::MayFollow, b"set") => Setting::Name,
            (Setting::Start, b"alter" | b"create") => Setting::MayFollow,
            (Setting::Start, _) => Setting::Never,
            (Setting::Name, b"to") => {
                self.value();
                Setting::Value
            }
            (setting, _) => setting,
        };
        Some(len)
    }

    /// What follows, up to the statement's end, is a parameter's value: it stands there as a literal.
    fn value(&mut self) {
        self.gap = true;
        self.literal(0);
        self.setting = Setting::Value;
    }

    /// A string whose quote stands at `start`, behind its prefix.
    fn string(&mut self, sql: &[u8], start: usize, escaped: bool) -> Option<usize> {
        let len = string_len(sql.get(start..)?, escaped)?;
        self.literal(start + len)
    }

    /// `"name"` or `U&"name"`, as it is written.
    fn quoted(&mut self, sql: &[u8], start: usize) -> Option<usize> {
        let name = sql.get(start + 1..)?;
        let mut len = 0;
        loop {
            len += memchr::memchr(b'"', name.get(len..)?)? + 1;
            if name.get(len) != Some(&b'"') {
                break;
            }
            len += 1;
        }
        self.setting = match self.setting {
            Setting::Start => Setting::Never,
            setting => setting,
        };
        let whole = sql.get(..start + 1 + len)?;
        self.push(whole);
        Some(whole.len())
    }

    /// A parameter, a string in dollar quotes, or just the sign.
    fn dollar(&mut self, sql: &[u8]) -> Option<usize> {
        let rest = sql.get(1..)?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        match digits {
            0 => {}
            1..=PARAMETER_DIGITS_MAX => {
                let parameter = sql.get(..1 + digits)?;
                self.push(parameter);
                return Some(parameter.len());
            }
            _ => return self.literal(1 + digits),
        }
        let in_tag = |byte: &&u8| is_word(**byte) && **byte != b'$';
        let tag_len = rest.iter().take_while(in_tag).count();
        if rest.get(tag_len) != Some(&b'$') {
            return self.symbol(b'$');
        }
        let tag = sql.get(..tag_len + 2)?;
        let body = sql.get(tag.len()..)?;
        let end = memchr::memmem::find(body, tag)?;
        self.literal(2 * tag.len() + end)
    }
}

/// How long the string is that begins with a quote; `None` if that can't be told.
///
/// A quote behind a backslash ends a string, or does not: that depends on the string's kind, on
/// `standard_conforming_strings`, and on whether the backslash is half a character.
fn string_len(sql: &[u8], escaped: bool) -> Option<usize> {
    let (mut at, mut backslashes, mut before) = (1, 0_usize, b'\'');
    loop {
        match sql.get(at)? {
            b'\\' => {
                if backslashes == 0 {
                    before = *sql.get(at - 1)?;
                }
                backslashes += 1;
            }
            b'\'' => {
                let in_doubt = backslashes > 0 && !before.is_ascii();
                let behind_backslash = backslashes % 2 == 1;
                if in_doubt || (behind_backslash && !escaped) {
                    return None;
                }
                if !behind_backslash {
                    if sql.get(at + 1) != Some(&b'\'') {
                        return Some(at + 1);
                    }
                    at += 1;
                }
                backslashes = 0;
            }
            _ => backslashes = 0,
        }
        at += 1;
    }
}

fn line_len(sql: &[u8]) -> usize {
    memchr::memchr2(b'\n', b'\r', sql).unwrap_or(sql.len())
}

/// Comments nest.
fn comment_len(sql: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(pair) = sql.get(at..at + 2) {
        match pair {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" if depth == 1 => return at + 2,
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    sql.len()
}

/// What a number runs into belongs to it, more or less: `0x1f`, `1_000`, `1.5e3`.
fn number_len(sql: &[u8]) -> usize {
    let part = |byte: &&u8| **byte == b'.' || (is_word(**byte) && **byte != b'$');
    sql.iter().take_while(part).count()
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || !byte.is_ascii()
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

#[cfg(test)]
mod tests;
