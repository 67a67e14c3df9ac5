//! The extended protocol: pipelining, Flush, late Sync, portals, unnamed statements.

use super::compare::Pair;
use super::compare::Step::{Ready, Send, Until};
use crate::support::frames::{
    bind, close_portal, close_statement, column, describe_portal, describe_statement, errors,
    execute, extended, flush, parse, query, sync, tags,
};

#[tokio::test]
async fn one_batch_is_answered_as_without_the_proxy() {
    let pair = Pair::new().await;
    for batch in [
        extended("SELECT $1::int + 1", &["41"]),
        extended("SELECT * FROM items", &[]),
        extended("INSERT INTO target VALUES ($1, $2)", &["1", "a"]),
        extended("", &[]),
        extended("SELECT 1/0", &[]),
        extended("SELECT 1; SELECT 2", &[]),
        extended("SELECT $1::int", &["not a number"]),
        extended("SELECT $1::int", &[]),
        [extended("SELECT 1", &[]), extended("SELECT 2", &[])].concat(),
        [extended("SELECT 1/0", &[]), extended("SELECT 2", &[])].concat(),
        [
            parse("", "SELECT $1::int4, 'x'::name"),
            describe_statement(""),
        ]
        .concat(),
        [
            parse("", "INSERT INTO target VALUES (1)"),
            describe_statement(""),
        ]
        .concat(),
        [
            parse("", "SELECT 1 AS a"),
            bind("p", "", &[]),
            describe_portal("p"),
        ]
        .concat(),
        [describe_portal("nowhere"), execute("nowhere", 0)].concat(),
        [describe_statement("nowhere")].concat(),
        [bind("", "nowhere", &[])].concat(),
        vec![],
    ] {
        pair.same_answer([batch, sync()].concat()).await;
    }
}

#[tokio::test]
async fn hundreds_of_batches_may_be_in_flight() {
    let pair = Pair::new().await;
    let batch: Vec<u8> = (0..500)
        .flat_map(|number| {
            let sql = if number % 7 == 3 {
                "SELECT 1/$1::int"
            } else {
                "SELECT $1::int"
            };
            let value = if number % 7 == 3 {
                "0".into()
            } else {
                number.to_string()
            };
            [extended(sql, &[&value]), sync()].concat()
        })
        .collect();
    let answers = pair.same(&[Send(batch), Ready(500)]).await;
    assert_eq!(errors(&answers).len(), 71);
    assert_eq!(column(&answers).len(), 429);
}

#[tokio::test]
async fn simple_and_extended_queries_mix_in_one_flight() {
    let pair = Pair::new().await;
    let flight = [
        query("BEGIN"),
        extended("INSERT INTO target VALUES ($1, $2)", &["1", "a"]),
        sync(),
        query("SELECT count(*) FROM target"),
        extended("SELECT 1/0", &[]),
        sync(),
        query("SELECT 'ignored'"),
        query("ROLLBACK"),
        sync(),
        sync(),
        query(""),
    ];
    pair.same(&[Send(flight.concat()), Ready(9)]).await;
}

#[tokio::test]
async fn a_flush_brings_the_answers_before_the_sync() {
    let pair = Pair::new().await;
    let script = [
        Send(
            [
                parse("", "SELECT $1::int AS n"),
                describe_statement(""),
                flush(),
            ]
            .concat(),
        ),
        Until(b'T'),
        Send([bind("", "", &["7"]), flush()].concat()),
        Until(b'2'),
        Send([execute("", 0), flush()].concat()),
        Until(b'C'),
        Send(sync()),
        Ready(1),
    ];
    assert_eq!(tags(&pair.same(&script).await), "1tT2DCZ");
}

#[tokio::test]
async fn an_error_before_a_late_sync_comes_at_once() {
    let pair = Pair::new().await;
    let script = [
        Send([parse("", "SELEC"), flush()].concat()),
        Until(b'E'),
        Send([bind("", "", &[]), execute("", 0), flush()].concat()),
        Send(query("SELECT 'ignored: no Sync yet'")),
        Send(sync()),
        Ready(1),
        Send(query("SELECT 'heard'")),
        Ready(1),
    ];
    assert_eq!(tags(&pair.same(&script).await), "EZTDCZ");
}

#[tokio::test]
async fn a_simple_query_ends_a_batch_without_a_sync() {
    let pair = Pair::new().await;
    let script = [
        Send(extended("INSERT INTO target VALUES (1, 'a')", &[])),
        Send(query("SELECT count(*) FROM target")),
        Ready(1),
        Send(query("ROLLBACK")),
        Ready(1),
        Send(query("SELECT count(*) FROM target")),
        Ready(1),
    ];
    pair.same(&script).await;
}

#[tokio::test]
async fn a_portal_gives_its_rows_by_portions() {
    let pair = Pair::new().await;
    let script = [
        Send(query("BEGIN")),
        Ready(1),
        Send(
            [
                parse("", "SELECT id FROM items ORDER BY id"),
                bind("p", "", &[]),
            ]
            .concat(),
        ),
        Send([describe_portal("p"), execute("p", 80), sync()].concat()),
        Ready(1),
        Send([execute("p", 80), flush()].concat()),
        Until(b's'),
        Send([query("SELECT 'between'")].concat()),
        Ready(1),
        Send([execute("p", 80), execute("p", 1), close_portal("p"), sync()].concat()),
        Ready(1),
        Send([execute("p", 1), sync()].concat()),
        Ready(1),
        Send(query("ROLLBACK")),
        Ready(1),
    ];
    let answers = pair.same(&script).await;
    assert_eq!(column(&answers).len(), 201);
    assert_eq!(errors(&answers), ["34000"]);
}

