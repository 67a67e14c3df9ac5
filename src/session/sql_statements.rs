//! Statements prepared by SQL's PREPARE, which follow their session: what the server said of them is kept, and the same
//! PREPARE is sent to the next backend before a text that may use them. Pure: no I/O.

use super::prepared::{Name, Scope};
use super::reading::has_literal;
use super::statement::{Effects, StatementReader};
use crate::backend::settings::{Settings, literal};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Statements of one session that follow it, and the bytes of their texts; beyond it the next ones pin.
const COUNT_MAX: usize = 200;
const BYTES_MAX: usize = 256 * 1024;

/// Texts that name such statements.
const NAMED: Effects = Effects::SQL_EXECUTE
    .union(Effects::SQL_DEALLOCATE)
    .union(Effects::SQL_PREPARE);

/// One statement.
#[derive(Debug)]
pub struct SqlStatement {
    /// Another for every PREPARE: the same name may come to mean something else.
    pub id: u64,
    /// The PREPARE, as the server keeps it.
    pub text: String,
    /// What it leaves behind when it is executed.
    pub effects: Effects,
    /// The settings that its literals were read under, if it has some.
    pub reading: Option<Settings>,
    /// It can be prepared elsewhere; else its session stays where it is.
    pub follows: bool,
}

/// One session's statements, by name.
#[derive(Debug, Default)]
pub struct SqlStatements {
    by_name: BTreeMap<String, Arc<SqlStatement>>,
}

impl SqlStatements {
    /// None.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// By its name.
    pub fn find(&self, name: &str) -> Option<&Arc<SqlStatement>> {
        self.by_name.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Arc<SqlStatement>)> {
        self.by_name.iter()
    }

    /// A name has lost its meaning.
    pub fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// DISCARD ALL, DEALLOCATE ALL.
    pub fn clear(&mut self) {
        self.by_name.clear();
    }

    /// A PREPARE that the server has told of; `reading` is `None` where what was set when it ran is not known.
    pub fn insert(&mut self, id: u64, name: &str, text: &str, reading: Option<&Settings>) {
        let bytes: usize = self.by_name.values().map(|it| it.text.len()).sum();
        let has_room = self.by_name.len() < COUNT_MAX && bytes + text.len() <= BYTES_MAX;
        let has_literal = has_literal(text.as_bytes());
        let statement = SqlStatement {
            id,
            text: text.to_owned(),
            effects: effects_of(text.as_bytes()).without(Effects::SQL_PREPARE),
            reading: reading
                .filter(|_| has_literal)
                .map(|it| Scope::of(it).reading),
            follows: has_room
                && is_one_prepare(text)
                && name.is_ascii()
                && (reading.is_some() || !has_literal),
        };
        self.by_name.insert(name.to_owned(), Arc::new(statement));
    }
}

fn effects_of(text: &[u8]) -> Effects {
    let mut reader = StatementReader::default();
    reader.feed(text);
    reader.finish().read_set_config(text)
}

/// It is a PREPARE and nothing else. (What the server keeps is all of the text that the PREPARE came in.)
pub fn is_one_prepare(text: &str) -> bool {
    let text = text.trim().trim_end_matches(';').as_bytes();
    let (first, rest) = text.split_at_checked(7).unwrap_or_default();
    first.eq_ignore_ascii_case(b"prepare")
        && rest.first().is_some_and(|byte| !is_word(*byte))
        && !rest.contains(&b';')
}

/// Which of a session's statements a text may use, show, make or take away.
#[derive(Debug, PartialEq, Eq)]
pub enum Uses {
    /// None.
    Nothing,
    /// Those that it names.
    Named(Vec<Name>),
    /// Any: it runs what it does not show, or shows them all.
    Anything,
}

/// Reads a text for what it may use. SQL in a string that a function executes is found by its first word.
pub fn uses(text: &[u8]) -> Uses {
    let effects = effects_of(text);
    if effects.contains(Effects::STATEMENTS_SHOWN.union(Effects::OPAQUE)) {
        return Uses::Anything;
    }
    let named = names_behind(text, &[b"execute", b"prepare", b"deallocate"]);
    let hidden = mentions_execute(text) > named.len();
    match (effects.contains(NAMED), hidden) {
        (_, true) if !effects.contains(Effects::SQL_EXECUTE) => Uses::Anything,
        (true, _) => Uses::Named(named.into_iter().map(|(_, name)| name).collect()),
        (false, _) => Uses::Nothing,
    }
}

