//! Simple queries, function calls, notices, notifications, large objects.

use super::compare::Pair;
use super::compare::Step::{End, Ready, Send};
use crate::support::frames::{self, errors, function_call, query, tags, terminate};

#[tokio::test]
async fn simple_queries_are_answered_as_without_the_proxy() {
    let pair = Pair::new().await;
    for sql in [
        "SELECT 1 AS one, NULL AS nothing, 'ä' AS text",
        "SELECT * FROM items ORDER BY id",
        "SELECT * FROM items WHERE id < 0",
        "INSERT INTO target VALUES (1, 'a') RETURNING *",
        "SELECT 1; SELECT 'two'; INSERT INTO target VALUES (2, 'b'); SELECT count(*) FROM target",
        "",
        ";",
        "-- nothing",
        "SELECT 1; ; SELECT 2;",
        "SHOW server_version",
        "EXPLAIN (COSTS OFF) SELECT * FROM items WHERE id = 3",
        "VALUES (1, 2), (3, 4)",
        "SELECT repeat('x', 100000)",
        "DO $$ BEGIN NULL; END $$",
    ] {
        pair.same_query(sql).await;
    }
}

#[tokio::test]
async fn errors_come_with_every_field() {
    let pair = Pair::new().await;
    for (sql, code) in [
        ("SELEC 1", "42601"),
        ("SELECT 1; SELECT 1/0; SELECT 2", "22012"),
        ("SELECT * FROM nowhere", "42P01"),
        ("INSERT INTO target VALUES (1, 'bad')", "23514"),
        ("INSERT INTO items VALUES (1, 'again')", "23505"),
        (
            "DO $$ BEGIN RAISE 'own' USING HINT = 'h', DETAIL = 'd', ERRCODE = 'P1234'; END $$",
            "P1234",
        ),
        ("COMMIT AND CHAIN", "25P01"),
    ] {
        assert_eq!(errors(&pair.same_query(sql).await), [code], "{sql}");
    }
}

#[tokio::test]
async fn transactions_show_their_state() {
    let pair = Pair::new().await;
    let batch = [
        "BEGIN",
        "INSERT INTO target VALUES (1, 'a')",
        "SAVEPOINT s",
        "SELECT 1/0",
        "SELECT 'ignored'",
        "ROLLBACK TO s",
        "COMMIT",
        "BEGIN; SELECT 1/0",
        "COMMIT",
        "BEGIN; ROLLBACK",
        "ROLLBACK",
        "SELECT count(*) FROM target",
    ];
    let mut script: Vec<_> = batch
        .iter()
        .flat_map(|sql| [Send(query(sql)), Ready(1)])
        .collect();
    let one_by_one = pair.same(&script).await;
    // All at once: the answers are the same.
    script = vec![Send(batch.map(query).concat()), Ready(batch.len())];
    assert_eq!(pair.same(&script).await, one_by_one);
}

#[tokio::test]
async fn notices_come_where_they_belong() {
    let pair = Pair::new().await;
    let sql = "DO $$ BEGIN FOR i IN 1..50 LOOP RAISE NOTICE 'notice %', i; END LOOP; END $$";
    let answer = pair.same_query(sql).await;
    assert_eq!(tags(&answer), format!("{}CZ", "N".repeat(50)));
    pair.same_query("SELECT 1; DO $$ BEGIN RAISE WARNING 'w'; END $$; SELECT 2")
        .await;
    pair.same_query("SET client_min_messages = debug1; SELECT 1; COMMIT")
        .await;
}

#[tokio::test]
async fn a_listening_client_hears_itself() {
    let pair = Pair::new().await;
    let script = [
        Send(query("LISTEN here")),
        Ready(1),
        Send(query("NOTIFY here, 'one'; NOTIFY here, 'two'")),
        Ready(1),
        Send(
            [
                query("BEGIN"),
                query("NOTIFY here, 'three'"),
                query("COMMIT"),
            ]
            .concat(),
        ),
        Ready(3),
        Send(query("UNLISTEN here")),
        Ready(1),
        Send(query("NOTIFY here, 'four'")),
        Ready(1),
    ];
    let heard = pair.same(&script).await;
    assert_eq!(heard.iter().filter(|frame| frame.tag == b'A').count(), 3);
}

