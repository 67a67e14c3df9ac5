use super::*;

const NONE: Effects = Effects(0);

fn read_as(standard_conforming_strings: bool, text: &str, piece: usize) -> Effects {
    let mut reader = StatementReader::new(standard_conforming_strings);
    for piece in text.as_bytes().chunks(piece) {
        reader.feed(piece);
    }
    reader.finish()
}

#[track_caller]
fn check(standard_conforming_strings: bool, cases: &[(&str, Effects)]) {
    for (text, expected) in cases {
        for piece in [1, 2, 3, 7, usize::MAX] {
            let told = read_as(standard_conforming_strings, text, piece);
            // What these tables say of settings is said of set_config, too; meanings have a table of their own.
            let settings = |effects: Effects| match effects.contains(Effects::SET_CONFIG) {
                true => effects | Effects::SETTINGS,
                false => effects,
            };
            let plain = |effects: Effects| {
                let apart = Effects::SET_CONFIG
                    .union(Effects::MEANING)
                    .union(Effects::DISCARD);
                settings(effects).without(apart)
            };
            assert_eq!(plain(told), plain(*expected), "{text} in pieces of {piece}");
        }
    }
}

#[test]
fn what_changes_the_meaning_of_texts() {
    for (text, changes) in [
        ("set datestyle = dmy", true),
        ("set \"TimeZone\" = 'UTC'", true),
        ("set local search_path = a", true),
        ("set session timezone to 'UTC'", true),
        ("set time zone 'UTC'", true),
        ("set names 'latin1'", true),
        ("set role x", true),
        ("set session authorization x", true),
        ("reset all", true),
        ("discard all", true),
        ("do $$ $$", true),
        ("select set_config('work_mem', '1MB', true)", true),
        ("update pg_settings set setting = 1", true),
        (
            "set session characteristics as transaction read only",
            false,
        ),
        ("set local application_name = 'x'", false),
        ("set work_mem = '1MB'", false),
        ("set app.tenant = 1", false),
        ("set local app . tenant = 1", false),
        ("set local statement_timeout = 5", false),
        ("set transaction read only", false),
        ("select 1", false),
    ] {
        let told = read_as(true, text, usize::MAX);
        assert_eq!(
            told.contains(Effects::MAY_CHANGE_MEANING),
            changes,
            "{text}"
        );
    }
}

#[test]
fn set_config_for_a_transaction_leaves_nothing() {
    let text = "select set_config('app.tenant', $1, true)";
    let told = read_as(true, text, usize::MAX);
    assert!(told.contains(Effects::MAY_SET));
    let read = told.read_set_config(text.as_bytes());
    assert!(!read.contains(Effects::MAY_SET) && read.contains(Effects::MEANING));
    let lasting = "select set_config('a.b', $1, false)";
    let told = read_as(true, lasting, usize::MAX);
    assert_eq!(told.read_set_config(lasting.as_bytes()), told);
}

#[test]
fn settings() {
    let reset = Effects::SETTINGS | Effects::RESET;
    check(
        true,
        &[
            ("set x = 1", Effects::SETTINGS),
            ("SET SESSION x TO 1", Effects::SETTINGS),
            ("set local x = 1", NONE),
            ("set local x to default", NONE),
            ("set transaction isolation level serializable", NONE),
            ("set constraints all deferred", NONE),
            (
                "set session characteristics as transaction read only",
                Effects::SETTINGS,
            ),
            ("set role bob", Effects::SETTINGS),
            ("set synchronous_commit to local", Effects::SETTINGS),
            ("set x to \"default\"", Effects::SETTINGS),
            ("reset all", reset),
            ("reset x.y", reset),
            ("set x to default", reset),
            ("set a.b = DEFAULT", reset),
            ("set session authorization default", reset),
            ("set time zone local", reset),
            ("set session time zone default", reset),
            ("set time zone 'UTC'", Effects::SETTINGS),
            // A quoted word is no keyword, and neither is a name's part.
            ("set \"local\".x = 1", Effects::SETTINGS),
            ("set \"local\" = 1", Effects::SETTINGS),
            ("set local.x = 1", Effects::SETTINGS),
            ("set local /* a */ -- b\n . x = 1", Effects::SETTINGS),
            ("set constraints.x = 1", Effects::SETTINGS),
            ("set transaction.x = 1", Effects::SETTINGS),
            ("set session.x = 1", Effects::SETTINGS),
            ("set local x.local = 1", NONE),
            ("\"set\" x", NONE),
            ("update t set a = 1", NONE),
            ("select set_config('a','b',false)", Effects::SETTINGS),
            (
                "select pg_catalog . \"set_config\"('a','b',false)",
                Effects::SETTINGS,
            ),
            ("select \"SET_CONFIG\"(1)", NONE),
            ("select 1.set_config", Effects::SETTINGS),
            ("update pg_settings set setting = 1", Effects::SETTINGS),
            (
                "update only pg_catalog.\"pg_settings\" set setting = 1",
                Effects::SETTINGS,
            ),
            (
                "with a as (update pg_settings set setting = 1 returning 1) select 1",
                Effects::SETTINGS,
            ),
            ("select * from pg_settings", NONE),
            ("select * from pg_settings; update t set a = 1", NONE),
        ],
    );
}

