//! What a session leaves in its backend is there for its next statement, and for nobody else.

mod cleaning;
mod filters;
mod following;
mod meaning;
mod shapes;
mod sharing;
mod sql_prepared;
mod startup;
mod told;

use crate::support::frames::{self, bind, column, errors, execute, parse, query, sync};
use crate::support::{
    Database, Proxy, RawClient, code_of, database, eventually, observer, pid_of, proxy, text,
    waiting,
};

const PINS: &str = "pgsluice_database_connections_session_pinned";

/// Makes a function that counts what is prepared on the backend, whoever asks.
const HERE: &str = "CREATE FUNCTION statements_here() RETURNS bigint LANGUAGE sql AS \
    $$ SELECT count(*) FROM pg_prepared_statements WHERE name <> '' $$";

/// A reason to keep a backend: how it comes about, and a query that shows that it is still there.
struct Reason {
    label: &'static str,
    begin: Vec<u8>,
    /// ReadyForQuery messages that `begin` brings.
    answers: usize,
    witness: &'static str,
    expected: &'static str,
}

fn simple(
    label: &'static str,
    sql: &'static str,
    witness: &'static str,
    expected: &'static str,
) -> Reason {
    Reason {
        label,
        begin: query(sql),
        answers: 1,
        witness,
        expected,
    }
}

async fn pinned(proxy: &Proxy, label: &str) -> f64 {
    proxy.metrics().await.sum(PINS, &[("reason", label)])
}

/// A pin is counted when its client is at rest, which may be after it has its answer.
async fn is_pinned(proxy: &Proxy, label: &str) {
    eventually(label, async || pinned(proxy, label).await == 1.0).await;
}

/// Two backends. One client pins one; two others want a transaction each: only one of them can have it, the pinned
/// client finds its backend and its state again and again, until DISCARD ALL ends the reason.
async fn keeps_its_backend(reason: Reason) {
    let db = database().await;
    db.execute("CREATE TABLE items AS SELECT generate_series(1, 10) id")
        .await;
    let proxy = proxy().max_connections(2).start().await;
    let mut client = proxy.raw(&db).await;
    client.send(&reason.begin).await;
    for _ in 0..reason.answers {
        let answer = client.ready().await;
        assert_eq!(errors(&answer), [""; 0], "{answer:?}");
    }
    let backend = client.value("SELECT pg_backend_pid()").await;
    is_pinned(&proxy, reason.label).await;
    let (mut other, mut third) = (proxy.raw(&db).await, proxy.raw(&db).await);
    other.query("BEGIN").await;
    third.send(&query("SELECT pg_backend_pid()")).await;
    waiting(&proxy, 1).await;
    for _ in 0..3 {
        assert_eq!(client.value("SELECT pg_backend_pid()").await, backend);
        assert_eq!(
            client.value(reason.witness).await,
            reason.expected,
            "{}",
            reason.label
        );
        client.query("BEGIN; SELECT 1; COMMIT").await;
    }
    waiting(&proxy, 1).await;
    client.query("DISCARD ALL").await;
    assert_eq!(column(&third.ready().await), [backend], "{}", reason.label);
    let label = [("reason", reason.label)];
    eventually("it is not pinned", async || {
        proxy.metrics().await.sum(PINS, &label) == 0.0
    })
    .await;
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("pgsluice_pins_total", &label), 1.0);
    assert_eq!(metrics.sum("pgsluice_unpins_total", &label), 1.0);
}

#[tokio::test]
async fn statements_prepared_by_one_text_keep_their_backend() {
    let prepare = "PREPARE s AS SELECT 'prepared'; PREPARE t AS SELECT 1";
    keeps_its_backend(simple("sql_prepare", prepare, "EXECUTE s", "prepared")).await;
}

#[tokio::test]
async fn a_temporary_table_keeps_its_backend() {
    let create = "CREATE TEMP TABLE x AS SELECT 'temporary' AS v";
    keeps_its_backend(simple(
        "temp_object",
        create,
        "SELECT v FROM x",
        "temporary",
    ))
    .await;
}

#[tokio::test]
async fn a_temporary_table_by_select_into_keeps_its_backend() {
    let create = "SELECT 'temporary' AS v INTO TEMP x";
    keeps_its_backend(simple(
        "temp_object",
        create,
        "SELECT v FROM x",
        "temporary",
    ))
    .await;
}

/// No table, function or type: the temporary schema holds whatever a schema can.
#[tokio::test]
async fn any_object_in_the_temporary_schema_keeps_its_backend() {
    let create = "CREATE COLLATION pg_temp.x FROM \"C\"";
    let witness = "SELECT collname FROM pg_collation WHERE collnamespace = pg_my_temp_schema()";
    keeps_its_backend(simple("temp_object", create, witness, "x")).await;
}

