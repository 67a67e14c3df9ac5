//! Reads SQL text for what it leaves behind in the server's session. A lexer, not a grammar: it skips comments,
//! strings and dollar quotes, and looks at the leading words of each statement and at a few function names.
//!
//! Text comes in pieces of any size ([`StatementReader::feed`]), so a statement of a gigabyte is read in constant
//! memory. What text can't show (functions that change the session) is for other witnesses to find.
//!
//! The rules are those of PostgreSQL's own scanner (src/backend/parser/scan.l): nested comments, `E''` escapes, `$tag$`
//! quotes, identifiers of letters, digits, `_`, `$` and any byte above 127.

/// What a statement leaves behind, as a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Effects(u16);

impl Effects {
    /// SET, RESET, set_config: run-time parameters, role, session authorization.
    pub const SETTINGS: Effects = Effects(1);
    /// PREPARE name AS …
    pub const SQL_PREPARE: Effects = Effects(1 << 1);
    /// CREATE TEMP …, SELECT … INTO TEMP, anything named in pg_temp.
    pub const TEMP_OBJECT: Effects = Effects(1 << 2);
    /// DECLARE … WITH HOLD
    pub const HOLD_CURSOR: Effects = Effects(1 << 3);
    /// LISTEN
    pub const LISTEN: Effects = Effects(1 << 4);
    /// Session-level advisory locks.
    pub const ADVISORY_LOCK: Effects = Effects(1 << 5);
    /// LOAD
    pub const LOAD: Effects = Effects(1 << 6);
    /// BEGIN, START TRANSACTION: a transaction block.
    pub const TRANSACTION: Effects = Effects(1 << 7);

    /// True if any of `other` is in the set.
    pub fn contains(self, other: Effects) -> bool {
        self.0 & other.0 != 0
    }

    /// True if there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl std::ops::BitOrAssign for Effects {
    fn bitor_assign(&mut self, other: Effects) {
        self.0 |= other.0;
    }
}

/// Longest word looked at; longer ones match nothing.
const WORD_MAX: usize = 32;

/// Longest dollar-quote tag: an identifier's length (NAMEDATALEN) and some.
const TAG_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Normal,
    Word,
    /// After `-`, and inside `-- …`.
    Dash,
    LineComment,
    /// After `/`.
    Slash,
    /// Inside `/* … */`, with the byte before.
    BlockComment {
        depth: u32,
        previous: u8,
    },
    /// Inside `'…'`.
    String {
        escapes: bool,
    },
    /// After a backslash in `E'…'`.
    StringEscape,
    /// Inside `"…"`.
    Quoted,
    /// After `$`: a tag, or a parameter such as `$1`.
    DollarTag,
    /// Inside `$tag$ … $tag$`: how much of the closing tag has matched.
    DollarQuote {
        matched: usize,
    },
}

/// Reads one Query or Parse text.
#[derive(Debug)]
pub struct StatementReader {
    state: State,
    word: [u8; WORD_MAX],
    word_len: usize,
    tag: [u8; TAG_MAX],
    tag_len: usize,
    statement: Statement,
    effects: Effects,
}

/// Where in one statement we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Statement {
    /// No word yet.
    Start,
    Set,
    /// CREATE, with only OR REPLACE, LOCAL or GLOBAL so far.
    Create,
    Prepare,
    Declare,
    DeclareWith,
    /// SELECT, WITH, VALUES …: INTO TEMP may follow.
    Query,
    Into,
    StartWord,
    Other,
}

impl Default for StatementReader {
    fn default() -> Self {
        Self {
            state: State::Normal,
            word: [0; WORD_MAX],
            word_len: 0,
            tag: [0; TAG_MAX],
            tag_len: 0,
            statement: Statement::Start,
            effects: Effects::default(),
        }
    }
}

impl StatementReader {
    /// Reads the next piece of the text.
    pub fn feed(&mut self, text: &[u8]) {
        for &byte in text {
            self.step(byte);
        }
    }

    /// The text has ended; what it leaves behind.
    pub fn finish(mut self) -> Effects {
        self.step(b';');
        self.effects
    }

    fn step(&mut self, byte: u8) {
        match self.state {
            State::Normal => self.normal(byte),
            State::Word => self.in_word(byte),
            State::Dash if byte == b'-' => self.state = State::LineComment,
            State::Slash if byte == b'*' => {
                self.state = State::BlockComment {
                    depth: 1,
                    previous: 0,
                };
            }
            State::Dash | State::Slash => self.normal(byte),
            State::LineComment if matches!(byte, b'\n' | b'\r') => self.state = State::Normal,
            State::LineComment => {}
            State::BlockComment { depth, previous } => self.comment(depth, previous, byte),
            // A doubled quote leaves and enters again: the same as staying.
            State::String { .. } if byte == b'\'' => self.state = State::Normal,
            State::String { escapes: true } if byte == b'\\' => self.state = State::StringEscape,
            State::String { .. } => {}
            State::StringEscape => self.state = State::String { escapes: true },
            State::Quoted if byte == b'"' => self.end_word(),
            State::Quoted => self.push(byte),
            State::DollarTag => self.dollar_tag(byte),
            State::DollarQuote { matched } => self.dollar_quote(matched, byte),
        }
    }

