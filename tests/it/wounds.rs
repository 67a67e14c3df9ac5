//! What hurt other poolers: rows of other people's queries, replies left unread, dead backends lent.

mod own_rows;

use crate::support::frames::{
    bind, column, copy_data, describe_statement, errors, execute, extended, flush, parse, query,
    sync, tags,
};
use crate::support::{Database, Proxy, database, eventually, observer, pid_of, proxy, text};

async fn one_backend() -> (Database, Proxy) {
    let db = database().await;
    db.execute("CREATE TABLE t (id int)").await;
    let proxy = proxy().max_connections(1).start().await;
    (db, proxy)
}

#[tokio::test]
async fn replies_that_a_client_left_unread_reach_nobody() {
    let (db, proxy) = one_backend().await;
    let mut next = proxy.raw(&db).await;
    let many = (0..50).flat_map(|_| [extended("SELECT 'not yours'", &[]), sync()].concat());
    let unread = [
        query("SELECT 'not yours' FROM generate_series(1, 100000)"),
        query("SELECT 'not yours'; SELECT pg_sleep(0.05); SELECT 'not yours'"),
        many.collect(),
        [extended("SELECT 'not yours'", &[]), flush()].concat(),
        [parse("", "SELECT 'not yours'"), flush()].concat(),
        [
            query("SELECT 1/0"),
            query("SELECT 'not yours'"),
            query("SELECT 1/0"),
        ]
        .concat(),
        [query("COPY t FROM STDIN"), copy_data(b"1\n")].concat(),
        query("COPY (SELECT 'not yours' FROM generate_series(1, 100000)) TO STDOUT"),
        query("DO $$ BEGIN RAISE NOTICE 'not yours'; PERFORM pg_sleep(0.05); END $$"),
        query("LISTEN x; NOTIFY x, 'not yours'"),
    ];
    for bytes in unread {
        for resets in [false, true] {
            let mut client = proxy.raw(&db).await;
            client.send(&bytes).await;
            next.send(&query("SELECT 'mine'")).await;
            if resets {
                client.reset();
            } else {
                drop(client);
            }
            let answer = next.ready().await;
            assert_eq!(tags(&answer), "TDCZ", "{answer:?}");
            assert_eq!(column(&answer), ["mine"]);
        }
    }
}

#[tokio::test]
async fn a_backend_that_died_idle_is_replaced_before_it_is_lent() {
    let db = database().await;
    let (proxy, observer) = (proxy().max_connections(3).start().await, observer().await);
    let client = proxy.connect(&db).await;
    let mut extended_client = proxy.raw(&db).await;
    for round in 0..10 {
        // Three idle backends, all of them killed; the next queries must not notice.
        let mut busy = Vec::new();
        for _ in 0..3 {
            let mut client = proxy.raw(&db).await;
            client.query("BEGIN").await;
            busy.push(client);
        }
        for client in &mut busy {
            client.query("COMMIT").await;
        }
        for pid in observer.pids(&db).await {
            observer.terminate(pid).await;
        }
        assert_eq!(observer.backends(&db).await, 0);
        assert_eq!(
            text(&client, "SELECT 'unharmed'").await,
            "unharmed",
            "round {round}"
        );
        let batch = [extended("SELECT 'unharmed'", &[]), sync()].concat();
        let answer = extended_client.ask(&batch).await;
        assert_eq!(column(&answer), ["unharmed"], "{answer:?}");
        assert!(observer.backends(&db).await <= 3);
    }
}

#[tokio::test]
async fn a_statement_on_a_dying_backend_is_not_sent_again() {
    let (db, proxy) = one_backend().await;
    let observer = observer().await;
    let mut next = proxy.raw(&db).await;
    db.execute("CREATE SEQUENCE tries").await;
    let slow = "INSERT INTO t SELECT nextval('tries') FROM pg_sleep(600)";
    let slow_after = "SELECT nextval('tries'), pg_sleep(600)";
    for (round, sql) in [slow_after, slow].iter().enumerate() {
        let mut client = proxy.raw(&db).await;
        client.send(&query(sql)).await;
        eventually("it runs", async || {
            observer.in_state(&db, "active").await == 1
        })
        .await;
        let pid = observer.pids(&db).await[0];
        observer.terminate(pid).await;
        let last = client.rest().await;
        assert_eq!(errors(&last), ["57P01"], "round {round}");
        assert_eq!(next.value("SELECT count(*) FROM t").await, "0");
        assert_eq!(observer.in_state(&db, "active").await, 0);
    }
    assert_eq!(
        next.value("SELECT last_value, is_called FROM tries").await,
        "1"
    );
}

