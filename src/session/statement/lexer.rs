//! Cuts SQL text into words, strings and the rest, by the rules of PostgreSQL's scanner (src/backend/parser/scan.l).
//!
//! A word is handed on at the next token, which tells whether it was a name's first part (`local.x`). Each state
//! reads a run of bytes at once: this code sees every byte of every query.

use super::leading::{Leading, Word};
use super::search::TempSearch;
use memchr::{memchr, memchr2};

/// Longest word looked at; longer ones match nothing.
const WORD_MAX: usize = 32;

/// Longest dollar-quote tag read. PostgreSQL has no limit; after a longer one the text counts as unreadable.
const TAG_MAX: usize = 64;

/// How far a string's end is looked for byte by byte.
const SHORT_STRING: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Between tokens.
    Blank,
    Word,
    /// After a word `u` and `&`: a quote may make it a string or a name with Unicode escapes.
    UnicodePrefix,
    /// After `-`.
    Dash,
    LineComment,
    /// After `/`.
    Slash,
    /// Inside `/* … */`, with the byte before.
    BlockComment {
        depth: u32,
        previous: u8,
    },
    String(Kind),
    /// After a backslash in a string of kind `Escaped`.
    StringEscape,
    /// Right after a quote that may have closed the string.
    StringQuote(Kind),
    /// In the white space after a string: if it has a newline and a quote follows, the string goes on.
    StringGap {
        kind: Kind,
        newline: bool,
    },
    /// After `-` in that white space.
    StringGapDash {
        kind: Kind,
        newline: bool,
    },
    /// In `-- …` in that white space.
    StringGapComment(Kind),
    /// Inside `"…"` or `U&"…"`.
    Quoted {
        unicode: bool,
    },
    /// Right after a quote that may have closed the name.
    QuotedQuote {
        unicode: bool,
    },
    /// After `$`: a tag, or a parameter such as `$1`.
    DollarTag,
    /// Inside `$tag$ … $tag$`: how much of the closing tag has matched.
    DollarQuote {
        matched: usize,
    },
    /// Nothing can be told about the rest.
    Unreadable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// `'…'`, `N'…'` and `U&'…'`: a backslash is an ordinary character to the scanner.
    Plain,
    /// `E'…'`, and `'…'` with standard_conforming_strings off.
    Escaped,
    /// `B'…'`, `X'…'`: neither backslash nor doubled quote is special.
    Bits,
}

/// Where in the text we are.
#[derive(Debug)]
pub(super) struct Lexer {
    state: State,
    standard_strings: bool,
    word: [u8; WORD_MAX],
    word_len: usize,
    /// The word is complete, but not handed on yet.
    word_waits: bool,
    word_quoted: bool,
    word_after_dot: bool,
    /// The last token was the dot after a word.
    after_dot: bool,
    tag: [u8; TAG_MAX],
    tag_len: usize,
    in_string: TempSearch,
}

impl Lexer {
    pub(super) fn new(standard_strings: bool) -> Self {
        Self {
            state: State::Blank,
            standard_strings,
            word: [0; WORD_MAX],
            word_len: 0,
            word_waits: false,
            word_quoted: false,
            word_after_dot: false,
            after_dot: false,
            tag: [0; TAG_MAX],
            tag_len: 0,
            in_string: TempSearch::default(),
        }
    }

    pub(super) fn feed(&mut self, mut text: &[u8], out: &mut Leading) {
        while let Some(&byte) = text.first() {
            let count = self.read(text, byte, out);
            text = &text[count..];
        }
    }

    /// The text has ended.
    pub(super) fn finish(&mut self, out: &mut Leading) {
        match self.state {
            State::Word | State::UnicodePrefix => self.end_word(false),
            State::QuotedQuote { unicode } => self.end_quoted(unicode, out),
            _ => {}
        }
        self.hand_on(false, out);
        out.end_statement();
    }

    /// Reads at least the first byte of `text`, at most up to a change of state; returns how many.
    fn read(&mut self, text: &[u8], byte: u8, out: &mut Leading) -> usize {
        match self.state {
            State::Blank => return self.blanks(text, out),
            State::Word => return self.in_word(text, out),
            State::UnicodePrefix => self.unicode_prefix(byte, out),
            State::Dash if byte == b'-' => self.state = State::LineComment,
            State::Slash if byte == b'*' => self.enter_comment(),
            State::Dash | State::Slash => {
                self.hand_on(false, out);
                self.blank(byte, out);
            }
            State::LineComment => match memchr2(b'\n', b'\r', text) {
                Some(at) => {
                    self.state = State::Blank;
                    return at + 1;
                }
                None => return text.len(),
            },
            State::BlockComment { depth, previous } => {
                return self.comment(depth, previous, text, byte);
            }
            State::String(kind) => return self.string(kind, text, out),
            State::StringEscape => {
                out.string_with_pg_temp();
                self.state = State::String(Kind::Escaped);
            }
            State::StringQuote(kind) if byte == b'\'' && kind != Kind::Bits => {
                self.in_string = TempSearch::default();
                self.state = State::String(kind);
            }
            State::StringQuote(kind) => self.string_gap(kind, false, byte, out),
            State::StringGap { kind, newline } => self.string_gap(kind, newline, byte, out),
            State::StringGapDash { kind, .. } if byte == b'-' => {
                self.state = State::StringGapComment(kind);
            }
            State::StringGapDash { .. } => self.blank(byte, out),
            State::StringGapComment(kind) if matches!(byte, b'\n' | b'\r') => {
                self.state = State::StringGap {
                    kind,
                    newline: true,
                };
            }
            State::StringGapComment(_) => {}
            State::Quoted { unicode } => return self.quoted(unicode, text),
            State::QuotedQuote { unicode } if byte == b'"' => {
                self.push(b"\"");
                self.state = State::Quoted { unicode };
            }
            State::QuotedQuote { unicode } => {
                self.end_quoted(unicode, out);
                self.blank(byte, out);
            }
            State::DollarTag => self.dollar_tag(byte, out),
            State::DollarQuote { matched } => return self.dollar_quote(matched, text, byte, out),
            State::Unreadable => return text.len(),
        }
        1
    }

