//! A prepared text has the types that it had when its client prepared it; who prepares it later gets those of then.

use super::{HERE, database, proxy};
use crate::support::frames::{bind, column, describe_statement, errors, execute, parse, sync};
use crate::support::{Database, Proxy, RawClient};

async fn prepare(client: &mut RawClient, name: &str, sql: &str) {
    let answer = client.ask(&[parse(name, sql), sync()].concat()).await;
    assert_eq!(answer[0].tag, b'1', "{answer:?}");
}

fn run_with(name: &str, values: &[&str]) -> Vec<u8> {
    [bind("", name, values), execute("", 0), sync()].concat()
}

async fn table(sql: &str, backends: u32) -> (Database, Proxy) {
    let db = database().await;
    db.execute(sql).await;
    let proxy = proxy().max_connections(backends).start().await;
    (db, proxy)
}

#[tokio::test]
async fn who_prepares_after_a_change_gets_the_types_of_then() {
    for (before, after, value, stored) in [
        ("int", "text", "007", "007"),
        ("int", "bigint", "3000000000", "3000000000"),
        ("text", "jsonb", "{\"a\":1}", "{\"a\": 1}"),
    ] {
        let (db, proxy) = table(&format!("CREATE TABLE t (x {before})"), 1).await;
        let mut old = proxy.raw(&db).await;
        prepare(&mut old, "s", "INSERT INTO t VALUES ($1)").await;
        db.execute(&format!(
            "ALTER TABLE t ALTER x TYPE {after} USING x::{after}"
        ))
        .await;
        let mut new = proxy.raw(&db).await;
        prepare(&mut new, "s", "INSERT INTO t VALUES ($1)").await;
        assert_eq!(
            errors(&new.ask(&run_with("s", &[value])).await),
            [""; 0],
            "{before}"
        );
        assert_eq!(new.value("SELECT x FROM t").await, stored);
    }
}

#[tokio::test]
async fn who_prepared_before_a_change_keeps_its_types_on_every_backend() {
    let (db, proxy) = table("CREATE TABLE t (x int)", 2).await;
    let mut client = proxy.raw(&db).await;
    prepare(&mut client, "s", "INSERT INTO t VALUES ($1)").await;
    db.execute("ALTER TABLE t ALTER x TYPE text").await;
    let mut other = proxy.raw(&db).await;
    other.query("BEGIN").await;
    // Elsewhere it is prepared only now: an int still, as where it was first.
    assert_eq!(errors(&client.ask(&run_with("s", &["007"])).await), [""; 0]);
    assert_eq!(client.value("SELECT x FROM t").await, "7");
    let refused = client.ask(&run_with("s", &["x"])).await;
    assert_eq!(errors(&refused), ["22P02"]);
    other.query("ROLLBACK").await;
}

#[tokio::test]
async fn rows_of_another_shape_are_the_servers_own_error_on_every_backend() {
    let (db, proxy) = table("CREATE TABLE t AS SELECT 1 AS x", 2).await;
    let mut client = proxy.raw(&db).await;
    prepare(&mut client, "s", "SELECT * FROM t").await;
    assert_eq!(column(&client.ask(&run_with("s", &[])).await), ["1"]);
    db.execute("ALTER TABLE t ALTER x TYPE text").await;
    let here = client.ask(&run_with("s", &[])).await;
    let mut other = proxy.raw(&db).await;
    other.query("BEGIN").await;
    let there = client.ask(&run_with("s", &[])).await;
    let words = |answer: &[crate::support::frames::Frame]| {
        let error = answer.iter().find(|frame| frame.tag == b'E').unwrap();
        ['S', 'V', 'C', 'M'].map(|code| error.field(code as u8))
    };
    assert_eq!(words(&here), words(&there));
    assert_eq!(errors(&there), ["0A000"]);
    let described = client
        .ask(&[describe_statement("s"), sync()].concat())
        .await;
    assert_eq!(errors(&described), ["0A000"]);
    // In a transaction it fails the transaction.
    client.query("BEGIN").await;
    assert_eq!(errors(&client.ask(&run_with("s", &[])).await), ["0A000"]);
    assert_eq!(errors(&client.query("SELECT 1").await), ["25P02"]);
    client.query("ROLLBACK").await;
    other.query("ROLLBACK").await;
    // Whoever prepares it now has it.
    prepare(&mut other, "s", "SELECT * FROM t").await;
    assert_eq!(column(&other.ask(&run_with("s", &[])).await), ["1"]);
}

#[tokio::test]
async fn clients_that_prepare_the_same_share_it_and_leave_no_names_behind() {
    let (db, proxy) = table("CREATE TABLE t (x int)", 1).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = proxy.raw(&db).await;
        prepare(&mut client, "s", "SELECT $1::int + 1").await;
        assert_eq!(column(&client.ask(&run_with("s", &["1"])).await), ["2"]);
        clients.push(client);
    }
    db.execute(HERE).await;
    let (last, _) = clients.split_last_mut().unwrap();
    // The last one's own is closed with the next message that may carry it.
    last.ask(&run_with("s", &["1"])).await;
    assert_eq!(last.value("SELECT statements_here()").await, "1");
}