#[tokio::test]
async fn a_cursor_with_hold_keeps_its_backend() {
    let declare = "BEGIN; DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT id FROM items; COMMIT";
    keeps_its_backend(simple(
        "hold_cursor",
        declare,
        "FETCH ABSOLUTE 3 FROM c",
        "3",
    ))
    .await;
}

#[tokio::test]
async fn a_session_advisory_lock_keeps_its_backend() {
    let witness = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                   AND pid = pg_backend_pid() AND objid = 7";
    let lock = "SELECT pg_advisory_lock(7)";
    keeps_its_backend(simple("advisory_lock", lock, witness, "1")).await;
}

/// Nothing unloads a library.
async fn a_loaded_library(load: &str, setting: &str, default: &str) {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let (mut client, mut next) = (proxy.raw(&db).await, proxy.raw(&db).await);
    client.query(load).await;
    let backend = client.value("SELECT pg_backend_pid()").await;
    is_pinned(&proxy, "load").await;
    client.query("DISCARD ALL").await;
    assert_eq!(client.value(&format!("SHOW {setting}")).await, default);
    next.send(&query("SELECT pg_backend_pid()")).await;
    waiting(&proxy, 1).await;
    drop(client);
    assert_ne!(column(&next.ready().await), [backend]);
}

#[tokio::test]
async fn a_loaded_library_keeps_its_backend_which_ends_with_its_client() {
    a_loaded_library("LOAD 'auto_explain'", "auto_explain.log_analyze", "off").await;
}

#[tokio::test]
async fn a_function_in_c_loads_its_library_when_it_is_made() {
    let function = "CREATE FUNCTION show_limit() RETURNS float4 AS 'pg_trgm' LANGUAGE C";
    a_loaded_library(function, "pg_trgm.similarity_threshold", "0.3").await;
}

#[tokio::test]
async fn a_listener_hears_what_others_say_while_it_waits() {
    let db = database().await;
    let proxy = proxy().max_connections(2).start().await;
    let (mut listener, speaker) = (proxy.raw(&db).await, proxy.connect(&db).await);
    listener.query("LISTEN news").await;
    for number in 0..3 {
        let said = format!("news {number}");
        text(&speaker, &format!("SELECT pg_notify('news', '{said}')")).await;
        let heard = listener.until(b'A').await;
        assert!(
            heard[0]
                .body
                .ends_with(format!("news\0{said}\0").as_bytes()),
            "{heard:?}"
        );
    }
    let mut deaf = proxy.raw(&db).await;
    assert_eq!(
        frames::tags(&deaf.query("SELECT pg_notify('news', 'x')").await),
        "TDCZ"
    );
}