    fn blanks(&mut self, text: &[u8], out: &mut Leading) -> usize {
        for (at, &byte) in text.iter().enumerate() {
            self.blank(byte, out);
            if !matches!(self.state, State::Blank) {
                return at + 1;
            }
        }
        text.len()
    }

    /// A byte between tokens.
    fn blank(&mut self, byte: u8, out: &mut Leading) {
        self.state = State::Blank;
        match byte {
            _ if is_space(byte) => {}
            // Comments are no tokens: the word before may still wait for its dot.
            b'-' => self.state = State::Dash,
            b'/' => self.state = State::Slash,
            _ => {
                self.hand_on(byte == b'.', out);
                self.token(byte, out);
            }
        }
    }

    /// The first byte of a token.
    fn token(&mut self, byte: u8, out: &mut Leading) {
        match byte {
            b'\'' => self.open_string(self.plain(), out),
            b'"' => self.open_quoted(false),
            b'$' => {
                self.tag_len = 0;
                self.state = State::DollarTag;
            }
            b';' => out.end_statement(),
            _ if is_word_start(byte) => {
                self.word[0] = byte.to_ascii_lowercase();
                self.word_len = 1;
                self.state = State::Word;
            }
            _ => {}
        }
    }

    fn in_word(&mut self, text: &[u8], out: &mut Leading) -> usize {
        let mut len = 0;
        while let Some(&byte) = text.get(len)
            && let folded @ 1.. = FOLDED[usize::from(byte)]
        {
            if let Some(free) = self.word.get_mut(self.word_len.saturating_add(len)) {
                *free = folded;
            }
            len += 1;
        }
        self.word_len = self.word_len.saturating_add(len);
        let Some(&byte) = text.get(len) else {
            return len;
        };
        let only = if self.word_len == 1 { self.word[0] } else { 0 };
        match (only, byte) {
            (b'e', b'\'') => self.open_string(Kind::Escaped, out),
            (b'b' | b'x', b'\'') => self.open_string(Kind::Bits, out),
            (b'n', b'\'') => self.open_string(self.plain(), out),
            (b'u', b'&') => self.state = State::UnicodePrefix,
            _ => {
                self.end_word(false);
                self.blank(byte, out);
            }
        }
        len + 1
    }

    fn unicode_prefix(&mut self, byte: u8, out: &mut Leading) {
        match byte {
            b'\'' => {
                self.open_string(Kind::Plain, out);
                // Its escapes may spell anything.
                out.string_with_pg_temp();
            }
            b'"' => self.open_quoted(true),
            _ => {
                // The word `u` and an operator.
                self.end_word(false);
                self.hand_on(false, out);
                self.blank(byte, out);
            }
        }
    }

    fn enter_comment(&mut self) {
        self.state = State::BlockComment {
            depth: 1,
            previous: 0,
        };
    }

    fn comment(&mut self, depth: u32, previous: u8, text: &[u8], byte: u8) -> usize {
        if !matches!(previous, b'*' | b'/') {
            let len = memchr2(b'*', b'/', text).map_or(text.len(), |at| at + 1);
            let previous = text[len - 1];
            self.state = State::BlockComment { depth, previous };
            return len;
        }
        self.state = match (previous, byte) {
            (b'*', b'/') if depth == 1 => State::Blank,
            (b'*', b'/') => State::BlockComment {
                depth: depth - 1,
                previous: 0,
            },
            (b'/', b'*') => State::BlockComment {
                depth: depth.saturating_add(1),
                previous: 0,
            },
            _ => State::BlockComment {
                depth,
                previous: byte,
            },
        };
        1
    }

    /// The kind of a string without a prefix.
    fn plain(&self) -> Kind {
        match self.standard_strings {
            true => Kind::Plain,
            false => Kind::Escaped,
        }
    }

    fn open_string(&mut self, kind: Kind, out: &mut Leading) {
        self.in_string = TempSearch::default();
        self.state = State::String(kind);
        out.string();
    }