fn mentions_execute(text: &[u8]) -> usize {
    const WORD: &[u8] = b"execute";
    let begins = memchr::memchr2_iter(b'e', b'E', text);
    let found = begins.filter(|&at| {
        let word = text.get(at..at + WORD.len());
        word.is_some_and(|word| word.eq_ignore_ascii_case(WORD))
    });
    found.count()
}

/// A text may name the view that shows prepared statements. Quick, as every text is looked at.
pub fn may_show(text: &[u8]) -> bool {
    const BEFORE: &[u8] = b"pg_prepared";
    memchr::memchr_iter(b'_', text).any(|at| {
        let before = at
            .checked_sub(BEFORE.len())
            .and_then(|start| text.get(start..at));
        before.is_some_and(|before| before.eq_ignore_ascii_case(BEFORE))
    })
}

/// A text may take such statements away.
pub fn may_deallocate(text: &[u8]) -> bool {
    effects_of(text).contains(Effects::SQL_DEALLOCATE.union(Effects::OPAQUE))
}

/// A name as SQL writes it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// SQL that does the same, or nothing where that is not possible.
pub fn quietly(sql: &str) -> String {
    let block = format!(
        "BEGIN EXECUTE {}; EXCEPTION WHEN OTHERS THEN NULL; END",
        literal(sql)
    );
    format!("DO {}", literal(&block))
}

/// Where a text names statements behind EXECUTE or PREPARE, and which; also DEALLOCATE PREPARE.
pub fn names_used(text: &[u8]) -> Vec<(Range<usize>, Name)> {
    names_behind(text, &[b"execute", b"prepare"])
}

fn names_behind(text: &[u8], keywords: &[&[u8]]) -> Vec<(Range<usize>, Name)> {
    let mut found = Vec::new();
    let mut tokens = Tokens { text, at: 0 };
    let mut next = tokens.next_token();
    while let Some(token) = next {
        next = tokens.next_token();
        let is_keyword = |token: &Range<usize>| {
            let word = &text[token.clone()];
            (keywords.iter()).any(|keyword| word.eq_ignore_ascii_case(keyword))
        };
        let name = next
            .clone()
            .filter(|next| is_keyword(&token) && !is_keyword(next));
        if let Some(name) = name
            && let Some(meaning) = identifier(&text[name.clone()])
        {
            found.push((name, meaning));
        }
    }
    found
}

/// What an identifier means, folded or unquoted.
fn identifier(token: &[u8]) -> Option<Name> {
    match token {
        [b'"', inner @ .., b'"'] => {
            let inner = std::str::from_utf8(inner).ok()?;
            Some(inner.replace("\"\"", "\"").into_bytes().into())
        }
        [first, ..] if is_word(*first) && !first.is_ascii_digit() => {
            Some(token.to_ascii_lowercase().into())
        }
        _ => None,
    }
}

/// Words, quoted words and single other bytes of a text; comments and literals are passed over.
struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

impl Tokens<'_> {
    fn next_token(&mut self) -> Option<Range<usize>> {
        loop {
            let start = self.at;
            let rest = self.text.get(start..)?;
            let len = match rest.first()? {
                byte if byte.is_ascii_whitespace() => 1,
                b'-' if rest.starts_with(b"--") => until(rest, b"\n"),
                b'/' if rest.starts_with(b"/*") => until(rest, b"*/"),
                b'\'' => quoted_len(rest, false),
                b'e' | b'E' if rest.get(1) == Some(&b'\'') => 1 + quoted_len(&rest[1..], true),
                b'$' if dollar_tag(rest).is_some() => {
                    let tag = dollar_tag(rest)?;
                    tag.len() + until(&rest[tag.len()..], tag)
                }
                b'"' => {
                    self.at = start + quoted_len(rest, false);
                    return Some(start..self.at);
                }
                byte if is_word(*byte) => {
                    let len = rest.iter().take_while(|byte| is_word(**byte)).count();
                    self.at = start + len;
                    return Some(start..self.at);
                }
                _ => {
                    self.at = start + 1;
                    return Some(start..self.at);
                }
            };
            self.at = start + len;
        }
    }
}