#[tokio::test]
async fn a_suspended_portal_ends_with_its_batch() {
    let pair = Pair::new().await;
    let script = [
        Send(
            [
                parse("", "SELECT * FROM items"),
                bind("", "", &[]),
                execute("", 3),
            ]
            .concat(),
        ),
        Send([execute("", 3), sync()].concat()),
        Ready(1),
        Send([execute("", 3), sync()].concat()),
        Ready(1),
    ];
    assert_eq!(errors(&pair.same(&script).await), ["34000"]);
}

#[tokio::test]
async fn named_statements_and_portals_live_until_closed() {
    let pair = Pair::new().await;
    let script = [
        Send(
            [
                parse("s", "SELECT $1::int"),
                parse("t", "SELECT 't'"),
                sync(),
            ]
            .concat(),
        ),
        Ready(1),
        Send([bind("", "s", &["1"]), execute("", 0), sync()].concat()),
        Ready(1),
        Send(query("SELECT 'between'")),
        Ready(1),
        Send(
            [
                describe_statement("s"),
                bind("", "t", &[]),
                execute("", 0),
                sync(),
            ]
            .concat(),
        ),
        Ready(1),
        Send([parse("s", "SELECT 'again'"), sync()].concat()),
        Ready(1),
        Send(
            [
                close_statement("s"),
                close_statement("nowhere"),
                close_portal("x"),
                sync(),
            ]
            .concat(),
        ),
        Ready(1),
        Send([bind("", "s", &["1"]), execute("", 0), sync()].concat()),
        Ready(1),
        Send([bind("", "t", &[]), execute("", 0), sync()].concat()),
        Ready(1),
    ];
    assert_eq!(errors(&pair.same(&script).await), ["42P05", "26000"]);
}

#[tokio::test]
async fn the_unnamed_statement_outlives_its_batch_and_its_transaction() {
    let pair = Pair::new().await;
    let use_it = |value: &str| Send([bind("", "", &[value]), execute("", 0), sync()].concat());
    let script = [
        Send(
            [
                parse("", "SELECT $1::int * 2"),
                describe_statement(""),
                sync(),
            ]
            .concat(),
        ),
        Ready(1),
        use_it("21"),
        Ready(1),
        Send([extended("BEGIN", &[]), sync()].concat()),
        Ready(1),
        Send([parse("", "SELECT $1::int * 3"), sync()].concat()),
        Ready(1),
        use_it("5"),
        Ready(1),
        Send(
            [
                parse("c", "COMMIT"),
                bind("", "c", &[]),
                execute("", 0),
                sync(),
            ]
            .concat(),
        ),
        Ready(1),
        use_it("6"),
        Ready(1),
        Send([describe_statement(""), sync()].concat()),
        Ready(1),
        Send([close_statement(""), sync()].concat()),
        Ready(1),
        use_it("7"),
        Ready(1),
    ];
    let answers = pair.same(&script).await;
    assert_eq!(column(&answers), ["42", "15", "18"]);
    assert_eq!(errors(&answers), ["26000"]);
}

#[tokio::test]
async fn a_simple_query_forgets_the_unnamed_statement() {
    let pair = Pair::new().await;
    let script = [
        Send([parse("", "SELECT 1"), sync()].concat()),
        Ready(1),
        Send(query("SELECT 2")),
        Ready(1),
        Send([bind("", "", &[]), execute("", 0), sync()].concat()),
        Ready(1),
    ];
    assert_eq!(errors(&pair.same(&script).await), ["26000"]);
}

#[tokio::test]
async fn a_failed_parse_leaves_no_unnamed_statement() {
    let pair = Pair::new().await;
    let script = [
        Send([parse("", "SELECT 1"), sync()].concat()),
        Ready(1),
        Send([parse("", "SELEC"), sync()].concat()),
        Ready(1),
        Send([bind("", "", &[]), execute("", 0), sync()].concat()),
        Ready(1),
        Send([describe_statement(""), sync()].concat()),
        Ready(1),
    ];
    pair.same(&script).await;
}

#[tokio::test]
async fn transaction_commands_travel_inside_batches() {
    let pair = Pair::new().await;
    let flight = [
        extended("BEGIN", &[]),
        extended("INSERT INTO target VALUES ($1, 'x')", &["1"]),
        extended("COMMIT", &[]),
        extended("SELECT count(*) FROM target", &[]),
        sync(),
        extended("BEGIN", &[]),
        flush(),
        extended("SELECT 1/0", &[]),
        flush(),
        sync(),
        extended("SELECT 'ignored'", &[]),
        sync(),
        extended("ROLLBACK", &[]),
        sync(),
    ];
    let answers = pair.same(&[Send(flight.concat()), Ready(4)]).await;
    assert_eq!(errors(&answers), ["22012", "25P02"]);
}

#[tokio::test]
async fn a_sync_before_anything_else_is_answered_too() {
    let pair = Pair::new().await;
    let script = [
        Send([sync(), query("SELECT 1")].concat()),
        Ready(2),
        Send([sync(), sync(), extended("SELECT 2", &[]), sync()].concat()),
        Ready(3),
        Send([flush(), sync(), query("BEGIN")].concat()),
        Ready(2),
    ];
    assert_eq!(tags(&pair.same(&script).await), "ZTDCZZZ12DCZZCZ");
}
