//! COPY in both directions, by simple and by extended queries, whole and broken off.

use super::compare::Pair;
use super::compare::Step::{self, End, Ready, Send, Until};
use crate::support::frames::{
    bind, column, copy_data, copy_done, copy_fail, errors, execute, extended, flush, parse, query,
    sync, tags, terminate,
};

const IN: &str = "COPY target FROM STDIN";

fn rows() -> Vec<u8> {
    [
        copy_data(b"1\ta\n2\tb\n"),
        copy_data(b"3"),
        copy_data(b"\tc\n"),
    ]
    .concat()
}

#[tokio::test]
async fn copy_out_streams_as_without_the_proxy() {
    let pair = Pair::new().await;
    let answer = pair.same_query("COPY items TO STDOUT").await;
    assert_eq!(tags(&answer), format!("H{}cCZ", "d".repeat(200)));
    pair.same_query("COPY items TO STDOUT (FORMAT binary); SELECT 1")
        .await;
    pair.same_query("COPY (SELECT 1/(id - 100) FROM items ORDER BY id) TO STDOUT")
        .await;
    let batch = [
        extended("COPY items TO STDOUT", &[]),
        extended("SELECT 1", &[]),
        sync(),
    ];
    pair.same_answer(batch.concat()).await;
}

#[tokio::test]
async fn copy_in_takes_all_rows() {
    let pair = Pair::new().await;
    let script = [
        Send(query(IN)),
        Until(b'G'),
        Send(rows()),
        Send(copy_done()),
        Ready(1),
        Send(query("SELECT name FROM target ORDER BY id")),
        Ready(1),
    ];
    assert_eq!(column(&pair.same(&script).await), ["a", "b", "c"]);
    // The data on the heels of the query.
    let eager = [
        query(IN),
        rows(),
        copy_done(),
        query("SELECT count(*) FROM target"),
    ];
    assert_eq!(
        column(&pair.same(&[Send(eager.concat()), Ready(2)]).await),
        ["3"]
    );
    let two = format!("{IN}; {IN}; SELECT count(*) FROM target");
    let twice = [query(&two), rows(), copy_done(), rows(), copy_done()];
    assert_eq!(
        column(&pair.same(&[Send(twice.concat()), Ready(1)]).await),
        ["6"]
    );
}

#[tokio::test]
async fn copy_in_by_the_extended_protocol() {
    let pair = Pair::new().await;
    let script = [
        Send([extended(IN, &[]), flush()].concat()),
        Until(b'G'),
        Send([rows(), copy_done(), sync()].concat()),
        Ready(1),
    ];
    assert_eq!(tags(&pair.same(&script).await), "12GCZ");
    let eager = [
        extended(IN, &[]),
        rows(),
        copy_done(),
        extended("SELECT count(*) FROM target", &[]),
        sync(),
    ];
    assert_eq!(column(&pair.same_answer(eager.concat()).await), ["3"]);
}

#[tokio::test]
async fn a_sync_while_copying_in_is_swallowed() {
    let pair = Pair::new().await;
    // libpq sends Parse, Bind, Execute, Sync before it knows that it is a COPY; then CopyDone and another Sync.
    let script = [
        Send([extended(IN, &[]), sync()].concat()),
        Until(b'G'),
        Send([rows(), flush(), copy_done(), sync()].concat()),
        Ready(1),
        Send(query("SELECT count(*) FROM target")),
        Ready(1),
    ];
    assert_eq!(column(&pair.same(&script).await), ["3"]);
}

#[tokio::test]
async fn a_client_that_fails_its_copy_is_told_so() {
    let pair = Pair::new().await;
    let script = [
        Send(query(IN)),
        Until(b'G'),
        Send([rows(), copy_fail("changed my mind")].concat()),
        Ready(1),
        Send(query("SELECT count(*) FROM target")),
        Ready(1),
    ];
    let answers = pair.same(&script).await;
    assert_eq!(
        (errors(&answers), column(&answers)),
        (vec!["57014".into()], vec!["0".into()])
    );
    let script = [
        Send([extended(IN, &[]), sync()].concat()),
        Until(b'G'),
        Send([rows(), copy_fail("changed my mind"), sync()].concat()),
        Ready(1),
        Send(query("SELECT count(*) FROM target")),
        Ready(1),
    ];
    pair.same(&script).await;
}

