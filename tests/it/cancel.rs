//! A CancelRequest reaches exactly the query of the client that asked.

use crate::support::frames::{column, errors, extended, query, sync, tags};
use crate::support::{CancelKey, Database, cancel, database, eventually, observer, proxy, waiting};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};

async fn running(db: &Database, count: usize) {
    let observer = observer().await;
    let what = format!("{count} statements sleep");
    let sql = "SELECT count(*) FROM pg_stat_activity \
               WHERE datname = $1 AND state = 'active' AND wait_event = 'PgSleep'";
    eventually(&what, async || {
        let row = observer.client.query_one(sql, &[&db.name]).await.unwrap();
        row.get::<_, i64>(0) == i64::try_from(count).unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_cancel_ends_the_query_of_the_client_that_asked_and_no_other() {
    let db = database().await;
    let proxy = proxy().max_connections(3).start().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(proxy.raw(&db).await);
    }
    for client in &mut clients {
        client.send(&query("SELECT pg_sleep(1.5)")).await;
    }
    running(&db, 3).await;
    clients[1].cancel().await;
    let cancelled = clients[1].ready().await;
    assert_eq!(errors(&cancelled), ["57014"]);
    let words = cancelled
        .iter()
        .find(|frame| frame.tag == b'E')
        .unwrap()
        .field(b'M');
    assert_eq!(words.unwrap(), "canceling statement due to user request");
    assert_eq!(tags(&clients[0].ready().await), "TDCZ");
    assert_eq!(tags(&clients[2].ready().await), "TDCZ");
    assert_eq!(clients[1].value("SELECT 'alive'").await, "alive");
}

#[tokio::test]
async fn a_cancel_follows_its_client_from_backend_to_backend() {
    let db = database().await;
    let proxy = proxy().max_connections(2).start().await;
    let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
    let mut backends = Vec::new();
    for round in 0..4 {
        // The other client takes now one backend, now the other.
        other.query("BEGIN").await;
        backends.push(client.value("SELECT pg_backend_pid()").await);
        client
            .send(&[extended("SELECT pg_sleep(600)", &[]), sync()].concat())
            .await;
        running(&db, 1).await;
        client.cancel().await;
        assert_eq!(errors(&client.ready().await), ["57014"], "round {round}");
        if round % 2 == 0 {
            client.query("BEGIN").await;
            other.query("COMMIT").await;
            other.query("BEGIN").await;
            client.query("COMMIT").await;
        }
        other.query("COMMIT").await;
    }
}

#[tokio::test]
async fn a_cancel_with_a_wrong_key_does_nothing() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut client = proxy.raw(&db).await;
    client.send(&query("SELECT pg_sleep(1)")).await;
    running(&db, 1).await;
    let CancelKey { pid, secret } = client.key.clone();
    let turned: Vec<u8> = secret.iter().map(|byte| !byte).collect();
    let observer = observer().await;
    let backend = u32::try_from(observer.pids(&db).await[0]).unwrap();
    for (pid, secret) in [
        (pid, turned),
        (pid, [&secret[..], &[0]].concat()),
        (pid + 1, secret.clone()),
        (backend, secret.clone()),
        (0, vec![0; 4]),
    ] {
        cancel(proxy.address, &CancelKey { pid, secret }).await;
    }
    assert_eq!(tags(&client.ready().await), "TDCZ");
}

#[tokio::test]
async fn a_key_dies_with_its_session() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let gone = proxy.raw(&db).await;
    let (address, key) = (gone.address, gone.key.clone());
    gone.reset();
    let mut client = proxy.raw(&db).await;
    assert_ne!(client.key, key);
    client.send(&query("SELECT pg_sleep(0.5)")).await;
    running(&db, 1).await;
    cancel(address, &key).await;
    assert_eq!(tags(&client.ready().await), "TDCZ");
}

#[tokio::test]
async fn a_cancel_while_nothing_runs_does_not_harm_the_next_query() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut client = proxy.raw(&db).await;
    for _ in 0..20 {
        client.cancel().await;
        assert_eq!(client.value("SELECT 'unharmed'").await, "unharmed");
    }
    client.query("BEGIN").await;
    client.cancel().await;
    assert_eq!(client.value("SELECT 'unharmed'").await, "unharmed");
    client.query("COMMIT").await;
}

