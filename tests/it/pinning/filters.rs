//! `pool.session_pinning_filters`: what a session leaves for these reasons does not keep its backend. It is lost, and
//! nobody else sees it.

use super::cleaning::LOOK;
use crate::support::frames::{
    bind, column, errors, execute, extended, function_call, parse, query, sync,
};
use crate::support::{Database, Proxy, RawClient, database, eventually, proxy, text};
use toml::Value;

/// All that can be filtered.
const REASONS: [&str; 11] = [
    "settings",
    "named_statement",
    "unnamed_statement",
    "sql_prepare",
    "temp_object",
    "hold_cursor",
    "listen",
    "advisory_lock",
    "load",
    "function_call",
    "sequence",
];

/// One backend, and what a clean one looks like.
async fn one_backend(reasons: &[&str]) -> (Database, Proxy, String) {
    let db = database().await;
    db.execute(
        "CREATE SEQUENCE q; CREATE PROCEDURE p() LANGUAGE sql AS $$ SELECT \
         set_config('app.' || 'user', 'me', false), set_config('work_mem', '5MB', false) $$",
    )
    .await;
    let filters: Vec<Value> = reasons.iter().map(|reason| (*reason).into()).collect();
    let proxy = proxy()
        .max_connections(1)
        .set("pool.session_pinning_filters", filters)
        .start()
        .await;
    let clean = text(&proxy.connect(&db).await, LOOK).await;
    (db, proxy, clean)
}

async fn filtered(proxy: &Proxy, reason: &str) -> f64 {
    let labels = [("reason", reason)];
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("pgsluice_pins_total", &[]), 0.0);
    metrics.sum("pgsluice_pins_filtered_total", &labels)
}

/// The client stays; another finds the backend free, the same, and clean.
async fn is_lost(reason: &str, begin: &[u8]) -> (Database, Proxy, RawClient) {
    let (db, proxy, clean) = one_backend(&[reason]).await;
    let mut other = proxy.connect(&db).await;
    let pid = text(&other, "SELECT pg_backend_pid()::text").await;
    let mut client = proxy.raw(&db).await;
    let answer = client.ask(begin).await;
    assert_eq!(errors(&answer), [""; 0], "{reason}");
    assert_eq!(text(&other, LOOK).await, clean, "{reason}");
    let same = text(&other, "SELECT pg_backend_pid()::text").await;
    assert_eq!(same, pid, "{reason}");
    assert_eq!(filtered(&proxy, reason).await, 1.0, "{reason}");
    other = proxy.connect(&db).await;
    assert_eq!(text(&other, LOOK).await, clean, "{reason}");
    (db, proxy, client)
}

#[tokio::test]
async fn what_is_filtered_keeps_no_backend_and_is_there_for_nobody() {
    for (reason, sql) in [
        (
            "sql_prepare",
            "PREPARE mine AS SELECT 1; PREPARE more AS SELECT 2",
        ),
        ("temp_object", "CREATE TEMP TABLE mine AS SELECT 1"),
        ("hold_cursor", "DECLARE mine CURSOR WITH HOLD FOR SELECT 1"),
        ("listen", "LISTEN mine"),
        ("advisory_lock", "SELECT pg_advisory_lock(1)"),
    ] {
        let (_db, proxy, mut client) = is_lost(reason, &query(sql)).await;
        let witness = match reason {
            "sql_prepare" => "SELECT count(*) FROM pg_prepared_statements WHERE from_sql",
            "temp_object" => "SELECT count(*) FROM pg_class WHERE relname = 'mine'",
            "hold_cursor" => "SELECT count(*) FROM pg_cursors WHERE is_holdable",
            "listen" => "SELECT count(*) FROM pg_listening_channels()",
            _ => {
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            }
        };
        assert_eq!(client.value(witness).await, "0", "{reason}");
        let (_, page) = proxy.http("/pins").await;
        assert!(page.contains("not pinned (filtered): 1"), "{page}");
    }
}

#[tokio::test]
async fn a_call_by_number_keeps_no_backend_and_leaves_nothing() {
    // pg_advisory_lock(bigint)
    is_lost("function_call", &function_call(2880, &["7"])).await;
}

#[tokio::test]
async fn a_long_statement_is_gone_with_its_backend() {
    let long = format!("SELECT 'mine' /* {} */", "x".repeat(40_000));
    for (reason, name) in [("named_statement", "mine"), ("unnamed_statement", "")] {
        let begin = [parse(name, &long), sync()].concat();
        let (_db, _proxy, mut client) = is_lost(reason, &begin).await;
        let again = [bind("", name, &[]), execute("", 0), sync()].concat();
        assert_eq!(errors(&client.ask(&again).await), ["26000"], "{reason}");
        assert_eq!(client.value("SELECT 'alive'").await, "alive");
    }
}

#[tokio::test]
async fn a_long_unnamed_statement_is_not_taken_for_another_client_s() {
    let long = format!("SELECT 'mine' /* {} */", "x".repeat(20_000));
    let begin = [parse("", &long), sync()].concat();
    let (db, proxy, mut client) = is_lost("unnamed_statement", &begin).await;
    let mut other = proxy.raw(&db).await;
    other
        .ask(&[parse("", "SELECT 'not mine'"), sync()].concat())
        .await;
    let again = [bind("", "", &[]), execute("", 0), sync()].concat();
    assert_eq!(errors(&client.ask(&again).await), ["26000"]);
}