/// What follows a COPY that failed half-way must find everything in step.
fn afterwards() -> Vec<Step> {
    let sql = "SELECT count(*) FROM target";
    vec![
        Send(query(sql)),
        Ready(1),
        Send([extended(sql, &[]), sync()].concat()),
        Ready(1),
        Send(query("ROLLBACK")),
        Ready(1),
    ]
}

#[tokio::test]
async fn bad_rows_fail_a_simple_copy_half_way() {
    let pair = Pair::new().await;
    for bad in [&b"x\ty\n"[..], b"1\n", b"1\tbad\n"] {
        let mut script = vec![Send(query(IN)), Until(b'G'), Send(copy_data(bad))];
        script.extend([Until(b'E'), Send([rows(), copy_done()].concat()), Ready(1)]);
        script.extend(afterwards());
        assert_eq!(column(&pair.same(&script).await), ["0", "0"]);
        // All in one go.
        let eager = [query(IN), copy_data(bad), rows(), copy_done()];
        let mut script = vec![Send(eager.concat()), Ready(1)];
        script.extend(afterwards());
        pair.same(&script).await;
    }
}

#[tokio::test]
async fn bad_rows_fail_an_extended_copy_half_way() {
    let pair = Pair::new().await;
    let bad = copy_data(b"x\ty\n");
    // The Sync that counts comes after the data.
    let mut script = vec![Send([extended(IN, &[]), flush()].concat()), Until(b'G')];
    script.extend([
        Send(bad.clone()),
        Until(b'E'),
        Send([rows(), copy_done(), sync()].concat()),
    ]);
    script.push(Ready(1));
    script.extend(afterwards());
    assert_eq!(column(&pair.same(&script).await), ["0", "0"]);
    // In a transaction block, which the error aborts.
    let mut script = vec![Send(query("BEGIN")), Ready(1)];
    script.extend([
        Send([extended(IN, &[]), bad, rows(), copy_done(), sync()].concat()),
        Ready(1),
    ]);
    script.extend(afterwards());
    assert_eq!(
        errors(&pair.same(&script).await),
        ["22P02", "25P02", "25P02"]
    );
}

#[tokio::test]
async fn copy_into_nowhere_fails_before_its_data() {
    let pair = Pair::new().await;
    let sql = "COPY nowhere FROM STDIN";
    let simple = [query(sql), rows(), copy_done(), query("SELECT 1")];
    assert_eq!(
        tags(&pair.same(&[Send(simple.concat()), Ready(2)]).await),
        "EZTDCZ"
    );
    let batch = [
        extended(sql, &[]),
        rows(),
        copy_done(),
        sync(),
        query("SELECT 1"),
    ];
    pair.same(&[Send(batch.concat()), Ready(2)]).await;
}

#[tokio::test]
async fn stray_copy_data_means_nothing() {
    let pair = Pair::new().await;
    let stray = [
        rows(),
        copy_done(),
        copy_fail("x"),
        flush(),
        query("SELECT 1"),
    ];
    assert_eq!(tags(&pair.same_answer(stray.concat()).await), "TDCZ");
    let inside = [
        query("BEGIN"),
        rows(),
        copy_done(),
        query("SELECT 1"),
        query("COMMIT"),
    ];
    pair.same(&[Send(inside.concat()), Ready(3)]).await;
}

#[tokio::test]
async fn other_messages_during_copy_in_end_the_copy() {
    let pair = Pair::new().await;
    for other in [
        query("SELECT 1"),
        parse("", "SELECT 1"),
        bind("", "", &[]),
        execute("", 0),
    ] {
        let script = [
            Send(query(IN)),
            Until(b'G'),
            Send([rows(), other].concat()),
            Until(b'E'),
        ];
        pair.same(&script).await;
    }
}

#[tokio::test]
async fn a_goodbye_during_copy_in_is_answered_with_the_servers_words() {
    let pair = Pair::new().await;
    pair.same(&[Send(query(IN)), Until(b'G'), Send(terminate()), End])
        .await;
}
