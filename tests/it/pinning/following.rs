//! What pins nothing: the session's state follows it to whichever backend it gets.

use super::{HERE, PINS, database, proxy};
use crate::support::frames::{bind, close_statement, column, errors, execute, parse, query, sync};
use crate::support::{RawClient, waiting};

/// Two backends, and two others who hold one of them in turn: the client goes from one to the other and back.
async fn follows_its_client(begin: &[Vec<u8>], witness: &[u8], expected: &str) {
    let db = database().await;
    let proxy = proxy().max_connections(2).start().await;
    let mut client = proxy.raw(&db).await;
    for part in begin {
        let answer = client.ask(part).await;
        assert_eq!(errors(&answer), [""; 0], "{answer:?}");
    }
    let (mut one, mut two) = (proxy.raw(&db).await, proxy.raw(&db).await);
    let mut backends = std::collections::HashSet::new();
    one.query("BEGIN").await;
    for _ in 0..4 {
        assert_eq!(column(&client.ask(witness).await), [expected]);
        backends.insert(client.value("SELECT pg_backend_pid()").await);
        two.query("BEGIN").await;
        one.query("COMMIT").await;
        std::mem::swap(&mut one, &mut two);
    }
    assert_eq!(backends.len(), 2);
    for other in [&mut one, &mut two] {
        assert_ne!(column(&other.ask(witness).await), [expected]);
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum(PINS, &[]), 0.0);
    assert_eq!(metrics.sum("pgsluice_pins_total", &[]), 0.0);
}

async fn setting(sql: &str, witness: &str, expected: &str) {
    follows_its_client(&[query(sql)], &query(witness), expected).await;
}

#[tokio::test]
async fn a_setting() {
    setting("SET work_mem = '5MB'", "SHOW work_mem", "5MB").await;
}

#[tokio::test]
async fn a_setting_by_function() {
    let sql = "SELECT set_config('work_mem', '6MB', false)";
    setting(sql, "SHOW work_mem", "6MB").await;
}

#[tokio::test]
async fn a_setting_that_only_the_server_reports() {
    let sql = "DO $$ BEGIN PERFORM set_config('TimeZone', 'Asia/Tokyo', false); END $$";
    setting(sql, "SHOW TimeZone", "Asia/Tokyo").await;
}

#[tokio::test]
async fn a_setting_of_the_applications_own() {
    let sql = "SELECT set_config('app.user', 'J\u{fc}rgen''s', false)";
    let witness = "SELECT current_setting('app.user', true)";
    setting(sql, witness, "J\u{fc}rgen's").await;
}

#[tokio::test]
async fn a_setting_by_bound_arguments() {
    let arguments = ["app.user", "me"];
    let begin = [
        parse("", "SELECT set_config($1, $2, false)"),
        bind("", "", &arguments),
        execute("", 0),
        sync(),
    ]
    .concat();
    let witness = query("SELECT current_setting('app.user', true)");
    follows_its_client(&[begin], &witness, "me").await;
}

#[tokio::test]
async fn what_a_shared_statement_sets() {
    let prepare = [parse("set", "SELECT set_config($1, $2, false)"), sync()].concat();
    let arguments = ["app.user", "me"];
    let run = [bind("", "set", &arguments), execute("", 0), sync()].concat();
    let witness = query("SELECT current_setting('app.user', true)");
    follows_its_client(&[prepare, run], &witness, "me").await;
}

#[tokio::test]
async fn a_role() {
    setting("SET ROLE pg_monitor", "SELECT current_user", "pg_monitor").await;
}

#[tokio::test]
async fn a_session_user() {
    let sql = "SET SESSION AUTHORIZATION pg_monitor";
    setting(sql, "SELECT session_user", "pg_monitor").await;
}

#[tokio::test]
async fn session_characteristics() {
    let sql = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY";
    setting(sql, "SHOW default_transaction_read_only", "on").await;
}

#[tokio::test]
async fn a_named_statement() {
    let prepare = [parse("s", "SELECT 'mine'"), sync()].concat();
    let run = [bind("", "s", &[]), execute("", 0), sync()].concat();
    follows_its_client(&[prepare], &run, "mine").await;
}

