//! SIGTERM: nobody new, what runs may finish, idle sessions go at once, exit code 0, and nothing is left on the server.

use crate::support::wire::Wire;
use crate::support::{
    Database, PASSWORD, Proxy, ROLE, RawClient, database, eventually, frames, observer, proxy,
};
use std::time::{Duration, Instant};

/// "At once", on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

/// The client is told that the server is going down, and nothing else.
async fn is_sent_away(client: &mut RawClient, who: &str) {
    let last = client.rest().await;
    assert_eq!(frames::errors(&last), ["57P01"], "{who}: {last:?}");
    assert_eq!(last.len(), 1, "{who}: {last:?}");
    assert_eq!(last[0].field(b'S').as_deref(), Some("FATAL"), "{who}");
}

/// The process ends in order, and soon; the server has no connection of it any more.
async fn ends_in_order(mut proxy: Proxy, db: &Database) {
    let begin = Instant::now();
    let status = proxy.ended().await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(
        begin.elapsed() < AT_ONCE,
        "ended only after {:?}",
        begin.elapsed()
    );
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
    let observer = observer().await;
    eventually("no backend is left", async || {
        observer.backends(db).await == 0
    })
    .await;
}

/// After the signal: waits until it has been noticed.
async fn is_draining(proxy: &Proxy) {
    eventually("not ready any more", async || {
        proxy.http("/readyz").await.0 == 503
    })
    .await;
}

#[tokio::test]
async fn with_nobody_there_it_ends_at_once() {
    for signal in ["TERM", "INT"] {
        let db = database().await;
        let proxy = proxy().start().await;
        // An idle backend stays behind a client.
        let mut client = proxy.raw(&db).await;
        client.send(&frames::terminate()).await;
        client.rest().await;
        // Somebody who has not even said hello holds nothing up.
        let _stranger = RawClient::connect(proxy.address).await;
        proxy.signal(signal);
        ends_in_order(proxy, &db).await;
    }
}

#[tokio::test]
async fn idle_sessions_go_at_once_and_a_transaction_finishes() {
    let db = database().await;
    db.execute("create table t (x int)").await;
    let proxy = proxy().set("run.drain_timeout", "60s").start().await;
    let mut busy = proxy.raw(&db).await;
    busy.query("begin; insert into t values (1)").await;
    let mut idle = proxy.raw(&db).await;
    idle.query("select 1").await;
    let mut pinned = proxy.raw(&db).await;
    pinned.query("create temp table mine (x int)").await;
    let mut listener = proxy.raw(&db).await;
    listener.query("listen somebody").await;
    let begin = Instant::now();
    proxy.signal("TERM");
    is_sent_away(&mut idle, "idle").await;
    is_sent_away(&mut pinned, "idle and pinned").await;
    is_sent_away(&mut listener, "listening").await;
    assert!(
        begin.elapsed() < AT_ONCE,
        "told only after {:?}",
        begin.elapsed()
    );
    // As many statements as it likes, whatever they say.
    busy.query("insert into t values (2)").await;
    assert_eq!(busy.value("select count(*) from t").await, "2");
    let failed = busy.query("savepoint s; select 1/0").await;
    assert_eq!(frames::errors(&failed), ["22012"]);
    busy.query("rollback to s").await;
    let done = busy.query("commit").await;
    assert_eq!(frames::tags(&done), "CZ", "{done:?}");
    is_sent_away(&mut busy, "after its commit").await;
    ends_in_order(proxy, &db).await;
    assert_eq!(db.raw().await.value("select count(*) from t").await, "2");
}

#[tokio::test]
async fn it_says_that_it_is_not_ready_and_lets_nobody_in() {
    let db = database().await;
    let role = db.role("app", "secret").await;
    let proxy = proxy()
        .secret(&role, "secret")
        .set("run.drain_timeout", "60s")
        .start()
        .await;
    assert_eq!(proxy.http("/readyz").await, (200, "ready\n".into()));
    let mut busy = proxy.raw(&db).await;
    busy.query("begin").await;
    // Half-way through its login when the signal comes.
    let mut newcomer = Wire::tcp(proxy.address).await;
    newcomer
        .send(&frames::startup(&[("user", &role), ("database", &db.name)]))
        .await;
    eventually("it is heard", async || {
        let received = "pgsluice_client_connections_received_total";
        proxy.metrics().await.sum(received, &[]) == 2.0
    })
    .await;
    proxy.signal("TERM");
    is_draining(&proxy).await;
    assert_eq!(proxy.http("/readyz").await, (503, "draining\n".into()));
    assert_eq!(proxy.http("/healthz").await.0, 200);
    let refused = newcomer.finish_login(&role, "secret").await.unwrap_err();
    assert_eq!(refused.sqlstate(), "57P03", "{refused:?}");
    eventually(
        "nobody is let in",
        async || match tokio::net::TcpStream::connect(proxy.address).await {
            Err(_) => true,
            Ok(stream) => match Wire::new(stream).log_in(&db.name, ROLE, PASSWORD).await {
                Err(refused) => refused.sqlstate() == "57P03",
                Ok(_) => panic!("let in while stopping"),
            },
        },
    )
    .await;
    busy.query("commit").await;
    is_sent_away(&mut busy, "after its commit").await;
    ends_in_order(proxy, &db).await;
}