#[test]
fn comments_strings_and_dollar_quotes_are_skipped() {
    let lock = Effects::ADVISORY_LOCK;
    check(
        true,
        &[
            ("", NONE),
            ("select 1", NONE),
            (
                "  -- set x\n /* set /* nested */ y */ select 'set' ; ",
                NONE,
            ),
            ("/**/set x = 1", Effects::SETTINGS),
            ("/*/ */ set x = 1", Effects::SETTINGS),
            ("/* **/ set x = 1", Effects::SETTINGS),
            ("/* /*/ */ set x */ load 'x'", Effects::LOAD),
            ("select 1 - 2 / 3; load 'x'", Effects::LOAD),
            ("select 1; set x = 1", Effects::SETTINGS),
            ("select 'set_config'", NONE),
            ("select 'it''s'; set x = 1", Effects::SETTINGS),
            ("select 'a\\'; set x = 1", Effects::SETTINGS),
            ("select e'it\\'s; set x = 1'", NONE),
            ("select E'\\\\'; set x = 1", Effects::SETTINGS),
            // A doubled quote stays in the same kind of string.
            ("select E'it''s \\'', pg_advisory_lock(1)", lock),
            ("select E'it''s \\', pg_advisory_lock(1)'", NONE),
            ("select E'''\\'', pg_advisory_lock(1)", lock),
            // So does a string that goes on behind a newline.
            ("select E'a'\n'\\'', pg_advisory_lock(1)", lock),
            (
                "select E'a' -- b\n -- c'\r\t'\\'', pg_advisory_lock(1)",
                lock,
            ),
            ("select E'a' -- b\n'\\', pg_advisory_lock(1)'", NONE),
            ("select 'a'\n'\\', pg_advisory_lock(1)", lock),
            // Without a newline, or behind another comment, it doesn't go on.
            ("select E'a' '\\', pg_advisory_lock(1)", lock),
            ("select E'a' /* \n */ '\\', pg_advisory_lock(1)", lock),
            ("select E'a'\n-'\\', pg_advisory_lock(1)", lock),
            ("select E'a' - pg_advisory_lock(1)", lock),
            ("select E'a'pg_advisory_lock(1)", lock),
            // The other prefixes.
            ("select U&'\\', pg_advisory_lock(1)", lock),
            ("select u&'a''\\', pg_advisory_lock(1)", lock),
            ("select U&'a'\n'\\', pg_advisory_lock(1)", lock),
            ("select B'\\', pg_advisory_lock(1)", lock),
            ("select x'\\', pg_advisory_lock(1)", lock),
            ("select n'\\', pg_advisory_lock(1)", lock),
            ("select xe'\\', pg_advisory_lock(1)", lock),
            ("select u & pg_advisory_lock(1)", lock),
            ("select u&pg_advisory_lock(1)", lock),
            ("select $$set_config$$, $a$ $$ ; set x $ $a $a$", NONE),
            ("select $ab$ $a$ab$; set x = 1", Effects::SETTINGS),
            ("select $ab$ $ab $a$ $abc$ ; set x = 1 $ab$", NONE),
            ("select $a$ $a$;set x = 1", Effects::SETTINGS),
            ("select $1, $2; set x = 1", Effects::SETTINGS),
            ("select a$b$c; set x = 1", Effects::SETTINGS),
            ("select \"a\"\"; set x\"; set x = 1", Effects::SETTINGS),
        ],
    );
}

