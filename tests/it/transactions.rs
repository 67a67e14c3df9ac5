//! A transaction has its backend to itself, and leaves nothing behind however its client goes.

use crate::support::frames::{
    bind, column, copy_data, errors, execute, extended, flush, parse, query, sync, tags, terminate,
};
use crate::support::{
    Database, Proxy, ROLE, RawClient, code_of, database, observer, pid_of, proxy, text, waiting,
};

const TABLE: &str = "CREATE TABLE t (id int)";

async fn one_backend() -> (Database, Proxy) {
    let db = database().await;
    db.execute(TABLE).await;
    let proxy = proxy().max_connections(1).start().await;
    (db, proxy)
}

#[tokio::test]
async fn a_transaction_keeps_its_backend_while_others_come_and_go() {
    let db = database().await;
    let proxy = proxy().max_connections(3).start().await;
    let (a, b) = (proxy.connect(&db).await, proxy.connect(&db).await);
    a.batch_execute("BEGIN").await.unwrap();
    let backend = pid_of(&a).await;
    for _ in 0..20 {
        assert_ne!(pid_of(&b).await, backend);
        assert_eq!(pid_of(&a).await, backend);
    }
    a.batch_execute("COMMIT").await.unwrap();
}

#[tokio::test]
async fn after_commit_a_waiting_client_gets_the_backend() {
    let (db, proxy) = one_backend().await;
    let (mut a, mut b) = (proxy.raw(&db).await, proxy.raw(&db).await);
    for end in [
        "COMMIT",
        "ROLLBACK",
        "PREPARE TRANSACTION 'x'; COMMIT PREPARED 'x'",
    ] {
        a.query("BEGIN").await;
        let backend = a.value("SELECT pg_backend_pid()").await;
        b.send(&query("SELECT pg_backend_pid()")).await;
        waiting(&proxy, 1).await;
        a.query(end).await;
        assert_eq!(column(&b.ready().await), [backend], "{end}");
    }
}

#[tokio::test]
async fn without_a_transaction_the_backend_is_free_after_each_query() {
    let (db, proxy) = one_backend().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(proxy.connect(&db).await);
    }
    let backend = pid_of(&clients[0]).await;
    for client in &clients {
        assert_eq!(pid_of(client).await, backend);
    }
    assert_eq!(observer().await.backends(&db).await, 1);
}

#[tokio::test]
async fn a_failed_transaction_keeps_its_backend_until_it_is_ended() {
    let (db, proxy) = one_backend().await;
    let (mut a, mut b) = (proxy.raw(&db).await, proxy.raw(&db).await);
    a.query("BEGIN").await;
    let failed = a.query("SELECT 1/0").await;
    assert_eq!(failed.last().unwrap().body, "E");
    b.send(&query("SELECT 'served'")).await;
    waiting(&proxy, 1).await;
    assert_eq!(errors(&a.query("SELECT 1").await), ["25P02"]);
    waiting(&proxy, 1).await;
    assert_eq!(tags(&a.query("COMMIT").await), "CZ");
    assert_eq!(column(&b.ready().await), ["served"]);
}

#[tokio::test]
async fn pipelined_transactions_of_two_clients_do_not_mix() {
    let (db, proxy) = one_backend().await;
    let (mut a, mut b) = (proxy.raw(&db).await, proxy.raw(&db).await);
    let flight = |id: &str| {
        let insert = extended("INSERT INTO t VALUES ($1)", &[id]);
        let count = extended("SELECT count(*) FROM t WHERE id = $1", &[id]);
        [
            query("BEGIN"),
            insert,
            sync(),
            count,
            sync(),
            query("ROLLBACK"),
        ]
        .concat()
    };
    for round in 0..20 {
        a.send(&flight("1")).await;
        b.send(&flight("2")).await;
        for client in [&mut a, &mut b] {
            let mut answers = Vec::new();
            for _ in 0..4 {
                answers.extend(client.ready().await);
            }
            assert_eq!(column(&answers), ["1"], "round {round}");
        }
    }
}

/// How a client goes.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    ByClosing,
    ByReset,
}