#[tokio::test]
async fn a_long_unnamed_statement_keeps_its_backend_until_it_is_replaced() {
    let db = database().await;
    let proxy = proxy().max_connections(2).start().await;
    let mut client = proxy.raw(&db).await;
    let long = format!("SELECT pg_backend_pid() /* {} */", "x".repeat(20_000));
    client.ask(&[parse("", &long), sync()].concat()).await;
    is_pinned(&proxy, "unnamed_statement").await;
    let again = [bind("", "", &[]), execute("", 0), sync()].concat();
    let backend = column(&client.ask(&again).await);
    let mut other = proxy.raw(&db).await;
    other.query("BEGIN").await;
    for _ in 0..3 {
        assert_eq!(column(&client.ask(&again).await), backend);
    }
    client.query("SELECT 1").await;
    eventually("it is not pinned", async || {
        pinned(&proxy, "unnamed_statement").await == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_short_unnamed_statement_follows_its_client_to_another_backend() {
    let db = database().await;
    let proxy = proxy().max_connections(2).start().await;
    let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
    let mut third = proxy.raw(&db).await;
    let mine = [parse("", "SELECT 'mine', pg_backend_pid()"), sync()].concat();
    let again = [bind("", "", &[]), execute("", 0), sync()].concat();
    client.ask(&mine).await;
    for _ in 0..5 {
        // Somebody else's unnamed statement on every backend.
        other.query("BEGIN").await;
        other
            .ask(&[parse("", "SELECT 'not mine'"), sync()].concat())
            .await;
        third
            .ask(&[parse("", "SELECT 'nor this'"), sync()].concat())
            .await;
        assert_eq!(column(&client.ask(&again).await), ["mine"]);
        third.query("BEGIN").await;
        other.query("COMMIT").await;
        assert_eq!(column(&client.ask(&again).await), ["mine"]);
        third.query("COMMIT").await;
    }
    eventually("it is not pinned", async || {
        pinned(&proxy, "unnamed_statement").await == 0.0
    })
    .await;
}

#[tokio::test]
async fn what_a_transaction_ends_pins_nothing() {
    let db = database().await;
    db.execute("CREATE TABLE items AS SELECT generate_series(1, 10) id")
        .await;
    let proxy = proxy().max_connections(1).start().await;
    let (a, b) = (proxy.connect(&db).await, proxy.connect(&db).await);
    for sql in [
        "BEGIN; SET LOCAL work_mem = '5MB'; COMMIT",
        "BEGIN; SELECT pg_advisory_xact_lock(7); COMMIT",
        "BEGIN; DECLARE c CURSOR FOR SELECT 1; FETCH c; COMMIT",
        "SELECT 'SET work_mem = 1; LISTEN x' /* LISTEN x */ -- LISTEN x",
        "INSERT INTO items SELECT 1; DELETE FROM items WHERE id = 1",
        "SELECT nextval('items_seq') FROM pg_class WHERE false",
    ] {
        // The last one fails: that pins nothing either.
        let _ = a.batch_execute(sql).await;
        assert_eq!(text(&b, "SELECT 'served'").await, "served", "{sql}");
        let metrics = proxy.metrics().await;
        assert_eq!(metrics.sum("pgsluice_pins_total", &[]), 0.0, "{sql}");
    }
}

#[tokio::test]
async fn a_setting_local_to_its_transaction_by_function_pins_nothing() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let (a, b) = (proxy.connect(&db).await, proxy.connect(&db).await);
    let sql = "BEGIN; SELECT set_config('app.tenant', '7', true); COMMIT";
    a.batch_execute(sql).await.unwrap();
    assert_eq!(proxy.metrics().await.sum("pgsluice_pins_total", &[]), 0.0);
    assert_eq!(text(&b, "SELECT 'served'").await, "served");
}

#[tokio::test]
async fn in_session_mode_a_backend_is_kept_until_its_client_leaves() {
    let db = database().await;
    let proxy = proxy().max_connections(1).mode("session").start().await;
    let (mut a, mut b) = (proxy.raw(&db).await, proxy.raw(&db).await);
    let backend = a.value("SELECT pg_backend_pid()").await;
    is_pinned(&proxy, "session_mode").await;
    b.send(&query("SELECT pg_backend_pid()")).await;
    waiting(&proxy, 1).await;
    a.query("CREATE TEMP TABLE x (id int); SET work_mem = '5MB'; DISCARD ALL")
        .await;
    assert_eq!(a.value("SELECT pg_backend_pid()").await, backend);
    waiting(&proxy, 1).await;
    a.send(&frames::terminate()).await;
    assert_eq!(column(&b.ready().await), [backend]);
}

#[tokio::test]
async fn a_rule_may_set_another_mode() {
    let (db, observer) = (database().await, observer().await);
    let rule = format!("database = '{}'\nmode = 'session'", db.name);
    let proxy = proxy().max_connections(2).rule(&rule).start().await;
    let (a, b) = (proxy.connect(&db).await, proxy.connect(&db).await);
    assert_ne!(pid_of(&a).await, pid_of(&b).await);
    assert_eq!(observer.backends(&db).await, 2);
}

#[tokio::test]
async fn in_statement_mode_transactions_are_refused() {
    let db = database().await;
    db.execute("CREATE TABLE t (id int)").await;
    let proxy = proxy().max_connections(1).mode("statement").start().await;
    let client = proxy.connect(&db).await;
    for sql in [
        "BEGIN",
        "START TRANSACTION",
        "/* x */ begin isolation level serializable",
    ] {
        let error = client.batch_execute(sql).await.unwrap_err();
        assert_eq!(code_of(&error), "0A000", "{sql}");
        assert_eq!(text(&client, "SELECT 'alive'").await, "alive");
    }
    let mut raw = proxy.raw(&db).await;
    let answer = raw
        .ask(&[frames::extended("BEGIN", &[]), sync()].concat())
        .await;
    assert_eq!(errors(&answer), ["0A000"]);
    // Several statements in one query are one transaction of their own.
    raw.query("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)")
        .await;
    assert_eq!(raw.value("SELECT count(*) FROM t").await, "2");
    let hidden = raw.query("SELECT 1; BEGIN; INSERT INTO t VALUES (3)").await;
    assert_eq!(errors(&hidden), ["0A000"]);
    assert_eq!(text(&client, "SELECT count(*) FROM t").await, "2");
}