#[test]
fn what_cannot_be_read_may_be_anything() {
    let name = Effects::UNREADABLE_NAME;
    check(
        true,
        &[
            ("select U&\"\\0070g_advisory_lock\"(1)", name),
            ("select u&\"p!0067_advisory_lock\" uescape '!' (1)", name),
            ("select U&\"a\"\" pg_temp\"", name),
        ],
    );
    let tag = "t".repeat(TAG_TOO_LONG);
    let (short, long) = (&tag[1..], &tag[..]);
    check(
        true,
        &[
            (
                &format!("select ${short}$ ; load 'x' ${short}$; set x = 1"),
                Effects::SETTINGS,
            ),
            (
                &format!("select ${long}$ ' ${long}$; set x = 1"),
                Effects::UNREADABLE_TEXT,
            ),
        ],
    );
    let name = "n".repeat(100);
    check(true, &[(&format!("set {name} = 1"), Effects::SETTINGS)]);
}

const TAG_TOO_LONG: usize = 65;

#[test]
fn without_standard_conforming_strings_every_plain_string_has_escapes() {
    let lock = Effects::ADVISORY_LOCK;
    check(
        false,
        &[
            ("select '\\'', pg_advisory_lock(1)", lock),
            ("select '\\', pg_advisory_lock(1)'", NONE),
            ("select 'a''\\', pg_advisory_lock(1)'", NONE),
            ("select n'\\', pg_advisory_lock(1)'", NONE),
            ("select 'a'\n'\\'', pg_advisory_lock(1)", lock),
            ("select B'\\', pg_advisory_lock(1)", lock),
            ("select X'', pg_advisory_lock(1)", lock),
            ("select E'\\'', pg_advisory_lock(1)", lock),
        ],
    );
    assert_eq!(read_as(true, "select '\\', pg_advisory_lock(1)'", 3), lock);
}

#[test]
fn temporary_objects() {
    let temp = Effects::TEMP_OBJECT;
    check(
        true,
        &[
            ("create temp table t (a int)", temp),
            ("create temporary table t (a int)", temp),
            ("CREATE LOCAL TEMP TABLE t (a int)", temp),
            ("create global temporary table t (a int)", temp),
            ("create or replace local temporary view v as select 1", temp),
            ("create or replace temp view v as select 1", temp),
            ("create temp recursive view v (a) as select 1", temp),
            ("create temp sequence s", temp),
            ("create unlogged table t (a int)", NONE),
            ("create recursive view v (a) as select 1", NONE),
            ("create table t (temp int, temporary int)", NONE),
            ("create table \"temp\" (a int)", NONE),
            ("create table pg_temp.t (a int)", temp),
            ("create table pg_temp_3.t (a int)", temp),
            ("create table \"pg_temp_31\" . t (a int)", temp),
            ("create table \"PG_TEMP\".t (a int)", NONE),
            ("create table PG_TEMP.t (a int)", temp),
            ("select pg_temperature, pg_temp_x, pg_temp_", NONE),
            ("alter table t set schema pg_temp", temp),
            ("import foreign schema a from server b into pg_temp", temp),
            ("import foreign schema a from server b into c", NONE),
            ("select 1 into temp t", temp),
            ("select 1 into temporary table t", temp),
            ("select 1 into local temp t", temp),
            ("select 1 into global temporary t", temp),
            ("select 1 into table t", NONE),
            ("select 1 into unlogged t", NONE),
            ("select 1 into t", NONE),
            ("select 1 into \"temp\"", NONE),
            ("select 1 into temp.t", NONE),
            ("select t.into temp from t", NONE),
            ("select 1.into temp t", temp),
            ("select t.*into temp x from t", temp),
            ("(select 1 into temp t)", temp),
            ("((select 1 into temp t) union select 2)", temp),
            ("with a as (select 1) select * into temp t from a", temp),
            ("values (1)", NONE),
            ("explain create temp table t as select 1", temp),
            ("explain analyze create temp table t as select 1", temp),
            (
                "explain analyse verbose create temp table t as select 1",
                temp,
            ),
            (
                "explain (analyze, format json) create temp table t as select 1",
                temp,
            ),
            ("explain (analyze) select 1 into temp t", temp),
            ("explain (select 1 into temp t)", temp),
            ("explain update t set a = 1", NONE),
        ],
    );
}