#[tokio::test]
async fn what_a_procedure_has_set_is_followed_as_far_as_it_can_be_seen() {
    let (_db, _proxy, mut client) = is_lost("settings", &query("CALL p()")).await;
    assert_eq!(client.value("SHOW work_mem").await, "5MB");
    let custom = "SELECT coalesce(current_setting('app.user', true), '')";
    assert_eq!(client.value(custom).await, "");
}

#[tokio::test]
async fn a_sequence_s_value_is_gone_and_never_another_client_s() {
    let (db, proxy, _) = one_backend(&["sequence"]).await;
    let (mut a, mut b) = (proxy.raw(&db).await, proxy.raw(&db).await);
    for client in [&mut a, &mut b] {
        assert_eq!(errors(&client.query("SELECT lastval()").await), ["55000"]);
    }
    a.query("SELECT nextval('q')").await;
    assert_eq!(errors(&b.query("SELECT lastval()").await), ["55000"]);
    assert_eq!(errors(&a.query("SELECT lastval()").await), ["55000"]);
    assert_eq!(filtered(&proxy, "sequence").await, 1.0);
}

#[tokio::test]
async fn a_backend_with_a_loaded_library_is_closed() {
    let (db, proxy, _) = one_backend(&["load"]).await;
    let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
    let backend = other.value("SELECT pg_backend_pid()").await;
    client.query("LOAD 'auto_explain'").await;
    let next = column(&other.query("SELECT pg_backend_pid()").await);
    assert_ne!(next, [backend]);
    assert_eq!(filtered(&proxy, "load").await, 1.0);
    eventually("it is logged", async || {
        proxy.log().contains("reason=\"filtered_pin\"")
    })
    .await;
}

#[tokio::test]
async fn pinned_for_another_reason_a_session_keeps_all_until_that_ends() {
    let (db, proxy, clean) = one_backend(&["temp_object"]).await;
    let mut client = proxy.raw(&db).await;
    client.query("LISTEN news").await;
    client
        .query("CREATE TEMP TABLE mine AS SELECT 'mine' AS v")
        .await;
    assert_eq!(client.value("SELECT v FROM mine").await, "mine");
    let metrics = proxy.metrics().await;
    assert_eq!(
        metrics.sum("pgsluice_pins_total", &[("reason", "listen")]),
        1.0
    );
    assert_eq!(metrics.sum("pgsluice_pins_total", &[]), 1.0);
    client.query("UNLISTEN news").await;
    assert_eq!(text(&proxy.connect(&db).await, LOOK).await, clean);
    assert_eq!(errors(&client.query("SELECT v FROM mine").await), ["42P01"]);
}

/// DISCARD ALL takes these from the backend: the session must not think that they are still there.
#[tokio::test]
async fn what_can_follow_its_session_still_does() {
    let (db, proxy, _) = one_backend(&["temp_object"]).await;
    let mut client = proxy.raw_with(&db, &[("options", "-c work_mem=9MB")]).await;
    client.query("SET app.tenant = 'me'").await;
    let prepare = [parse("mine", "SELECT 'prepared'"), sync()].concat();
    client.ask(&prepare).await;
    client.query("CREATE TEMP TABLE mine AS SELECT 1").await;
    assert_eq!(client.value("SHOW work_mem").await, "9MB");
    assert_eq!(client.value("SHOW app.tenant").await, "me");
    let use_it = [bind("", "mine", &[]), execute("", 0), sync()].concat();
    assert_eq!(column(&client.ask(&use_it).await), ["prepared"]);
}

#[tokio::test]
async fn beside_a_long_unnamed_statement_settings_follow_and_nobody_else_gets_them() {
    let (db, proxy, clean) = one_backend(&["unnamed_statement"]).await;
    let long = format!("SELECT 1 /* {} */", "x".repeat(20_000));
    let mut client = proxy.raw(&db).await;
    let set = extended("SET work_mem = '5MB'", &[]);
    client.ask(&[set, parse("", &long), sync()].concat()).await;
    assert_eq!(text(&proxy.connect(&db).await, LOOK).await, clean);
    assert_eq!(client.value("SHOW work_mem").await, "5MB");
}

#[tokio::test]
async fn what_is_not_filtered_pins() {
    let (db, proxy, _) = one_backend(&["temp_object"]).await;
    let mut client = proxy.raw(&db).await;
    client.query("LISTEN news").await;
    assert_eq!(client.value("SELECT pg_listening_channels()").await, "news");
    let metrics = proxy.metrics().await;
    assert_eq!(
        metrics.sum("pgsluice_pins_total", &[("reason", "listen")]),
        1.0
    );
}

#[tokio::test]
async fn a_client_that_leaves_leaves_nothing() {
    for reset in [false, true] {
        let (db, proxy, clean) = one_backend(&REASONS).await;
        let mut client = proxy.raw(&db).await;
        client
            .query("BEGIN; CREATE TEMP TABLE mine AS SELECT 1; SELECT pg_advisory_lock(1); LISTEN mine")
            .await;
        if reset {
            client.reset();
        } else {
            client.query("COMMIT").await;
            drop(client);
        }
        assert_eq!(text(&proxy.connect(&db).await, LOOK).await, clean);
    }
}

#[tokio::test]
async fn whoever_filters_is_warned_once() {
    let (db, proxy, _) = one_backend(&REASONS).await;
    for _ in 0..2 {
        proxy.raw(&db).await.query("LISTEN mine").await;
    }
    let log = proxy.log();
    let warnings: Vec<_> = log
        .lines()
        .filter(|line| line.contains("WARN") && line.contains("session_pinning_filters"))
        .collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains(&REASONS.join(",")), "{}", warnings[0]);
}
