//! A prepared text means on every backend what it meant when its client prepared it.

use super::{database, proxy};
use crate::support::frames::{bind, column, errors, execute, parse, sync};
use crate::support::{Database, Proxy, RawClient};

/// A literal that settings read in different ways.
const MIDNIGHT: &str = "SELECT extract(epoch FROM '2020-01-01 00:00'::timestamptz)::bigint";
const IN_UTC: &str = "1577836800";
const IN_TOKYO: &str = "1577804400";

async fn run(client: &mut RawClient, name: &str) -> Vec<String> {
    let run = [bind("", name, &[]), execute("", 0), sync()].concat();
    column(&client.ask(&run).await)
}

async fn prepare(client: &mut RawClient, name: &str, sql: &str) {
    let answer = client.ask(&[parse(name, sql), sync()].concat()).await;
    assert_eq!(answer[0].tag, b'1', "{answer:?}");
}

async fn pins(proxy: &Proxy) -> f64 {
    let metrics = proxy.metrics().await;
    metrics.sum("pgsluice_pins_total", &[("reason", "named_statement")])
}

async fn two_backends() -> (Database, Proxy) {
    let db = database().await;
    let proxy = proxy().max_connections(2).start().await;
    (db, proxy)
}

/// Runs `work` on a backend that has not seen the client's statements.
async fn elsewhere(
    proxy: &Proxy,
    db: &Database,
    client: &mut RawClient,
    work: &[u8],
) -> Vec<String> {
    let here = client.value("SELECT pg_backend_pid()").await;
    let mut other = proxy.raw(db).await;
    other.query("BEGIN").await;
    assert_eq!(
        other.value("SELECT pg_backend_pid()").await,
        here,
        "it is not the last one used"
    );
    let rows = column(&client.ask(work).await);
    let there = client.value("SELECT pg_backend_pid()").await;
    assert_ne!(here, there);
    other.query("ROLLBACK").await;
    rows
}

#[tokio::test]
async fn a_literal_is_read_as_it_was_when_it_was_prepared() {
    let (db, proxy) = two_backends().await;
    let mut client = proxy.raw_with(&db, &[("TimeZone", "UTC")]).await;
    prepare(&mut client, "s", MIDNIGHT).await;
    client.query("SET TimeZone = 'Asia/Tokyo'").await;
    let run_it = [bind("", "s", &[]), execute("", 0), sync()].concat();
    assert_eq!(
        run(&mut client, "s").await,
        [IN_UTC],
        "where it was prepared"
    );
    assert_eq!(elsewhere(&proxy, &db, &mut client, &run_it).await, [IN_UTC]);
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
    assert_eq!(pins(&proxy).await, 0.0);
}

#[tokio::test]
async fn a_literal_prepared_under_a_local_setting_is_read_so_everywhere() {
    let (db, proxy) = two_backends().await;
    let mut client = proxy.raw_with(&db, &[("TimeZone", "UTC")]).await;
    client
        .query("BEGIN; SET LOCAL TimeZone = 'Asia/Tokyo'")
        .await;
    prepare(&mut client, "s", MIDNIGHT).await;
    client.query("COMMIT").await;
    let run_it = [bind("", "s", &[]), execute("", 0), sync()].concat();
    assert_eq!(
        elsewhere(&proxy, &db, &mut client, &run_it).await,
        [IN_TOKYO]
    );
    assert_eq!(client.value("SHOW TimeZone").await, "UTC");
}