#[test]
fn search_paths_with_pg_temp() {
    let both = Effects::SETTINGS | Effects::TEMP_OBJECT;
    check(
        true,
        &[
            ("set search_path to pg_temp, public", both),
            ("set search_path = \"pg_temp\"", both),
            ("set search_path = 'pg_temp'", both),
            ("set search_path = $$pg_temp$$", both),
            ("set search_path = $pg$pg_temp$pg$", both),
            ("set search_path = $pg$$pg_temp$$pg$", both),
            ("set search_path = 'pg_'\n'temp'", both),
            ("set search_path = e'pg\\x5ftemp'", both),
            ("set search_path = U&'pg!005ftemp' uescape '!'", both),
            ("set schema 'pg_temp'", both),
            ("set local search_path = 'pg_temp'", Effects::TEMP_OBJECT),
            ("select set_config('search_path', 'a, PG_TEMP', true)", both),
            (
                "with a as (select 'ppg_temp' as v) select set_config('search_path', v, true)",
                both,
            ),
            (
                "update pg_settings set setting = 'pg_temp' where name = 'search_path'",
                both,
            ),
            ("set search_path = 'pg_tem_pg_temp'", both),
            ("set search_path = 'pg_tem', 'p'", Effects::SETTINGS),
            ("set search_path = 'pg_''temp'", Effects::SETTINGS),
            ("select nspname <> 'pg_temp' from pg_namespace", NONE),
            ("select 'pg_temp'; set x = 1", Effects::SETTINGS),
        ],
    );
}

#[test]
fn prepared_statements_of_sql() {
    let released = Effects::MAY_RELEASE | Effects::SQL_DEALLOCATE;
    check(
        true,
        &[
            ("prepare p as select 1", Effects::SQL_PREPARE),
            ("prepare \"transaction\" as select 1", Effects::SQL_PREPARE),
            ("prepare transaction as select 1", Effects::SQL_PREPARE),
            (
                "prepare transaction (int) as select 1",
                Effects::SQL_PREPARE,
            ),
            ("prepare transaction 'x'", NONE),
            ("prepare transaction $$x$$", NONE),
            ("execute p", Effects::SQL_EXECUTE),
            ("execute p(1)", Effects::SQL_EXECUTE),
            ("explain analyze execute p", Effects::SQL_EXECUTE),
            ("explain (costs off) execute p", Effects::SQL_EXECUTE),
            ("create table t as execute p", Effects::SQL_EXECUTE),
            (
                "create temp table t (a) on commit drop as execute p(1)",
                Effects::SQL_EXECUTE | Effects::TEMP_OBJECT,
            ),
            (
                "create trigger a after insert on t execute function f()",
                NONE,
            ),
            ("deallocate p", released),
            ("deallocate prepare all", released),
        ],
    );
}