#[tokio::test]
async fn a_running_statement_finishes_and_is_answered() {
    let db = database().await;
    let proxy = proxy().set("run.drain_timeout", "60s").start().await;
    let mut busy = proxy.raw(&db).await;
    busy.send(&frames::query("select pg_sleep(1), 'done'"))
        .await;
    let observer = observer().await;
    eventually("it runs", async || {
        observer.in_state(&db, "active").await == 1
    })
    .await;
    proxy.signal("TERM");
    let answer = busy.ready().await;
    assert_eq!(frames::tags(&answer), "TDCZ", "{answer:?}");
    is_sent_away(&mut busy, "after its statement").await;
    ends_in_order(proxy, &db).await;
}

#[tokio::test]
async fn a_long_result_is_read_to_its_end() {
    const ROWS: usize = 100_000;
    let db = database().await;
    let proxy = proxy().set("run.drain_timeout", "60s").start().await;
    let mut reader = proxy.raw(&db).await;
    let sql = format!("select repeat('x', 100) from generate_series(1, {ROWS})");
    reader.send(&frames::query(&sql)).await;
    reader.until(b'D').await;
    proxy.signal("TERM");
    is_draining(&proxy).await;
    let answer = reader.ready().await;
    let rows = answer.iter().filter(|frame| frame.tag == b'D').count();
    assert_eq!(rows, ROWS - 1);
    is_sent_away(&mut reader, "after its result").await;
    ends_in_order(proxy, &db).await;
}

#[tokio::test]
async fn who_waits_for_a_database_connection_is_sent_away() {
    let db = database().await;
    let proxy = proxy()
        .max_connections(1)
        .set("run.drain_timeout", "60s")
        .start()
        .await;
    let mut busy = proxy.raw(&db).await;
    let mut waiting = proxy.raw(&db).await;
    busy.query("begin").await;
    waiting.send(&frames::query("select 1")).await;
    eventually("it waits", async || {
        proxy.metrics().await.sum("pgsluice_clients_waiting", &[]) == 1.0
    })
    .await;
    proxy.signal("TERM");
    is_sent_away(&mut waiting, "waiting").await;
    busy.query("commit").await;
    is_sent_away(&mut busy, "after its commit").await;
    ends_in_order(proxy, &db).await;
}

/// A proxy with an endless statement and an open transaction that has written a row.
async fn with_endless_work(drain_timeout: &str) -> (Database, Proxy, RawClient, RawClient) {
    let db = database().await;
    db.execute("create table t (x int)").await;
    let proxy = proxy()
        .set("run.drain_timeout", drain_timeout)
        .start()
        .await;
    let mut endless = proxy.raw(&db).await;
    let mut open = proxy.raw(&db).await;
    open.query("begin; insert into t values (1)").await;
    endless.send(&frames::query("select pg_sleep(600)")).await;
    let observer = observer().await;
    eventually("it runs", async || {
        observer.in_state(&db, "active").await == 1
    })
    .await;
    (db, proxy, endless, open)
}

async fn is_rolled_back(db: &Database) {
    let observer = observer().await;
    eventually("no backend is left", async || {
        observer.backends(db).await == 0
    })
    .await;
    assert_eq!(db.raw().await.value("select count(*) from t").await, "0");
}

#[tokio::test]
async fn the_drain_timeout_ends_what_is_left() {
    let (db, proxy, mut endless, mut open) = with_endless_work("1s").await;
    let begin = Instant::now();
    proxy.signal("TERM");
    is_sent_away(&mut endless, "endless").await;
    assert!(
        begin.elapsed() >= Duration::from_millis(900),
        "after {:?}",
        begin.elapsed()
    );
    is_sent_away(&mut open, "open").await;
    ends_in_order(proxy, &db).await;
    is_rolled_back(&db).await;
}

#[tokio::test]
async fn a_second_signal_ends_it_now() {
    for signals in [["TERM", "TERM"], ["INT", "TERM"]] {
        let (db, proxy, mut endless, mut open) = with_endless_work("600s").await;
        proxy.signal(signals[0]);
        is_draining(&proxy).await;
        proxy.signal(signals[1]);
        is_sent_away(&mut endless, "endless").await;
        is_sent_away(&mut open, "open").await;
        ends_in_order(proxy, &db).await;
        is_rolled_back(&db).await;
    }
}

#[tokio::test]
async fn a_hang_up_does_not_end_it() {
    let db = database().await;
    let proxy = proxy().start().await;
    let mut client = proxy.raw(&db).await;
    proxy.signal("HUP");
    eventually("it was noticed", async || proxy.log().contains("SIGHUP")).await;
    assert_eq!(client.value("select 1").await, "1");
    assert_eq!(proxy.http("/readyz").await.0, 200);
}