#[tokio::test]
async fn a_local_setting_does_not_change_what_was_prepared_before_it() {
    let (db, proxy) = two_backends().await;
    let mut client = proxy.raw_with(&db, &[("TimeZone", "UTC")]).await;
    prepare(&mut client, "s", MIDNIGHT).await;
    // In one batch: nothing is known when the statement is used.
    let work = [
        parse("", "BEGIN"),
        bind("", "", &[]),
        execute("", 0),
        parse("", "SET LOCAL TimeZone = 'Asia/Tokyo'"),
        bind("", "", &[]),
        execute("", 0),
        bind("", "s", &[]),
        execute("", 0),
        parse("", "SHOW TimeZone"),
        bind("", "", &[]),
        execute("", 0),
        parse("", "COMMIT"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    let rows = elsewhere(&proxy, &db, &mut client, &work).await;
    assert_eq!(rows, [IN_UTC, "Asia/Tokyo"]);
}

#[tokio::test]
async fn a_batch_that_fails_before_its_settings_are_told_is_answered() {
    let (db, proxy) = two_backends().await;
    let mut client = proxy.raw_with(&db, &[("TimeZone", "UTC")]).await;
    prepare(&mut client, "s", MIDNIGHT).await;
    let here = client.value("SELECT pg_backend_pid()").await;
    let mut other = proxy.raw(&db).await;
    other.query("BEGIN").await;
    assert_eq!(other.value("SELECT pg_backend_pid()").await, here);
    let work = [
        parse("", "SET TimeZone = 'no such zone'"),
        bind("", "", &[]),
        execute("", 0),
        bind("", "s", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    let answer = client.ask(&work).await;
    assert_eq!(errors(&answer).len(), 1, "{answer:?}");
    client
        .query("BEGIN; SET LOCAL TimeZone = 'Asia/Tokyo'; SELECT 1/0")
        .await;
    let run_it = [bind("", "s", &[]), execute("", 0), sync()].concat();
    let answer = client.ask(&run_it).await;
    assert_eq!(errors(&answer)[0], "25P02");
    client.query("ROLLBACK").await;
    assert_eq!(run(&mut client, "s").await, [IN_UTC]);
    other.query("ROLLBACK").await;
}

#[tokio::test]
async fn an_unnamed_statement_keeps_its_meaning_or_is_refused() {
    let (db, proxy) = two_backends().await;
    let mut client = proxy.raw_with(&db, &[("TimeZone", "UTC")]).await;
    // By messages alone: a simple query would drop it.
    let set = [
        parse("set", "SET TimeZone = 'Asia/Tokyo'"),
        parse("", MIDNIGHT),
        sync(),
    ]
    .concat();
    client.ask(&set).await;
    client
        .ask(&[bind("", "set", &[]), execute("", 0), sync()].concat())
        .await;
    let run_it = [bind("", "", &[]), execute("", 0), sync()].concat();
    let mut other = proxy.raw(&db).await;
    other.query("BEGIN").await;
    other.value("SELECT pg_backend_pid()").await;
    assert_eq!(column(&client.ask(&run_it).await), [IN_UTC]);
    // What names the moment is used at once, or never.
    let now = parse("", "SELECT 'now'::timestamptz IS NOT NULL");
    let at_once = [now.clone(), bind("", "", &[]), execute("", 0), sync()].concat();
    assert_eq!(column(&client.ask(&at_once).await), ["t"]);
    other.query("ROLLBACK").await;
    client.ask(&[now, sync()].concat()).await;
    other.query("BEGIN").await;
    other.value("SELECT pg_backend_pid()").await;
    let answer = client.ask(&run_it).await;
    assert!(
        column(&answer) == ["t"] || errors(&answer)[0] == "26000",
        "{answer:?}"
    );
    other.query("ROLLBACK").await;
}

#[tokio::test]
async fn a_statement_that_names_the_moment_stays_where_it_is() {
    let (db, proxy) = two_backends().await;
    let mut client = proxy.raw(&db).await;
    prepare(&mut client, "s", "SELECT 'now'::timestamptz").await;
    let first = run(&mut client, "s").await;
    let mut other = proxy.raw(&db).await;
    other.query("SELECT 1").await;
    assert_eq!(run(&mut client, "s").await, first);
    assert_eq!(pins(&proxy).await, 1.0);
}

#[tokio::test]
async fn discard_plans_of_one_changes_the_reading_of_no_other() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut one = proxy.raw_with(&db, &[("TimeZone", "UTC")]).await;
    let mut other = proxy.raw_with(&db, &[("TimeZone", "UTC")]).await;
    for client in [&mut one, &mut other] {
        prepare(client, "s", MIDNIGHT).await;
    }
    other.query("SET TimeZone = 'Asia/Tokyo'").await;
    other.query("DISCARD PLANS").await;
    run(&mut other, "s").await;
    assert_eq!(run(&mut one, "s").await, [IN_UTC]);
}
