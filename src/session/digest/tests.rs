use super::*;

fn text(sql: &str) -> String {
    Digest::of(sql.as_bytes(), true).text().to_owned()
}

#[test]
fn literals_comments_and_white_space_go() {
    for (sql, expected) in [
        ("SELECT  1;", "select ?"),
        ("select 'a''b', 1.5e-3, 0x1F, 1_000, .5", "select ?-?, .?"),
        (
            "SELECT * FROM t WHERE a IN (1, 2 ,'x')",
            "select * from t where a in (?)",
        ),
        ("select e'it\\'s', E'a\\\\'", "select ?"),
        (
            "select U&'\\0061' UESCAPE '!', n'x', B'01', x'1F'",
            "select ? uescape ?",
        ),
        (
            "select $$a$b$$, $tag$ $$ '$tag$ , $1, $2",
            "select ?, $1, $2",
        ),
        ("select 'a'\n  'b' from t", "select ? from t"),
        ("select /* 'x' /* nested */ */ a -- 'y'\n, b", "select a, b"),
        (
            "CREATE TEMP TABLE \"My Table\" (x1 INT)",
            "create temp table \"My Table\" (x1 int)",
        ),
        (
            "CREATE TEMP TABLE \"a\"\"1\" (x)",
            "create temp table \"a\"\"1\" (x)",
        ),
        ("LISTEN a; LISTEN b;", "listen a; listen b"),
        ("select $1::text || $20", "select $1::text || $20"),
        ("select $123456", "select ?"),
        ("select a->>'k' ? 'x'", "select a->>?"),
        ("select 1 -- 'unfinished", "select ?"),
        ("select 1 /* 'unfinished", "select ?"),
        ("", ""),
        (";;", ""),
    ] {
        assert_eq!(text(sql), expected, "{sql}");
    }
}

#[test]
fn what_set_gives_a_parameter_is_hidden_to_the_statements_end() {
    for (sql, expected) in [
        (
            "SET app.token = hunter2; LISTEN x",
            "set app.token = ?; listen x",
        ),
        (
            "SET app.token TO hunter2, \"more\", 'x'",
            "set app.token to ?",
        ),
        ("SET LOCAL app.token=hunter2", "set local app.token= ?"),
        (
            "ALTER ROLE a IN DATABASE d SET x.y = hunter2",
            "alter role a in database d set x.y = ?",
        ),
        (
            "create function f() returns int set x.y to hunter2 as 'z'",
            "create function f() returns int set x.y to ?",
        ),
        (
            "SET SESSION AUTHORIZATION bob",
            "set session authorization bob",
        ),
        ("SET TIME ZONE 'UTC'", "set time zone ?"),
        (
            "update t set a = b where c = 1",
            "update t set a = b where c = ?",
        ),
    ] {
        assert_eq!(text(sql), expected, "{sql}");
    }
}

#[test]
fn where_a_literals_end_is_in_doubt_the_rest_is_hidden() {
    for (sql, expected) in [
        // With standard_conforming_strings off the string goes on.
        ("select 'C:\\', 'secret' from t", "select ?…"),
        ("select 'a\\'secret' from t", "select ?…"),
        ("select B'\\', secret", "select ?…"),
        ("select 'a\\\\', b", "select ?, b"),
        ("select 'unfinished secret", "select ?…"),
        ("select $$unfinished secret", "select ?…"),
        ("select \"unfinished secret", "select ?…"),
        ("select E'a'\n'b\\'secret'", "select ?…"),
        ("set x.y = 'a\\'secret'", "set x.y = ?…"),
        // Half a character of SJIS, or a character of UTF-8 and an escaped quote.
        ("select E'\u{e4}\\', secret, 'x'", "select ?…"),
    ] {
        assert_eq!(text(sql), expected, "{sql}");
    }
}

#[test]
fn the_same_statement_has_the_same_number() {
    let number = |sql: &str| Digest::of(sql.as_bytes(), true).to_string();
    let first = number("SELECT pg_advisory_lock(1)");
    assert_eq!(first, number("select  /* x */ PG_ADVISORY_LOCK(22);"));
    assert_ne!(first, number("select pg_advisory_lock_shared(1)"));
    assert_eq!(first.len(), 16);
    // Operators keep these: they must not change from version to version.
    assert_eq!(first, "b6a29f181272c2c2");
    for (text, expected) in [
        ("", 0xcbf2_9ce4_8422_2325),
        ("foobar", 0x8594_4171_f739_67e8_u64),
    ] {
        assert_eq!(fnv1a(text.as_bytes()), expected);
    }
}

#[test]
fn long_texts_and_beginnings_are_marked_as_cut() {
    let long = format!("select {}a", "\u{e4}, ".repeat(500));
    assert_eq!(text(&long).chars().count(), SHOWN_MAX + 1);
    assert!(text(&long).ends_with('…'));
    let other = format!("select {}b", "\u{e4}, ".repeat(500));
    assert_ne!(
        Digest::of(long.as_bytes(), true),
        Digest::of(other.as_bytes(), true)
    );
    assert_eq!(Digest::of(b"select a, 'beg", false).text(), "select a, ?…");
    assert_eq!(Digest::of(b"select a\0\0\0", true).text(), "select a");
}

#[test]
fn control_characters_can_not_forge_a_line() {
    let digest = Digest::of("listen \"a\nb\u{1b}[31m\u{9b}\"\r\n".as_bytes(), true);
    assert_eq!(digest.text(), "listen \"a\u{fffd}b\u{fffd}[31m\u{fffd}\"");
}

/// Statements put together from literals of every kind, each with the word in it, and what may stand between them:
/// the word never survives.
#[test]
fn no_literal_survives() {
    const PIECES: &[&str] = &[
        "'MARK'",
        "'it''s MARK'",
        "'MARK\\'",
        "'\\'MARK'",
        "'\\\\MARK'",
        "'MARK\\\\'",
        "E'MARK'",
        "e'\\'MARK\\''",
        "E'MARK\\\\'",
        "N'MARK'",
        "U&'MARK\\0061'",
        "u&'\\' 'MARK'",
        "B'MARK'",
        "x'MARK\\'",
        "$$MARK$$",
        "$a$MARK$$'$a$",
        "$\u{e4}$'MARK$\u{e4}$",
        "'MARK'\n'MARK'",
        "E'a'\n'\\'MARK'",
        "/* MARK */",
        "-- MARK\n",
        "/* /* */ MARK */",
        "7MARK",
        "7.5MARK",
        "'\u{e4}\\'",
        "E'\u{e4}\\'MARK'",
        "; set a = MARK;",
        "; set local a to MARK, MARK;",
        "; alter role x set a=MARK;",
        "; set a.b = \"MARK\" , 'MARK';",
    ];
    const BETWEEN: &[&str] = &[
        " ", "", ",", ", ", "select ", "(", ") ", ";", "; ", "$1", "e", "u&", "\"name\"", "\"'\"",
        "\n", "-", "/", "*", "=", " to ", "create ", "\u{e4}", "?", "\\", "$",
    ];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |end: usize| {
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    };
    for _ in 0..50_000 {
        let mut sql = String::new();
        for _ in 0..1 + below(6) {
            // A piece stands apart where what is before it would change what it is.
            sql.push_str(BETWEEN[below(BETWEEN.len())]);
            sql.push_str([" ", "\n", ", ", "("][below(4)]);
            sql.push_str(PIECES[below(PIECES.len())]);
            sql.push(' ');
        }
        let shown = text(&sql);
        assert!(
            !shown.to_ascii_lowercase().contains("mark"),
            "{sql:?}: {shown}"
        );
    }
}
