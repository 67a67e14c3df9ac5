//! The bound under everything at once: clients that come, leave, vanish, cancel, and backends that are killed.

use super::transactions;
use crate::support::frames::{query, terminate};
use crate::support::{Database, Observer, Proxy, RawClient, database, observer, proxy};

use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const LIMIT: usize = 3;
const CLIENTS: usize = 24;
const CHURN_FOR: Duration = Duration::from_secs(4);

/// One client after the other, each doing something else, until the deadline.
async fn churn(proxy: Arc<Proxy>, databases: Arc<[Database; 2]>, until: Instant) {
    while Instant::now() < until {
        let which = rand::random_range(0..2);
        let mut client = proxy.raw(&databases[which]).await;
        // Everything may fail: backends are being killed.
        let _ = one_life(&mut client).await;
        if rand::random_bool(0.3) {
            client.reset();
        }
    }
}

async fn one_life(client: &mut RawClient) -> std::io::Result<()> {
    for _ in 0..rand::random_range(1..6) {
        match rand::random_range(0..6) {
            0 => {
                client
                    .try_send(&query(
                        "SELECT repeat('x', 2000) FROM generate_series(1, 2000)",
                    ))
                    .await?
            }
            1 => {
                client
                    .try_send(&[query("BEGIN"), query("SELECT pg_sleep(0.02)")].concat())
                    .await?
            }
            2 => {
                client.try_send(&query("SELECT pg_sleep(5)")).await?;
                client.cancel().await;
            }
            3 => {
                client
                    .try_send(&[query("SELECT 1"), terminate()].concat())
                    .await?
            }
            4 => return client.try_send(&query("SELECT 1")[..4]).await,
            _ => {
                client.try_send(&query("SELECT 1")).await?;
                while client
                    .next_frame()
                    .await?
                    .is_some_and(|frame| frame.tag != b'Z')
                {}
            }
        }
        if rand::random_bool(0.2) {
            return Ok(());
        }
    }
    Ok(())
}

/// Connections to both databases at one moment.
async fn count(observer: &Observer, databases: &[Database; 2]) -> usize {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname IN ($1, $2)";
    let names: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
        [&databases[0].name, &databases[1].name];
    let row = observer.client.query_one(sql, &names).await.unwrap();
    usize::try_from(row.get::<_, i64>(0)).unwrap()
}

/// Kills one backend of the databases, whichever.
async fn kill_one(observer: &Observer, databases: &[Database; 2]) {
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname IN ('{}', '{}') ORDER BY random() LIMIT 1",
        databases[0].name, databases[1].name
    );
    observer.client.batch_execute(&sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bound_holds_while_clients_vanish_and_backends_are_killed() {
    let databases = Arc::new([database().await, database().await]);
    let proxy = proxy()
        .max_connections(LIMIT as u32)
        .set("log.level", "warn");
    let proxy = Arc::new(proxy.start().await);
    let observer = observer().await;
    // The first login asks the server; those after it need no backend that might be killed meanwhile.
    for db in databases.iter() {
        proxy.raw(db).await;
    }
    let until = Instant::now() + CHURN_FOR;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(churn(proxy.clone(), databases.clone(), until)))
        .collect();
    let (mut most, mut looks) = (0, 0);
    while Instant::now() < until {
        for _ in 0..20 {
            let now = count(&observer, &databases).await;
            assert!(now <= LIMIT, "{now} connections, {LIMIT} allowed");
            most = most.max(now);
            looks += 1;
        }
        kill_one(&observer, &databases).await;
    }
    assert_eq!(most, LIMIT, "in {looks} looks");
    for client in clients {
        client.await.unwrap();
    }
    // Nothing was lost: as many as allowed can still be had, by one pool and by the other.
    for db in databases.iter() {
        let all = transactions(&proxy, db, LIMIT).await;
        assert_eq!(observer.backends(db).await, LIMIT);
        drop(all);
    }
}