#[tokio::test]
async fn a_transaction_whose_backend_died_is_not_continued_on_another() {
    let (db, proxy) = one_backend().await;
    let observer = observer().await;
    let mut client = proxy.raw(&db).await;
    client.query("BEGIN; INSERT INTO t VALUES (1)").await;
    observer.terminate(observer.pids(&db).await[0]).await;
    let _ = client.try_send(&query("INSERT INTO t VALUES (2)")).await;
    let last = client.rest().await;
    assert_eq!(errors(&last), ["57P01"], "{last:?}");
    let next = proxy.connect(&db).await;
    assert_eq!(text(&next, "SELECT count(*) FROM t").await, "0");
}

#[tokio::test]
async fn names_prepared_once_are_used_across_transactions() {
    let db = database().await;
    db.execute(
        "CREATE TABLE t (id int, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 3) i",
    )
    .await;
    let proxy = proxy().max_connections(3).start().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = proxy.raw(&db).await;
        // As pgbench does: each command of its script has a name.
        let names = [
            parse("P0_0", "BEGIN"),
            parse("P0_1", "UPDATE t SET n = n + 1 WHERE id = $1"),
            parse("P0_2", "SELECT n FROM t WHERE id = $1"),
            parse("P0_3", "END"),
            sync(),
        ];
        client.ask(&names.concat()).await;
        clients.push(client);
    }
    for round in 1..=20 {
        for (number, client) in clients.iter_mut().enumerate() {
            let id = (number + 1).to_string();
            let run = |name: &str, values: &[&str]| {
                [
                    bind("", name, values),
                    describe_statement(name),
                    execute("", 0),
                    sync(),
                ]
                .concat()
            };
            client.ask(&run("P0_0", &[])).await;
            client.ask(&run("P0_1", &[&id])).await;
            assert_eq!(
                column(&client.ask(&run("P0_2", &[&id])).await),
                [round.to_string()]
            );
            let end = client.ask(&run("P0_3", &[])).await;
            assert_eq!(end.last().unwrap().body, "I");
            // And outside of a transaction.
            assert_eq!(
                column(&client.ask(&run("P0_2", &[&id])).await),
                [round.to_string()]
            );
        }
    }
}

#[tokio::test]
async fn drivers_that_flush_inside_a_transaction_are_answered() {
    let (db, proxy) = one_backend().await;
    let mut client = proxy.raw(&db).await;
    for round in 0..10 {
        assert_eq!(tags(&client.query("BEGIN").await), "CZ");
        client
            .send(
                &[
                    parse("", "INSERT INTO t VALUES ($1)"),
                    describe_statement(""),
                    flush(),
                ]
                .concat(),
            )
            .await;
        assert_eq!(tags(&client.until(b'n').await), "1tn");
        client
            .send(&[bind("", "", &["1"]), execute("", 0), flush()].concat())
            .await;
        assert_eq!(tags(&client.until(b'C').await), "2C");
        client
            .send(
                &[
                    parse("", "SELECT count(*) FROM t"),
                    bind("", "", &[]),
                    flush(),
                ]
                .concat(),
            )
            .await;
        assert_eq!(tags(&client.until(b'2').await), "12");
        let rest = client.ask(&[execute("", 0), sync()].concat()).await;
        assert_eq!(tags(&rest), "DCZ", "round {round}");
        assert_eq!(tags(&client.query("ROLLBACK").await), "CZ");
    }
}

