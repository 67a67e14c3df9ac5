//! There are never more database connections than allowed, and who waits for one is served in order.

mod churn;
mod database_ddl;

use crate::support::frames::{column, errors, query};
use crate::support::{
    Database, Observer, Proxy, RawClient, database, eventually, observer, pid_of, proxy, text,
};
use std::time::Duration;
use tokio::time::Instant;

async fn waiting(proxy: &Proxy, count: usize) {
    let what = format!("{count} clients wait for a backend");
    eventually(&what, async || {
        proxy.metrics().await.sum("pgsluice_clients_waiting", &[]) == count as f64
    })
    .await;
}

async fn backends_become(observer: &Observer, db: &Database, count: usize) {
    let what = format!("{} has {count} backends", db.name);
    eventually(&what, async || observer.backends(db).await == count).await;
}

/// Clients with a transaction each.
async fn transactions(proxy: &Proxy, db: &Database, count: usize) -> Vec<RawClient> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = proxy.raw(db).await;
        client.query("BEGIN").await;
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn as_many_backends_as_allowed_and_no_more() {
    let (db, observer) = (database().await, observer().await);
    let proxy = proxy().max_connections(3).start().await;
    let mut more = [proxy.raw(&db).await, proxy.raw(&db).await];
    let mut clients = transactions(&proxy, &db, 3).await;
    for client in &mut more {
        client.send(&query("SELECT 'served'")).await;
    }
    waiting(&proxy, 2).await;
    assert_eq!(observer.backends(&db).await, 3);
    let metrics = proxy.metrics().await;
    assert_eq!(
        metrics.sum("pgsluice_database_connections", &[("state", "borrowed")]),
        3.0
    );
    assert_eq!(metrics.sum("pgsluice_database_connections", &[]), 3.0);
    assert_eq!(
        metrics.sum("pgsluice_database_connections_allowed", &[]),
        3.0
    );
    clients.pop();
    for client in &mut more {
        assert_eq!(column(&client.ready().await), ["served"]);
    }
}

#[tokio::test]
async fn waiting_clients_are_served_in_the_order_they_came() {
    let db = database().await;
    db.execute("CREATE TABLE served (place serial, client int)")
        .await;
    let proxy = proxy().max_connections(1).start().await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(proxy.raw(&db).await);
    }
    let mut holder = transactions(&proxy, &db, 1).await.remove(0);
    for (number, client) in clients.iter_mut().enumerate() {
        client
            .send(&query(&format!(
                "INSERT INTO served (client) VALUES ({number})"
            )))
            .await;
        waiting(&proxy, number + 1).await;
    }
    // Two of them lose patience: the others keep their places.
    drop(clients.remove(5));
    waiting(&proxy, 7).await;
    clients[2].cancel().await;
    assert_eq!(errors(&clients[2].ready().await), ["57014"]);
    holder.query("COMMIT").await;
    for (number, client) in clients.iter_mut().enumerate() {
        if number != 2 {
            client.ready().await;
        }
    }
    let order = holder.value("SELECT string_agg(client::text, ' ' ORDER BY place) FROM served");
    assert_eq!(order.await, "0 1 3 4 6 7");
}

#[tokio::test]
async fn an_idle_backend_of_another_pool_makes_room() {
    let (one, two) = (database().await, database().await);
    let observer = observer().await;
    let role = one.role("other", "secret").await;
    // However many idle ones may be kept: nothing but making room closes one.
    let proxy = proxy()
        .max_connections(1)
        .set("pool.max_idle_connections_percent", 100)
        .secret(&role, "secret")
        .start()
        .await;
    for _ in 0..3 {
        let client = proxy.connect(&one).await;
        text(&client, "SELECT 1").await;
        let elsewhere = proxy.connect(&two).await;
        text(&elsewhere, "SELECT 1").await;
        assert_eq!(observer.backends(&one).await, 0);
        let other = proxy.connect_as(&one, &role, "secret").await;
        assert_eq!(text(&other, "SELECT current_user").await, role);
        assert_eq!(observer.backends(&two).await, 0);
    }
}

