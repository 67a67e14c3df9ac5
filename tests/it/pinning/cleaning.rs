//! The next client of a backend sees nothing of the one before, however that one went.

use super::{Database, Proxy, RawClient, database, proxy, text};
use crate::support::frames::{column, parse, sync, terminate};

/// What there is to see in a session, as one row of text, but for the statements that all sessions share. (A setting of the application's own that was reset is '', in
/// PostgreSQL too.)
pub(super) const LOOK: &str = "SELECT concat_ws(' | ',
    current_setting('work_mem'), current_setting('application_name'), current_setting('search_path'),
    current_setting('TimeZone'), nullif(current_setting('app.user', true), ''), current_user, session_user,
    (SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE 'pgsluice\\_%'),
    (SELECT count(*) FROM pg_cursors WHERE name <> ''),
    (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
        WHERE locktype = 'advisory' AND datname = current_database()),
    to_regclass('pg_temp.mine'), current_setting('role'),
    current_setting('default_transaction_read_only'), current_setting('statement_timeout'))";

/// All that a session can leave behind, bit by bit.
const LEAVE: &[&str] = &[
    "SET work_mem = '5MB'",
    "SET search_path = pg_catalog",
    "SET TimeZone = 'Asia/Tokyo'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SELECT set_config('app.user', 'me', false)",
    "SET statement_timeout = '1h'",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "PREPARE mine AS SELECT 1",
    "BEGIN; DECLARE mine CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    "LISTEN mine",
    "SELECT pg_advisory_lock(1), pg_advisory_lock_shared(2, 3)",
    "CREATE TEMP TABLE mine (id int)",
    "CREATE TEMPORARY SEQUENCE mine",
    "CREATE LOCAL TEMP VIEW mine AS SELECT 1",
    "SELECT 1 INTO TEMPORARY mine",
    "CREATE TABLE pg_temp.mine (id int)",
];

async fn go(mut client: RawClient, how: usize) {
    match how {
        0 => client.send(&terminate()).await,
        1 => client.reset(),
        _ => drop(client),
    }
}

async fn one_backend() -> (Database, Proxy, String) {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let clean = text(&proxy.connect(&db).await, LOOK).await;
    (db, proxy, clean)
}

#[tokio::test]
async fn nothing_a_session_left_is_there_for_the_next() {
    let (db, proxy, clean) = one_backend().await;
    for (number, sql) in LEAVE.iter().enumerate() {
        let mut client = proxy.raw(&db).await;
        client.query(sql).await;
        let next = proxy.connect(&db).await;
        go(client, number % 3).await;
        assert_eq!(text(&next, LOOK).await, clean, "{sql}");
    }
}

#[tokio::test]
async fn nothing_a_session_left_in_a_transaction_is_there_for_the_next() {
    let (db, proxy, clean) = one_backend().await;
    for how in 0..3 {
        let mut client = proxy.raw(&db).await;
        for sql in LEAVE.iter().filter(|sql| !sql.contains("pg_monitor")) {
            client.query(sql).await;
        }
        client.query("BEGIN; SET work_mem = '7MB'").await;
        let next = proxy.connect(&db).await;
        go(client, how).await;
        assert_eq!(text(&next, LOOK).await, clean, "{how}");
    }
}

#[tokio::test]
async fn statements_prepared_by_name_are_gone_with_their_client() {
    let (db, proxy, clean) = one_backend().await;
    for how in 0..3 {
        let mut client = proxy.raw(&db).await;
        client
            .ask(&[parse("mine", "SELECT 1"), sync()].concat())
            .await;
        let mut next = proxy.raw(&db).await;
        go(client, how).await;
        assert_eq!(column(&next.query(LOOK).await), [clean.as_str()]);
        // The same name can be used for something else.
        let answer = next
            .ask(&[parse("mine", "SELECT 2"), sync()].concat())
            .await;
        assert_eq!(answer[0].tag, b'1');
    }
}

#[tokio::test]
async fn discard_all_ends_a_session_s_state_but_not_its_login_s() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let named = [("application_name", "mine"), ("options", "-c work_mem=9MB")];
    let mut client = proxy.raw_with(&db, &named).await;
    client
        .query("SET work_mem = '5MB'; SET application_name = 'else'")
        .await;
    client.query("DISCARD ALL").await;
    let other = proxy.connect(&db).await;
    assert_eq!(text(&other, "SHOW work_mem").await, "4MB");
    assert_eq!(client.value("SHOW work_mem").await, "9MB");
    assert_eq!(client.value("SHOW application_name").await, "mine");
}