/// A client opens a transaction that locks and writes, sends `last`, waits for a frame of kind `seen`, and vanishes.
/// On the only backend there may be, the next client must find everything undone.
async fn vanishes_after(last: &[u8], seen: Option<u8>) {
    let (db, proxy) = one_backend().await;
    let observer = observer().await;
    let mut next = proxy.raw(&db).await;
    for leaves in [Leaves::ByClosing, Leaves::ByReset] {
        let mut client = proxy.raw(&db).await;
        client
            .query("BEGIN; LOCK TABLE t; INSERT INTO t VALUES (1)")
            .await;
        client.query("SELECT pg_advisory_xact_lock(1)").await;
        client.send(last).await;
        if let Some(tag) = seen {
            client.until(tag).await;
        }
        go(client, leaves);
        let sql = "BEGIN; LOCK TABLE t NOWAIT; SELECT count(*) FROM t";
        assert_eq!(next.value(sql).await, "0", "{leaves:?}");
        assert_eq!(next.value("SELECT pg_try_advisory_xact_lock(1)").await, "t");
        next.query("COMMIT").await;
        assert_eq!(observer.backends(&db).await, 1, "{leaves:?}");
    }
}

fn go(client: RawClient, leaves: Leaves) {
    match leaves {
        Leaves::ByClosing => drop(client),
        Leaves::ByReset => client.reset(),
    }
}

#[tokio::test]
async fn a_client_that_vanishes_between_statements_is_rolled_back() {
    vanishes_after(b"", None).await;
}

#[tokio::test]
async fn a_client_that_vanishes_while_its_statement_runs_is_rolled_back() {
    vanishes_after(&query("SELECT pg_sleep(600)"), None).await;
}