#[tokio::test]
async fn a_waiting_pool_is_served_though_a_busy_one_never_rests() {
    let (busy, patient) = (database().await, database().await);
    let proxy = proxy().max_connections(1).start().await;
    let guest = proxy.connect(&patient).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let client = proxy.connect(&busy).await;
        streams.push(tokio::spawn(async move {
            loop {
                text(&client, "SELECT 1 FROM pg_sleep(0.01)").await;
            }
        }));
    }
    for _ in 0..3 {
        assert_eq!(text(&guest, "SELECT 'served'").await, "served");
    }
    for stream in streams {
        assert!(!stream.is_finished(), "a busy client was refused");
        stream.abort();
    }
}

#[tokio::test]
async fn who_waits_too_long_is_told_so_and_stays() {
    let db = database().await;
    let proxy = proxy()
        .max_connections(1)
        .set("pool.connection_borrow_timeout", 1);
    let proxy = proxy.start().await;
    let mut client = proxy.raw(&db).await;
    let mut holder = transactions(&proxy, &db, 1).await.remove(0);
    let since = Instant::now();
    let refused = client.query("SELECT 1").await;
    assert!(
        since.elapsed() >= Duration::from_millis(950),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(errors(&refused), ["53300"]);
    let words = refused[0].field(b'M').unwrap();
    let expected = "timed out after 1 s waiting for a free database connection";
    assert!(words.starts_with(expected), "{words}");
    assert_eq!(refused[0].field(b'S').as_deref(), Some("ERROR"));
    // A batch is refused as one, up to its Sync.
    let batch = [
        crate::support::frames::extended("SELECT 1", &[]),
        query("SELECT 2"),
    ]
    .concat();
    client.send(&batch).await;
    assert_eq!(errors(&client.until(b'E').await), ["53300"]);
    let rest = client.ask(&crate::support::frames::sync()).await;
    assert_eq!(crate::support::frames::tags(&rest), "Z");
    holder.query("COMMIT").await;
    assert_eq!(client.value("SELECT 'served'").await, "served");
}

#[tokio::test]
async fn a_refusal_is_answered_before_the_request_behind_it() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut client = proxy.raw(&db).await;
    let mut holder = transactions(&proxy, &db, 1).await.remove(0);
    client
        .send(&[query("SELECT 'first'"), query("SELECT 'second'")].concat())
        .await;
    waiting(&proxy, 1).await;
    client.cancel().await;
    // The second one waits in its place; the first one's answer does not wait for that.
    assert_eq!(errors(&client.ready().await), ["57014"]);
    waiting(&proxy, 1).await;
    holder.query("COMMIT").await;
    assert_eq!(column(&client.ready().await), ["second"]);
}

#[tokio::test]
async fn a_refusal_is_not_lost_when_the_request_behind_it_is_served_at_once() {
    let db = database().await;
    let proxy = proxy().max_connections(1).mode("statement").start().await;
    let mut client = proxy.raw(&db).await;
    client
        .send(&[query("BEGIN"), query("SELECT 'second'")].concat())
        .await;
    assert_eq!(errors(&client.ready().await), ["0A000"]);
    assert_eq!(column(&client.ready().await), ["second"]);
}

#[tokio::test]
async fn no_waiting_at_all_may_be_configured() {
    let db = database().await;
    let proxy = proxy()
        .max_connections(1)
        .set("pool.connection_borrow_timeout", 0);
    let proxy = proxy.start().await;
    let mut client = proxy.raw(&db).await;
    let mut holder = transactions(&proxy, &db, 1).await.remove(0);
    assert_eq!(errors(&client.query("SELECT 1").await), ["53300"]);
    holder.query("COMMIT").await;
    assert_eq!(client.value("SELECT 'served'").await, "served");
}

#[tokio::test]
async fn a_percentage_is_taken_of_what_the_server_allows() {
    let db = database().await;
    // The server's max_connections is 200, 3 of them reserved.
    for (percent, allowed) in [(100, 197.0), (50, 98.0), (1, 1.0)] {
        let proxy = proxy()
            .set("pool.max_connections_percent", percent)
            .start()
            .await;
        text(&proxy.connect(&db).await, "SELECT 1").await;
        let what = format!("{percent} percent are {allowed}");
        eventually(&what, async || {
            let metrics = proxy.metrics().await;
            metrics.sum("pgsluice_database_connections_allowed", &[]) == allowed
        })
        .await;
    }
}