#[tokio::test]
async fn what_a_transaction_set_counts_as_the_server_says() {
    for (end, expected) in [
        ("COMMIT", "6MB"),
        ("ROLLBACK", "5MB"),
        ("ROLLBACK TO a; COMMIT", "7MB"),
        ("ROLLBACK TO a; RESET work_mem; COMMIT", "4MB"),
    ] {
        let db = database().await;
        let proxy = proxy().max_connections(2).start().await;
        let mut client = proxy.raw(&db).await;
        client.query("SET work_mem = '5MB'").await;
        client
            .query("BEGIN; SET work_mem = '7MB'; SAVEPOINT a")
            .await;
        client.query("SET LOCAL work_mem = '9MB'").await;
        client.query("SET work_mem = '6MB'").await;
        client.query(end).await;
        let mut other = proxy.raw(&db).await;
        other.query("BEGIN").await;
        for _ in 0..3 {
            assert_eq!(client.value("SHOW work_mem").await, expected, "{end}");
        }
    }
}

async fn prepare(client: &mut RawClient, name: &str, sql: &str) -> u8 {
    let answer = client.ask(&[parse(name, sql), sync()].concat()).await;
    answer[0].tag
}

#[tokio::test]
async fn statements_of_the_same_text_are_one_on_a_backend_and_the_least_used_goes_first() {
    let db = database().await;
    let proxy = proxy()
        .max_connections(1)
        .set("pool.max_prepared_statements", 2)
        .start()
        .await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = proxy.raw(&db).await;
        for (name, sql) in [("a", "SELECT 1"), ("b", "SELECT 2"), ("c", "SELECT 3")] {
            assert_eq!(prepare(&mut client, name, sql).await, b'1');
        }
        clients.push(client);
    }
    // The view itself shows a client its own.
    db.execute(HERE).await;
    for client in &mut clients {
        for (name, expected) in [("a", "1"), ("b", "2"), ("c", "3"), ("a", "1")] {
            let run = [bind("", name, &[]), execute("", 0), sync()].concat();
            assert_eq!(column(&client.ask(&run).await), [expected]);
            assert_eq!(client.value("SELECT statements_here()").await, "2");
        }
    }
}

#[tokio::test]
async fn a_batch_that_fails_changes_no_names() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut client = proxy.raw(&db).await;
    prepare(&mut client, "old", "SELECT 'old'").await;
    let batch = [
        parse("bad", "SELECT nonsense"),
        parse("new", "SELECT 'new'"),
        close_statement("old"),
        sync(),
        bind("", "new", &[]),
        execute("", 0),
        sync(),
        bind("", "old", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    client.send(&batch).await;
    let (first, second) = (client.ready().await, client.ready().await);
    assert_eq!(errors(&first).len(), 1, "{first:?}");
    assert!(format!("{second:?}").contains("26000"), "{second:?}");
    assert!(format!("{second:?}").contains("new"), "{second:?}");
    assert_eq!(column(&client.ready().await), ["old"]);
}

#[tokio::test]
async fn a_statement_is_deallocated_by_sql_for_its_own_client_alone() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
    let by_extended = [
        parse("", "DEALLOCATE PREPARE \"s\";"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    for deallocate in [query("deallocate s"), by_extended] {
        for client in [&mut client, &mut other] {
            assert_eq!(prepare(client, "s", "SELECT 'shared'").await, b'1');
        }
        let run = [bind("", "s", &[]), execute("", 0), sync()].concat();
        let answer = client.ask(&deallocate).await;
        assert_eq!(errors(&answer), [""; 0], "{answer:?}");
        let answer = client.ask(&run).await;
        assert_eq!(answer[0].sqlstate(), "26000", "{answer:?}");
        assert_eq!(column(&other.ask(&run).await), ["shared"]);
        other.query("DEALLOCATE s").await;
    }
}

/// The client has its answer while the server is still asked what is left, and asks again at once: others go first.
#[tokio::test]
async fn who_waits_goes_before_who_asks_again_while_its_state_is_settled() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let startup = [("application_name", "somebody")];
    let mut with_startup = proxy.raw_with(&db, &startup).await;
    let mut without = proxy.raw(&db).await;
    let mut other = proxy.raw(&db).await;
    other.query("CREATE TABLE turns (who text)").await;
    for busy in [&mut with_startup, &mut without] {
        for (left, gone) in [
            ("SET work_mem = '3MB'", "SELECT 1"),
            ("SELECT pg_advisory_lock(1)", "SELECT pg_advisory_unlock(1)"),
        ] {
            busy.query("BEGIN").await;
            busy.query(left).await;
            other
                .send(&query("INSERT INTO turns VALUES ('other')"))
                .await;
            waiting(&proxy, 1).await;
            busy.query(gone).await;
            busy.query("COMMIT").await;
            assert_eq!(busy.value("SELECT count(*) FROM turns").await, "1");
            other.ready().await;
            other.query("TRUNCATE turns").await;
        }
    }
}