#[tokio::test]
async fn parameters_that_change_are_told() {
    let pair = Pair::new().await;
    let script = [
        Send(query(
            "SET application_name = 'x'; SET TimeZone = 'UTC'; SET DateStyle = 'German'",
        )),
        Ready(1),
        Send(query(
            "BEGIN; SET LOCAL client_encoding = 'LATIN1'; SELECT 'ä'",
        )),
        Ready(1),
        Send(query("ROLLBACK")),
        Ready(1),
        Send(query("RESET ALL")),
        Ready(1),
    ];
    pair.same(&script).await;
}

#[tokio::test]
async fn function_calls_are_answered_as_without_the_proxy() {
    let pair = Pair::new().await;
    // pg_proc.dat: 1317 is length(text), 941 none, 154 int4div
    let script = [
        Send(function_call(1317, &["four"])),
        Ready(1),
        Send(function_call(154, &["7", "2"])),
        Ready(1),
        Send(function_call(154, &["1", "0"])),
        Ready(1),
        Send(function_call(4_000_000, &[])),
        Ready(1),
        Send(
            [
                function_call(1317, &["a"]),
                query("SELECT 1"),
                function_call(1317, &["bc"]),
            ]
            .concat(),
        ),
        Ready(3),
    ];
    let answers = pair.same(&script).await;
    assert_eq!(tags(&answers), "VZVZEZEZVZTDCZVZ");
}

#[tokio::test]
async fn large_objects_are_written_and_read() {
    let pair = Pair::new().await;
    let queries = [
        "SELECT lo_create(4242)",
        "BEGIN",
        "SELECT lo_open(4242, 393216)",
        "SELECT lowrite(0, 'some text')",
        "SELECT lo_lseek(0, 5, 0)",
        "SELECT loread(0, 100)",
        "SELECT lo_truncate(0, 4), lo_close(0)",
        "COMMIT",
        "SELECT lo_get(4242)",
        "SELECT loread(0, 1)",
        "SELECT lo_unlink(4242)",
    ];
    let script: Vec<_> = queries
        .iter()
        .flat_map(|sql| [Send(query(sql)), Ready(1)])
        .collect();
    let answers = pair.same(&script).await;
    assert_eq!(
        errors(&answers),
        ["42704"],
        "a descriptor ends with its transaction"
    );
}

#[tokio::test]
async fn goodbye_ends_the_connection_after_what_was_asked() {
    let pair = Pair::new().await;
    pair.same(&[Send(terminate()), End]).await;
    let script = [Send(query("SELECT 1")), Ready(1), Send(terminate()), End];
    pair.same(&script).await;
    let script = [
        Send([query("SELECT * FROM items"), terminate()].concat()),
        Ready(1),
        End,
    ];
    pair.same(&script).await;
}

#[tokio::test]
async fn an_administrator_who_ends_the_backend_is_quoted() {
    let pair = Pair::new().await;
    let sql = "SELECT pg_terminate_backend(pg_backend_pid())";
    let script = [Send(query(sql)), End];
    assert_eq!(errors(&pair.same(&script).await), ["57P01"]);
}

#[tokio::test]
async fn what_a_login_is_told_is_the_same() {
    let pair = Pair::new().await;
    let told = |frames: &[crate::support::Frame]| {
        let mut told: Vec<_> = frames
            .iter()
            .filter(|frame| frame.tag == b'S')
            .cloned()
            .collect();
        told.sort_by(|a, b| a.body.cmp(&b.body));
        told
    };
    let expected = pair.db.raw().await;
    let client = pair.proxy.raw(&pair.db).await;
    assert_eq!(told(&client.welcome), told(&expected.welcome));
    assert_eq!(client.welcome.last(), expected.welcome.last());
    assert_eq!(frames::tags(&client.welcome).matches('K').count(), 1);
}