#[tokio::test]
async fn a_cancel_ends_the_waiting_for_a_backend() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let (mut holder, mut client) = (proxy.raw(&db).await, proxy.raw(&db).await);
    holder.query("BEGIN").await;
    client.send(&query("SELECT 'never asked'")).await;
    waiting(&proxy, 1).await;
    client.cancel().await;
    assert_eq!(errors(&client.ready().await), ["57014"]);
    // By the extended protocol too: all is skipped up to the Sync.
    client
        .send(&[extended("SELECT 1", &[]), extended("SELECT 2", &[]), sync()].concat())
        .await;
    waiting(&proxy, 1).await;
    client.cancel().await;
    assert_eq!(tags(&client.ready().await), "EZ");
    holder.query("COMMIT").await;
    assert_eq!(client.value("SELECT 'served'").await, "served");
}

#[tokio::test]
async fn a_cancel_reaches_a_pinned_session() {
    let db = database().await;
    let proxy = proxy().max_connections(1).mode("session").start().await;
    let mut client = proxy.raw(&db).await;
    client.query("CREATE TEMP TABLE x (id int)").await;
    client.send(&query("SELECT pg_sleep(600)")).await;
    running(&db, 1).await;
    client.cancel().await;
    assert_eq!(errors(&client.ready().await), ["57014"]);
    assert_eq!(client.value("SELECT count(*) FROM x").await, "0");
}

#[tokio::test]
async fn a_client_that_cancels_and_leaves_harms_nobody() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut next = proxy.raw(&db).await;
    for _ in 0..20 {
        let mut client = proxy.raw(&db).await;
        client.send(&query("SELECT pg_sleep(600)")).await;
        running(&db, 1).await;
        let (address, key) = (client.address, client.key.clone());
        let cancelling = tokio::spawn(async move { cancel(address, &key).await });
        client.reset();
        assert_eq!(
            next.value("SELECT 'unharmed' FROM pg_sleep(0.01)").await,
            "unharmed"
        );
        cancelling.await.unwrap();
    }
}

const STORM_FOR: Duration = Duration::from_secs(5);

/// Cancels at random moments, several at once, until told to stop.
async fn storm(address: std::net::SocketAddr, key: CancelKey, stop: Arc<AtomicBool>) -> usize {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        cancel(address, &key).await;
        sent += 1;
        let pause = rand::random_range(0..400);
        sleep(Duration::from_micros(pause)).await;
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_cancels_never_hits_the_next_user_of_the_backend() {
    let db = database().await;
    let proxy = proxy()
        .max_connections(1)
        .set("log.level", "warn")
        .start()
        .await;
    let (mut a, mut b) = (proxy.raw(&db).await, proxy.raw(&db).await);
    let stop = Arc::new(AtomicBool::new(false));
    let storms: Vec<_> = (0..3)
        .map(|_| tokio::spawn(storm(proxy.address, a.key.clone(), stop.clone())))
        .collect();
    let victim = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = b.query("SELECT 'b' FROM generate_series(1, 2000)").await;
                assert_eq!(errors(&answer), [""; 0], "after {count} queries");
                count += 1;
            }
            count
        }
    });
    let until = Instant::now() + STORM_FOR;
    let (mut cancelled, mut answered) = (0, 0);
    while Instant::now() < until && !victim.is_finished() {
        let answer = a.query("SELECT 'a' FROM generate_series(1, 2000)").await;
        match errors(&answer).first().map(String::as_str) {
            None => answered += 1,
            Some("57014") => cancelled += 1,
            Some(other) => panic!("{other}"),
        }
        if answered > 0 && column(&answer).iter().any(|value| value != "a") {
            panic!("not its own rows");
        }
    }
    stop.store(true, Ordering::Relaxed);
    let unharmed = victim.await.unwrap();
    let mut sent = 0;
    for storm in storms {
        sent += storm.await.unwrap();
    }
    assert!(
        unharmed > 50 && sent > 100,
        "{unharmed} queries, {sent} cancels, {cancelled} hits"
    );
    assert!(
        cancelled > 0,
        "no cancel of {sent} ever hit; {answered} answered"
    );
}