/// How long what begins with a quote is, up to the same quote alone; with `escapes` a backslash takes the next byte along.
fn quoted_len(text: &[u8], escapes: bool) -> usize {
    let (quote, mut at) = (text[0], 1);
    while let Some(&byte) = text.get(at) {
        at += match byte {
            b'\\' if escapes => 2,
            byte if byte != quote => 1,
            _ if text.get(at + 1) == Some(&quote) => 2,
            _ => return at + 1,
        };
    }
    text.len()
}

/// How many bytes there are up to and with `end`, or all.
fn until(text: &[u8], end: &[u8]) -> usize {
    let at = text.windows(end.len()).position(|here| here == end);
    at.map_or(text.len(), |at| at + end.len())
}

/// `$tag$`
fn dollar_tag(text: &[u8]) -> Option<&[u8]> {
    let end = 1 + text.get(1..)?.iter().position(|&byte| byte == b'$')?;
    let inner = &text[1..end];
    let is_tag =
        inner.iter().all(|byte| is_word(*byte)) && !inner.first().is_some_and(u8::is_ascii_digit);
    is_tag.then(|| &text[..=end])
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_prepare_alone_can_be_sent_again() {
        for (text, follows) in [
            ("PREPARE a AS SELECT 1", true),
            ("prepare a(int) as select $1;", true),
            ("prepare\n\"a\" as select 1 ; ", true),
            ("prepare a as select 1; prepare b as select 2", false),
            ("begin; prepare a as select 1", false),
            ("prepared", false),
            ("", false),
        ] {
            assert_eq!(is_one_prepare(text), follows, "{text}");
        }
    }

    #[test]
    fn a_literal_needs_its_settings() {
        let settings = Settings::from_pairs([("timezone".into(), "UTC".into())]);
        let mut all = SqlStatements::default();
        all.insert(1, "a", "PREPARE a AS SELECT '1'::timestamptz", None);
        all.insert(
            2,
            "b",
            "PREPARE b AS SELECT '1'::timestamptz",
            Some(&settings),
        );
        all.insert(3, "c", "PREPARE c AS SELECT 1", None);
        let follows: Vec<_> = all.iter().map(|(_, it)| it.follows).collect();
        assert_eq!(follows, [false, true, true]);
        assert_eq!(all.find("b").unwrap().reading, Some(settings));
    }

    #[test]
    fn too_many_stay_where_they_are() {
        let mut all = SqlStatements::default();
        for n in 0..=COUNT_MAX as u64 {
            all.insert(n, &format!("s{n}"), "PREPARE s AS SELECT 1", None);
        }
        let staying = all.iter().filter(|(_, it)| !it.follows).count();
        assert_eq!(staying, 1);
    }

    #[test]
    fn names_are_found_behind_their_keywords() {
        for (text, names) in [
            ("EXECUTE a", &["a"][..]),
            ("execute \"A\"\"b\"(1)", &["A\"b"]),
            (
                "explain (analyze) execute a ; prepare B as select 1",
                &["a", "b"],
            ),
            ("create table t as execute x", &["x"]),
            (
                "select 'execute a', $$execute b$$ -- execute c\n, /* execute d */ 1",
                &[],
            ),
            ("select e'\\' execute a', 'it''s execute b'", &[]),
            ("select 'a\\' , execute c", &["c"]),
            ("select $1, execute", &[]),
            ("execute", &[]),
            ("execute $1", &[]),
        ] {
            let found = names_used(text.as_bytes());
            let found: Vec<_> = found
                .iter()
                .map(|(_, name)| String::from_utf8_lossy(name))
                .collect();
            assert_eq!(found, names, "{text}");
        }
        let text = b"execute  abc(1)";
        assert_eq!(names_used(text)[0].0, 9..12);
    }

    #[test]
    fn what_may_use_them() {
        let named = |name: &str| Uses::Named(vec![name.as_bytes().into()]);
        for (text, expected) in [
            ("execute a", named("a")),
            ("explain execute A", named("a")),
            ("deallocate prepare a", named("a")),
            ("prepare a as select 1", named("a")),
            ("do $$ $$", Uses::Anything),
            ("call p()", Uses::Anything),
            ("select * from PG_Prepared_Statements", Uses::Anything),
            ("select f('Execute a')", Uses::Anything),
            ("select 1", Uses::Nothing),
        ] {
            assert_eq!(uses(text.as_bytes()), expected, "{text}");
        }
        assert!(may_show(b"select 1 from pg_catalog.PG_prepared_statements"));
        assert!(!may_show(b"select pg_prepared from prepared_statements"));
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