#[test]
fn cursors_locks_listening_sequences_and_the_rest() {
    check(
        true,
        &[
            ("declare c cursor for select 1", NONE),
            (
                "declare c cursor with hold for select 1",
                Effects::HOLD_CURSOR,
            ),
            (
                "declare c binary insensitive no scroll cursor with hold for select 1",
                Effects::HOLD_CURSOR,
            ),
            (
                "explain analyze declare c cursor with hold for select 1",
                Effects::HOLD_CURSOR,
            ),
            ("declare c cursor without hold for select 1", NONE),
            ("declare \"with\" cursor for select 1", NONE),
            (
                "declare c cursor for with hold as (select 1) select 1",
                NONE,
            ),
            ("close c", Effects::MAY_RELEASE),
            ("drop table t", Effects::MAY_RELEASE),
            ("discard temp", Effects::MAY_RELEASE),
            ("listen x", Effects::LISTEN),
            ("unlisten x", Effects::MAY_RELEASE | Effects::UNLISTEN),
            ("notify x", Effects::NOTIFY),
            ("select pg_notify('x', '')", Effects::NOTIFY),
            ("select pg_listening_channels()", Effects::LISTENING_READ),
            ("select pg_advisory_lock(1)", Effects::ADVISORY_LOCK),
            (
                "select pg_try_advisory_lock_shared(1, 2)",
                Effects::ADVISORY_LOCK,
            ),
            ("select pg_advisory_xact_lock(1)", NONE),
            ("select pg_advisory_unlock(1)", Effects::MAY_RELEASE),
            ("select pg_advisory_unlock_all()", Effects::MAY_RELEASE),
            ("load 'auto_explain'", Effects::LOAD),
            (
                "create or replace function f(int) returns int as 'lib', 'f' language C strict",
                Effects::LOAD,
            ),
            (
                "create function f() returns int language sql return c",
                NONE,
            ),
            ("create language c", NONE),
            ("select nextval('s')", Effects::SEQUENCE_WRITE),
            (
                "insert into t values (setval('s', 1))",
                Effects::SEQUENCE_WRITE,
            ),
            ("select currval('s')", Effects::SEQUENCE_READ),
            ("select LastVal()", Effects::SEQUENCE_READ),
            ("do $$ begin end $$", Effects::OPAQUE),
            ("call p(1)", Effects::OPAQUE),
            ("insert into t values (1) on conflict do nothing", NONE),
        ],
    );
}

#[test]
fn transaction_blocks() {
    let opens = Effects::TRANSACTION;
    check(
        true,
        &[
            ("begin", opens),
            ("BEGIN ISOLATION LEVEL SERIALIZABLE", opens),
            ("start transaction read only", opens),
            ("commit and chain", opens),
            ("end work and chain", opens),
            ("rollback transaction and chain", opens),
            ("abort and /* a */ chain", opens),
            ("commit and no chain", NONE),
            ("commit", NONE),
            ("end", NONE),
            ("abort", NONE),
            ("rollback", NONE),
            ("rollback to savepoint chain", NONE),
            ("rollback prepared 'a'", NONE),
            ("savepoint a", NONE),
            ("release savepoint a", NONE),
        ],
    );
}

#[test]
fn effects_of_all_statements_of_a_string_add_up() {
    let effects = read_as(true, "begin; listen a; create temp table b(); commit", 5);
    assert_eq!(
        effects,
        Effects::TRANSACTION | Effects::LISTEN | Effects::TEMP_OBJECT
    );
}

/// `cargo test --release --lib statement -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn nanoseconds_per_byte() {
    let queries =
        "SELECT abalance, filler FROM pgbench_accounts WHERE aid = 12345 AND bid IN ($1, $2);\n";
    let inserts = "INSERT INTO t (a, b) VALUES (1, 'x1y2z3'), (2, 'Popp''s'), (3.5, NULL);\n";
    let string = format!(
        "INSERT INTO t VALUES ('{}')",
        "a page of prose, ".repeat(64)
    );
    for (name, text) in [
        ("queries", queries),
        ("inserts", inserts),
        ("string", &string),
    ] {
        let rounds = (256 << 20) / text.len();
        let start = thread_ns();
        for _ in 0..rounds {
            let mut reader = StatementReader::default();
            reader.feed(std::hint::black_box(text.as_bytes()));
            std::hint::black_box(reader.finish());
        }
        let spent = (thread_ns() - start) as f64 / (rounds * text.len()) as f64;
        println!("{name}: {spent:.2} ns per byte");
    }
}

/// Time this thread has spent on a processor: others may be busy too.
fn thread_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split_whitespace().next().unwrap().parse().unwrap()
}