#[tokio::test]
async fn a_percentage_bounds_the_backends() {
    let (db, observer) = (database().await, observer().await);
    let proxy = proxy().set("pool.max_connections_percent", 2).start().await;
    let mut more = proxy.raw(&db).await;
    let mut clients = transactions(&proxy, &db, 3).await;
    more.send(&query("SELECT 'served'")).await;
    waiting(&proxy, 1).await;
    assert_eq!(observer.backends(&db).await, 3);
    clients[0].query("COMMIT").await;
    assert_eq!(column(&more.ready().await), ["served"]);
}

#[tokio::test]
async fn a_rule_caps_its_pool_and_no_other() {
    let (capped, free, observer) = (database().await, database().await, observer().await);
    let rule = format!("database = '{}'\nmax_connections = 2", capped.name);
    let proxy = proxy().max_connections(4).rule(&rule).start().await;
    let mut third = proxy.raw(&capped).await;
    let mut two = transactions(&proxy, &capped, 2).await;
    third.send(&query("SELECT 'served'")).await;
    waiting(&proxy, 1).await;
    let _more = transactions(&proxy, &free, 2).await;
    assert_eq!(observer.backends(&capped).await, 2);
    assert_eq!(observer.backends(&free).await, 2);
    two[1].query("COMMIT").await;
    assert_eq!(column(&third.ready().await), ["served"]);
}

#[tokio::test]
async fn a_waiter_kept_out_by_its_pools_cap_holds_nobody_else_up() {
    let (capped, free) = (database().await, database().await);
    let rule = format!("database = '{}'\nmax_connections = 1", capped.name);
    let proxy = proxy().max_connections(2).rule(&rule).start().await;
    let (mut second, guest) = (proxy.raw(&capped).await, proxy.connect(&free).await);
    let mut holder = transactions(&proxy, &capped, 1).await.remove(0);
    second.send(&query("SELECT 'served'")).await;
    waiting(&proxy, 1).await;
    // Longer than the queue's head is patient.
    for _ in 0..10 {
        text(&guest, "SELECT pg_sleep(0.05)").await;
    }
    let mut other = proxy.raw(&free).await;
    assert_eq!(other.value("SELECT 'not held up'").await, "not held up");
    holder.query("COMMIT").await;
    assert_eq!(column(&second.ready().await), ["served"]);
}

#[tokio::test]
async fn a_backend_is_replaced_at_its_age_but_not_in_a_transaction() {
    let db = database().await;
    let proxy = proxy()
        .max_connections(1)
        .set("pool.max_connection_lifetime", "1s");
    let proxy = proxy.start().await;
    let client = proxy.connect(&db).await;
    client.batch_execute("BEGIN").await.unwrap();
    let first = pid_of(&client).await;
    text(&client, "SELECT pg_sleep(1.2)").await;
    assert_eq!(pid_of(&client).await, first);
    client.batch_execute("COMMIT").await.unwrap();
    let second = pid_of(&client).await;
    assert_ne!(second, first);
    eventually("another backend", async || pid_of(&client).await != second).await;
}

#[tokio::test]
async fn an_idle_backend_is_closed_at_its_age() {
    let (db, observer) = (database().await, observer().await);
    let proxy = proxy()
        .set("pool.max_connection_lifetime", "1s")
        .start()
        .await;
    let client = proxy.connect(&db).await;
    let first = pid_of(&client).await;
    eventually("the backend is gone", async || {
        !observer.pids(&db).await.contains(&first)
    })
    .await;
    assert_ne!(pid_of(&client).await, first);
}

#[tokio::test]
async fn idle_backends_beyond_their_share_are_closed() {
    let (db, observer) = (database().await, observer().await);
    let proxy = proxy()
        .max_connections(4)
        .set("pool.max_idle_connections_percent", 50);
    let proxy = proxy.start().await;
    let mut clients = transactions(&proxy, &db, 4).await;
    for client in &mut clients {
        client.query("COMMIT").await;
    }
    assert_eq!(observer.backends(&db).await, 4);
    backends_become(&observer, &db, 2).await;
}
