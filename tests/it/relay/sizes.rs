//! Bytes cut anywhere, and messages of many megabytes.

use super::compare::Pair;
use super::compare::Step::{Ready, Send};
use crate::support::frames::{
    bind, column, copy_data, copy_done, describe_portal, errors, execute, extended, flush, parse,
    query, sync, tags,
};
use crate::support::{database, proxy};
use std::time::Duration;

const LARGE: usize = 5 * 1024 * 1024;

#[tokio::test]
async fn bytes_may_be_cut_anywhere() {
    let pair = Pair::new().await;
    let flight = [
        query("SELECT 'ä', 1"),
        parse("", "SELECT $1::text"),
        bind("p", "", &["x"]),
        describe_portal("p"),
        execute("p", 0),
        flush(),
        sync(),
        query("COPY target FROM STDIN"),
        copy_data(b"1\ta\n"),
        copy_done(),
        sync(),
    ]
    .concat();
    let whole = pair.same(&[Send(flight.clone()), Ready(4)]).await;
    let mut client = pair.proxy.raw(&pair.db).await;
    for cut in 1..flight.len() {
        let (first, second) = flight.split_at(cut);
        client.send(first).await;
        // A moment in which the first part arrives alone; how long does not matter for the result.
        tokio::time::sleep(Duration::from_millis(1)).await;
        client.send(second).await;
        let mut answers = Vec::new();
        for _ in 0..4 {
            answers.extend(client.ready().await);
        }
        assert_eq!(answers, whole, "cut at {cut}");
    }
}

#[tokio::test]
async fn bytes_may_come_one_by_one() {
    let pair = Pair::new().await;
    let flight = [
        query("SELECT 1"),
        extended("SELECT $1::int", &["2"]),
        sync(),
    ]
    .concat();
    let bytes = flight.chunks(1).map(|byte| Send(byte.to_vec()));
    let script: Vec<_> = bytes.chain([Ready(2)]).collect();
    assert_eq!(column(&pair.same(&script).await), ["1", "2"]);
}

#[tokio::test]
async fn messages_of_megabytes_pass_in_both_directions() {
    let pair = Pair::new().await;
    let text = "x".repeat(LARGE);
    let long_query = query(&format!("SELECT length('{text}')"));
    assert_eq!(
        column(&pair.same_answer(long_query).await),
        [LARGE.to_string()]
    );
    let parameter = [extended("SELECT $1::text", &[&text]), sync()].concat();
    assert_eq!(column(&pair.same_answer(parameter).await), [text.as_str()]);
    let long_parse = [extended(&format!("SELECT length('{text}')"), &[]), sync()].concat();
    pair.same_answer(long_parse).await;
    let row = [b"1\t", text.as_bytes(), b"\n"].concat();
    let sql = "SELECT length(name) FROM target";
    let copy = [
        query("COPY target FROM STDIN"),
        copy_data(&row),
        copy_done(),
        query(sql),
    ];
    let answers = pair.same(&[Send(copy.concat()), Ready(2)]).await;
    assert_eq!(column(&answers), [LARGE.to_string()]);
    let error = pair
        .same_query(&format!("DO $$ BEGIN RAISE '{text}'; END $$"))
        .await;
    assert_eq!(errors(&error), ["P0001"]);
    pair.same_query(&format!("DO $$ BEGIN RAISE NOTICE '{text}'; END $$"))
        .await;
}

#[tokio::test]
async fn a_long_unnamed_statement_is_used_across_batches() {
    let pair = Pair::new().await;
    let sql = format!("SELECT $1::int + length('{}')", "x".repeat(100_000));
    let use_it = || Send([bind("", "", &["1"]), execute("", 0), sync()].concat());
    let script = [
        Send([parse("", &sql), sync()].concat()),
        Ready(1),
        use_it(),
        Ready(1),
        use_it(),
        Ready(1),
    ];
    assert_eq!(column(&pair.same(&script).await), ["100001", "100001"]);
}

#[tokio::test]
async fn many_small_rows_and_few_large_ones_stream_to_a_slow_reader() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut client = proxy.raw(&db).await;
    let sql = "SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i; \
               SELECT repeat('y', 3000000) FROM generate_series(1, 5)";
    client.send(&query(sql)).await;
    let mut rows = Vec::new();
    loop {
        let frame = client.frame().await;
        match frame.tag {
            b'D' => rows.push(frame.body.len()),
            b'Z' => break,
            _ => {}
        }
        if rows.len() % 2000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(rows.len(), 20_005);
    assert_eq!(tags(&client.query("SELECT 1").await), "TDCZ");
}