#[tokio::test]
async fn a_client_that_vanishes_while_an_extended_statement_runs_is_rolled_back() {
    vanishes_after(
        &[extended("SELECT pg_sleep(600)", &[]), sync()].concat(),
        None,
    )
    .await;
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle_of_its_answer_is_rolled_back() {
    let endless = "SELECT repeat('x', 1000), generate_series(1, 100000000)";
    vanishes_after(&query(endless), Some(b'D')).await;
}

#[tokio::test]
async fn a_client_that_vanishes_in_an_aborted_transaction_is_rolled_back() {
    vanishes_after(&query("SELECT 1/0"), Some(b'Z')).await;
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle_of_copy_in_is_rolled_back() {
    let copying = [query("COPY t FROM STDIN"), copy_data(b"1\n2\n")].concat();
    vanishes_after(&copying, Some(b'G')).await;
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle_of_copy_out_is_rolled_back() {
    let endless = "COPY (SELECT repeat('x', 1000), generate_series(1, 100000000)) TO STDOUT";
    vanishes_after(&query(endless), Some(b'd')).await;
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle_of_a_message_is_rolled_back() {
    let whole = query(&format!(
        "INSERT INTO t SELECT length('{}')",
        "x".repeat(300_000)
    ));
    vanishes_after(&whole[..3], None).await;
    vanishes_after(&whole[..200_000], None).await;
}

#[tokio::test]
async fn a_client_that_vanishes_before_its_sync_is_rolled_back() {
    let batch = [extended("INSERT INTO t VALUES (2)", &[]), flush()].concat();
    vanishes_after(&batch, Some(b'C')).await;
    vanishes_after(&extended("INSERT INTO t VALUES (2)", &[]), None).await;
}

#[tokio::test]
async fn a_client_that_vanishes_with_an_open_portal_is_rolled_back() {
    let open = [
        parse("", "SELECT generate_series(1, 1000)"),
        bind("p", "", &[]),
    ]
    .concat();
    vanishes_after(&[open, execute("p", 10), flush()].concat(), Some(b's')).await;
}

#[tokio::test]
async fn a_batch_without_a_transaction_whose_sync_never_comes_is_rolled_back() {
    let (db, proxy) = one_backend().await;
    let mut next = proxy.raw(&db).await;
    let batch = [extended("INSERT INTO t VALUES (3)", &[]), flush()].concat();
    for leaves in [Leaves::ByClosing, Leaves::ByReset] {
        let mut client = proxy.raw(&db).await;
        client.send(&batch).await;
        client.until(b'C').await;
        go(client, leaves);
        assert_eq!(
            next.value("SELECT count(*) FROM t").await,
            "0",
            "{leaves:?}"
        );
    }
}

#[tokio::test]
async fn a_polite_goodbye_instead_of_a_sync_rolls_the_batch_back() {
    let (db, proxy) = one_backend().await;
    let batch = [extended("INSERT INTO t VALUES (3)", &[]), terminate()].concat();
    for address in [db.server.address, proxy.address] {
        let mut client = RawClient::login(address, &db.name, ROLE, "", &[]).await;
        client.send(&batch).await;
        client.rest().await;
        let mut next = proxy.raw(&db).await;
        assert_eq!(next.value("SELECT count(*) FROM t").await, "0", "{address}");
    }
}

#[tokio::test]
async fn a_polite_goodbye_in_a_transaction_rolls_it_back() {
    let (db, proxy) = one_backend().await;
    let client = proxy.connect(&db).await;
    client
        .batch_execute("BEGIN; LOCK TABLE t; INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    drop(client);
    let next = proxy.connect(&db).await;
    assert_eq!(text(&next, "SELECT count(*) FROM t").await, "0");
}

#[tokio::test]
async fn what_was_asked_before_a_polite_goodbye_is_carried_out() {
    let (db, proxy) = one_backend().await;
    let mut client = proxy.raw(&db).await;
    let slow = "INSERT INTO t SELECT 1 FROM pg_sleep(0.2)";
    client.send(&[query(slow), terminate()].concat()).await;
    client.rest().await;
    drop(client);
    let next = proxy.connect(&db).await;
    assert_eq!(text(&next, "SELECT count(*) FROM t").await, "1");
}

#[tokio::test]
async fn an_idle_transaction_is_ended_with_postgresqls_words() {
    let db = database().await;
    db.execute(TABLE).await;
    let proxy = proxy()
        .max_connections(1)
        .set("pool.idle_in_transaction_timeout", "300ms");
    let proxy = proxy.start().await;
    let mut direct = db.raw().await;
    direct
        .query("SET idle_in_transaction_session_timeout = '100ms'; BEGIN")
        .await;
    let expected = direct.rest().await;
    let mut next = proxy.raw(&db).await;
    for opening in [
        "BEGIN; LOCK TABLE t; INSERT INTO t VALUES (1)",
        "BEGIN; SELECT 1/0",
    ] {
        let mut idle = proxy.raw(&db).await;
        idle.query(opening).await;
        next.send(&query(
            "BEGIN; LOCK TABLE t NOWAIT; SELECT count(*) FROM t; COMMIT",
        ))
        .await;
        let last = idle.rest().await;
        for field in *b"SVCM" {
            assert_eq!(last[0].field(field), expected[0].field(field));
        }
        assert_eq!(errors(&last), ["25P03"]);
        assert_eq!(column(&next.ready().await), ["0"]);
    }
    let closed = [("reason", "idle_in_transaction_timeout")];
    let metrics = proxy.metrics().await;
    assert_eq!(
        metrics.sum("pgsluice_client_connections_closed_total", &closed),
        2.0
    );
}

#[tokio::test]
async fn a_transaction_that_is_not_idle_outlives_the_idle_timeout() {
    let db = database().await;
    let proxy = proxy()
        .set("pool.idle_in_transaction_timeout", "400ms")
        .start()
        .await;
    let client = proxy.connect(&db).await;
    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute("SELECT pg_sleep(1.2)").await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
}

#[tokio::test]
async fn a_statement_over_the_query_timeout_is_cancelled_and_its_session_lives() {
    let db = database().await;
    let proxy = proxy()
        .max_connections(1)
        .set("pool.query_timeout", "300ms")
        .start()
        .await;
    let client = proxy.connect(&db).await;
    client.batch_execute("BEGIN").await.unwrap();
    let error = client
        .batch_execute("SELECT pg_sleep(600)")
        .await
        .unwrap_err();
    assert_eq!(code_of(&error), "57014");
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(text(&client, "SELECT 'alive'").await, "alive");
}