    fn string(&mut self, kind: Kind, text: &[u8], out: &mut Leading) -> usize {
        // Most strings are shorter than a call of memchr is worth.
        let (start, rest) = text.split_at(text.len().min(SHORT_STRING));
        let is_end = |byte: &u8| *byte == b'\'' || (*byte == b'\\' && kind == Kind::Escaped);
        let end = start.iter().position(is_end).or_else(|| {
            let end = match kind {
                Kind::Escaped => memchr2(b'\'', b'\\', rest),
                Kind::Plain | Kind::Bits => memchr(b'\'', rest),
            };
            end.map(|at| start.len() + at)
        });
        let len = end.unwrap_or(text.len());
        self.search_string(&text[..len], out);
        match text.get(len) {
            None => return len,
            Some(b'\\') => self.state = State::StringEscape,
            Some(_) => self.state = State::StringQuote(kind),
        }
        len + 1
    }

    /// A byte after a string: `quotecontinue` of scan.l.
    fn string_gap(&mut self, kind: Kind, newline: bool, byte: u8, out: &mut Leading) {
        match byte {
            b'\'' if newline => self.state = State::String(kind),
            b'-' => self.state = State::StringGapDash { kind, newline },
            _ if is_space(byte) => {
                let newline = newline || matches!(byte, b'\n' | b'\r');
                self.state = State::StringGap { kind, newline };
            }
            _ => self.blank(byte, out),
        }
    }

    fn search_string(&mut self, run: &[u8], out: &mut Leading) {
        if self.in_string.read(run) {
            out.string_with_pg_temp();
        }
    }

    fn open_quoted(&mut self, unicode: bool) {
        self.word_len = 0;
        self.state = State::Quoted { unicode };
    }

    fn quoted(&mut self, unicode: bool, text: &[u8]) -> usize {
        let Some(len) = memchr(b'"', text) else {
            self.push(text);
            return text.len();
        };
        self.push(&text[..len]);
        self.state = State::QuotedQuote { unicode };
        len + 1
    }

    fn end_quoted(&mut self, unicode: bool, out: &mut Leading) {
        if unicode {
            out.unreadable_name();
        } else {
            self.end_word(true);
        }
    }

    fn dollar_tag(&mut self, byte: u8, out: &mut Leading) {
        let continues = is_word_start(byte) || (byte.is_ascii_digit() && self.tag_len > 0);
        if byte == b'$' {
            self.state = State::DollarQuote { matched: 0 };
            self.in_string = TempSearch::default();
            out.string();
        } else if !continues {
            self.blank(byte, out);
        } else if self.tag_len < TAG_MAX {
            self.tag[self.tag_len] = byte;
            self.tag_len += 1;
        } else {
            self.state = State::Unreadable;
            out.unreadable_text();
        }
    }

    /// The closing tag is `$`, the tag, `$`: `matched` bytes of it have been seen.
    fn dollar_quote(&mut self, matched: usize, text: &[u8], byte: u8, out: &mut Leading) -> usize {
        if matched == 0 {
            let len = memchr(b'$', text);
            let matched = usize::from(len.is_some());
            let len = len.map_or(text.len(), |at| at + 1);
            self.search_string(&text[..len], out);
            self.state = State::DollarQuote { matched };
            return len;
        }
        self.search_string(&text[..1], out);
        let expected = match self.tag[..self.tag_len].get(matched - 1) {
            Some(expected) => *expected,
            None => b'$',
        };
        self.state = if byte != expected {
            // No tag contains `$`, so a mismatch can only start over at this byte.
            State::DollarQuote {
                matched: usize::from(byte == b'$'),
            }
        } else if matched == self.tag_len + 1 {
            State::Blank
        } else {
            State::DollarQuote {
                matched: matched + 1,
            }
        };
        1
    }

    fn push(&mut self, bytes: &[u8]) {
        let free = self.word.get_mut(self.word_len..).unwrap_or_default();
        let count = free.len().min(bytes.len());
        free[..count].copy_from_slice(&bytes[..count]);
        self.word_len = self.word_len.saturating_add(bytes.len());
    }

    fn end_word(&mut self, quoted: bool) {
        self.word_waits = true;
        self.word_quoted = quoted;
        self.state = State::Blank;
    }

    /// A token begins: the word before it can be judged.
    #[inline]
    fn hand_on(&mut self, dot_follows: bool, out: &mut Leading) {
        if !(self.word_waits || self.after_dot || self.word_after_dot) {
            return;
        }
        let after_dot = std::mem::replace(&mut self.after_dot, dot_follows && self.word_waits);
        if std::mem::take(&mut self.word_waits) {
            out.word(Word {
                name: self.word.get(..self.word_len).unwrap_or_default(),
                may_be_keyword: !(self.word_quoted || self.word_after_dot || dot_follows),
                is_dotted: self.word_after_dot || dot_follows,
            });
        }
        self.word_after_dot = after_dot;
    }
}

/// What a byte is in a word, folded to lower case as PostgreSQL does with ASCII; 0 if it ends the word.
const FOLDED: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let part = byte as u8;
        if is_word_start(part) || part.is_ascii_digit() || part == b'$' {
            table[byte] = part.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

const fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}