#[tokio::test]
async fn a_batch_that_waits_for_its_sync_keeps_its_backend() {
    let (db, proxy) = one_backend().await;
    let (mut slow, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
    slow.send(&[extended("INSERT INTO t VALUES (1)", &[]), flush()].concat())
        .await;
    slow.until(b'C').await;
    other.send(&query("SELECT count(*) FROM t")).await;
    eventually("the other waits", async || {
        proxy.metrics().await.sum("pgsluice_clients_waiting", &[]) == 1.0
    })
    .await;
    slow.send(&extended("INSERT INTO t VALUES (2)", &[])).await;
    slow.ask(&sync()).await;
    assert_eq!(column(&other.ready().await), ["2"]);
}

#[tokio::test]
async fn an_error_belongs_to_the_statement_that_caused_it() {
    let (db, proxy) = one_backend().await;
    let (mut a, mut b) = (proxy.raw(&db).await, proxy.raw(&db).await);
    for sql in [
        "SET work_mem = 'much'",
        "SET nowhere = 1",
        "SET TimeZone = 'Nowhere'",
        "SELEC",
    ] {
        assert_eq!(errors(&a.query(sql).await).len(), 1, "{sql}");
        assert_eq!(tags(&a.query("SELECT 1").await), "TDCZ");
        let batch = [extended(sql, &[]), sync()].concat();
        assert_eq!(errors(&a.ask(&batch).await).len(), 1, "{sql}");
        assert_eq!(tags(&a.query("SELECT 1").await), "TDCZ");
        a.query("DISCARD ALL").await;
        assert_eq!(tags(&b.query("SELECT 1").await), "TDCZ");
    }
}

#[tokio::test]
async fn a_refused_parse_leaves_no_older_statement_in_its_place() {
    let db = database().await;
    let proxy = proxy()
        .max_connections(1)
        .set("pool.connection_borrow_timeout", 0);
    let proxy = proxy.start().await;
    let (mut client, mut holder) = (proxy.raw(&db).await, proxy.raw(&db).await);
    client
        .ask(&[parse("", "SELECT 'old'"), sync()].concat())
        .await;
    holder.query("BEGIN").await;
    let refused = client
        .ask(&[parse("", "SELECT 'new'"), sync()].concat())
        .await;
    assert_eq!(errors(&refused), ["53300"]);
    holder.query("COMMIT").await;
    let answer = client
        .ask(&[bind("", "", &[]), execute("", 0), sync()].concat())
        .await;
    assert_eq!(
        column(&answer),
        [""; 0],
        "the old statement in place of the new"
    );
    assert_eq!(errors(&answer), ["26000"]);
}

#[tokio::test]
async fn a_statement_timeout_leaves_the_backend_usable_by_the_next() {
    let db = database().await;
    let proxy = proxy()
        .max_connections(1)
        .set("pool.query_timeout", "200ms")
        .start()
        .await;
    let (mut a, mut b) = (proxy.raw(&db).await, proxy.raw(&db).await);
    for round in 0..5 {
        a.send(&[query("SELECT pg_sleep(600)"), query("SELECT 'a'")].concat())
            .await;
        b.send(&query("SELECT 'b'")).await;
        assert_eq!(errors(&a.ready().await), ["57014"], "round {round}");
        assert_eq!(column(&a.ready().await), ["a"]);
        assert_eq!(column(&b.ready().await), ["b"]);
    }
}

#[tokio::test]
async fn sequence_values_of_another_client_are_not_seen() {
    let (db, proxy) = one_backend().await;
    db.execute("CREATE SEQUENCE s").await;
    let (a, b) = (proxy.connect(&db).await, proxy.connect(&db).await);
    assert_eq!(text(&a, "SELECT nextval('s')").await, "1");
    for sql in ["SELECT lastval()", "SELECT currval('s')"] {
        let seen = b.simple_query(sql).await;
        assert!(seen.is_err(), "{sql}: another client's value: {seen:?}");
    }
    assert!(pid_of(&b).await > 0);
}

#[tokio::test]
async fn a_setting_made_inside_a_block_is_not_seen_by_others() {
    let (db, proxy) = one_backend().await;
    let (a, b) = (proxy.connect(&db).await, proxy.connect(&db).await);
    let hidden = "DO $$ BEGIN SET work_mem = '77MB'; END $$";
    a.batch_execute(hidden).await.unwrap();
    // However the proxy keeps it from others: b must not wait for ever, and not see it.
    drop(a);
    assert_eq!(text(&b, "SHOW work_mem").await, "4MB");
}