    fn normal(&mut self, byte: u8) {
        self.state = match byte {
            b'\'' => State::String { escapes: false },
            b'"' => {
                self.word_len = 0;
                State::Quoted
            }
            b'-' => State::Dash,
            b'/' => State::Slash,
            b'$' => {
                self.tag_len = 0;
                State::DollarTag
            }
            b';' => {
                self.end_statement();
                State::Normal
            }
            _ if is_word_start(byte) => {
                self.word_len = 0;
                self.push(byte.to_ascii_lowercase());
                State::Word
            }
            _ => State::Normal,
        };
    }

    fn in_word(&mut self, byte: u8) {
        if is_word_start(byte) || byte.is_ascii_digit() || byte == b'$' {
            self.push(byte.to_ascii_lowercase());
        } else if byte == b'\'' && self.word_len == 1 && self.word[0] == b'e' {
            self.state = State::String { escapes: true };
        } else {
            self.end_word();
            self.normal(byte);
        }
    }

    fn comment(&mut self, depth: u32, previous: u8, byte: u8) {
        self.state = match (previous, byte) {
            (b'*', b'/') if depth == 1 => State::Normal,
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
    }

    fn dollar_tag(&mut self, byte: u8) {
        let first = self.tag_len == 0;
        if byte == b'$' {
            self.state = State::DollarQuote { matched: 0 };
        } else if (is_word_start(byte) || (byte.is_ascii_digit() && !first))
            && self.tag_len < TAG_MAX
        {
            self.tag[self.tag_len] = byte;
            self.tag_len += 1;
        } else {
            self.normal(byte);
        }
    }

    /// The closing tag is `$`, the tag, `$`: `matched` bytes of it have been seen.
    fn dollar_quote(&mut self, matched: usize, byte: u8) {
        let expected = match matched {
            0 => b'$',
            n if n <= self.tag_len => self.tag[n - 1],
            _ => b'$',
        };
        self.state = if byte == expected {
            if matched == self.tag_len + 1 {
                State::Normal
            } else {
                State::DollarQuote {
                    matched: matched + 1,
                }
            }
        } else {
            // No tag contains `$`, so a mismatch can only start over at this byte.
            State::DollarQuote {
                matched: usize::from(byte == b'$'),
            }
        };
    }

    fn push(&mut self, byte: u8) {
        if self.word_len < WORD_MAX {
            self.word[self.word_len] = byte;
        }
        self.word_len = self.word_len.saturating_add(1);
    }

    fn end_statement(&mut self) {
        self.statement = Statement::Start;
    }

    fn end_word(&mut self) {
        self.state = State::Normal;
        let mut word = [0; WORD_MAX];
        let len = if self.word_len <= WORD_MAX {
            self.word_len
        } else {
            0
        };
        word[..len].copy_from_slice(&self.word[..len]);
        let word = &word[..len];
        self.notice_name(word);
        self.statement = self.next(word);
    }

    /// Function and schema names count wherever they stand.
    fn notice_name(&mut self, word: &[u8]) {
        match word {
            b"set_config" => self.effects |= Effects::SETTINGS,
            b"pg_advisory_lock"
            | b"pg_advisory_lock_shared"
            | b"pg_try_advisory_lock"
            | b"pg_try_advisory_lock_shared" => self.effects |= Effects::ADVISORY_LOCK,
            b"pg_temp" => self.effects |= Effects::TEMP_OBJECT,
            _ => {}
        }
    }

    /// The next word of a statement.
    fn next(&mut self, word: &[u8]) -> Statement {
        match (self.statement, word) {
            (Statement::Start, _) => self.first_word(word),
            (Statement::Set, b"local" | b"transaction" | b"constraints") => Statement::Other,
            (Statement::Set, _) => self.found(Effects::SETTINGS),
            (Statement::Prepare, b"transaction") => Statement::Other,
            (Statement::Prepare, _) => self.found(Effects::SQL_PREPARE),
            // CREATE [OR REPLACE] [GLOBAL | LOCAL] TEMP …
            (Statement::Create | Statement::Into, b"temp" | b"temporary") => {
                self.found(Effects::TEMP_OBJECT)
            }
            (Statement::Create, b"or" | b"replace" | b"local" | b"global") => Statement::Create,
            (Statement::Into, b"local" | b"global") => Statement::Into,
            (Statement::Into, _) => Statement::Query,
            (Statement::Query, b"into") => Statement::Into,
            (Statement::Declare, b"with") => Statement::DeclareWith,
            (Statement::DeclareWith, b"hold") => self.found(Effects::HOLD_CURSOR),
            (Statement::DeclareWith, _) => Statement::Declare,
            (Statement::StartWord, b"transaction") => self.found(Effects::TRANSACTION),
            (Statement::Query, _) => Statement::Query,
            (Statement::Declare, _) => Statement::Declare,
            _ => Statement::Other,
        }
    }

    fn first_word(&mut self, word: &[u8]) -> Statement {
        match word {
            b"set" => Statement::Set,
            b"reset" => self.found(Effects::SETTINGS),
            b"prepare" => Statement::Prepare,
            b"create" => Statement::Create,
            b"declare" => Statement::Declare,
            b"listen" => self.found(Effects::LISTEN),
            b"load" => self.found(Effects::LOAD),
            b"begin" => self.found(Effects::TRANSACTION),
            b"start" => Statement::StartWord,
            b"select" | b"with" | b"values" | b"table" | b"explain" => Statement::Query,
            _ => Statement::Other,
        }
    }

    fn found(&mut self, effect: Effects) -> Statement {
        self.effects |= effect;
        Statement::Other
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, piece: usize) -> Effects {
        let mut reader = StatementReader::default();
        for piece in text.as_bytes().chunks(piece) {
            reader.feed(piece);
        }
        reader.finish()
    }

    #[test]
    fn what_a_statement_leaves_behind() {
        const NONE: Effects = Effects(0);
        let cases = [
            ("select 1", NONE),
            ("", NONE),
            ("set x = 1", Effects::SETTINGS),
            ("SET SESSION x TO 1", Effects::SETTINGS),
            ("set local x = 1", NONE),
            ("set transaction isolation level serializable", NONE),
            ("set constraints all deferred", NONE),
            (
                "set session characteristics as transaction read only",
                Effects::SETTINGS,
            ),
            ("set role bob", Effects::SETTINGS),
            ("reset all", Effects::SETTINGS),
            (
                "  -- set x\n /* set /* nested */ y */ select 'set' ; ",
                NONE,
            ),
            ("select 1; set x = 1", Effects::SETTINGS),
            ("update t set a = 1", NONE),
            ("select set_config('a','b',false)", Effects::SETTINGS),
            (
                "select pg_catalog.\"set_config\"('a','b',false)",
                Effects::SETTINGS,
            ),
            ("select 'set_config'", NONE),
            ("select $$set_config$$, $a$ $$ ; set x $ $a $a$", NONE),
            ("select $1, $2; set x = 1", Effects::SETTINGS),
            ("select a$b$c; set x = 1", Effects::SETTINGS),
            ("select 'it''s'; set x = 1", Effects::SETTINGS),
            ("select e'it\\'s; set x = 1'", NONE),
            ("select E'\\\\'; set x = 1", Effects::SETTINGS),
            ("select 'a\\'; set x = 1", Effects::SETTINGS),
            ("prepare p as select 1", Effects::SQL_PREPARE),
            ("prepare transaction 'x'", NONE),
            ("create temp table t (a int)", Effects::TEMP_OBJECT),
            (
                "create or replace local temporary view v as select 1",
                Effects::TEMP_OBJECT,
            ),
            ("create table t (temp int, temporary int)", NONE),
            ("create table pg_temp.t (a int)", Effects::TEMP_OBJECT),
            ("select 1 into temp t", Effects::TEMP_OBJECT),
            ("select 1 into t", NONE),
            ("declare c cursor for select 1", NONE),
            (
                "declare c cursor with hold for select 1",
                Effects::HOLD_CURSOR,
            ),
            ("declare c cursor without hold for select 1", NONE),
            ("listen x", Effects::LISTEN),
            ("unlisten x", NONE),
            ("notify x", NONE),
            ("select pg_advisory_lock(1)", Effects::ADVISORY_LOCK),
            (
                "select pg_try_advisory_lock_shared(1, 2)",
                Effects::ADVISORY_LOCK,
            ),
            ("select pg_advisory_xact_lock(1)", NONE),
            ("select pg_advisory_unlock(1)", NONE),
            ("load 'auto_explain'", Effects::LOAD),
            ("begin", Effects::TRANSACTION),
            ("start transaction read only", Effects::TRANSACTION),
            ("commit", NONE),
            ("select 1 - 2 / 3; load 'x'", Effects::LOAD),
        ];
        for (text, expected) in cases {
            for piece in [1, 2, 3, 7, 1000] {
                assert_eq!(read(text, piece), expected, "{text} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn effects_of_all_statements_of_a_string_add_up() {
        let effects = read("begin; listen a; create temp table b(); commit", 5);
        assert!(effects.contains(Effects::LISTEN));
        assert!(effects.contains(Effects::TEMP_OBJECT));
        assert!(effects.contains(Effects::TRANSACTION));
        assert!(!effects.contains(Effects::SETTINGS));
    }
}
