//! LISTEN without a backend of one's own: one connection listens for all sessions of a database, nothing is lost, nothing
//! comes twice, and what PostgreSQL would do is what happens.

mod ends;
mod rollback;
mod storm;

use crate::support::frames::{
    Frame, column, copy_data, copy_done, errors, extended, query, sync, tags,
};
use crate::support::{Database, Proxy, RawClient, database, eventually, observer, proxy, text};

/// Channel and payload of every notification among them.
fn heard(frames: &[Frame]) -> Vec<(String, String)> {
    let notifications = frames.iter().filter(|frame| frame.tag == b'A');
    let parts = notifications.map(|frame| {
        let text = String::from_utf8(frame.body[4..].to_vec()).unwrap();
        let (channel, payload) = text.split_once('\0').unwrap();
        (channel.into(), payload.trim_end_matches('\0').into())
    });
    parts.collect()
}

fn pair(channel: &str, payload: &str) -> (String, String) {
    (channel.into(), payload.into())
}

async fn pins(proxy: &Proxy) -> f64 {
    proxy.metrics().await.sum("pgsluice_pins_total", &[])
}

async fn listeners(proxy: &Proxy) -> f64 {
    proxy.metrics().await.sum("pgsluice_listeners", &[])
}

async fn listening(proxy: &Proxy) -> f64 {
    proxy
        .metrics()
        .await
        .sum("pgsluice_listening_sessions", &[])
}

#[tokio::test]
async fn many_sessions_listen_over_few_backends_and_pin_none() {
    let db = database().await;
    let proxy = proxy().max_connections(5).start().await;
    let mut clients = Vec::new();
    for number in 0..200 {
        let mut client = proxy.raw(&db).await;
        let answer = client.query(&format!("LISTEN c{}", number % 10)).await;
        assert_eq!(tags(&answer), "CZ");
        clients.push(client);
    }
    // Each is on its way to the listener until it has been told what its next request brings.
    for client in &mut clients {
        client.query("SELECT 1").await;
    }
    assert_eq!(
        (listeners(&proxy).await, listening(&proxy).await),
        (1.0, 200.0)
    );
    assert_eq!(pins(&proxy).await, 0.0);
    assert!(observer().await.backends(&db).await <= 5);
    let speaker = db.connect().await;
    for number in 0..10 {
        text(&speaker, &format!("SELECT pg_notify('c{number}', 'said')")).await;
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let channel = format!("c{}", number % 10);
        assert_eq!(heard(&[client.frame().await]), [pair(&channel, "said")]);
    }
    drop(clients);
    eventually("the listener ends with its last session", async || {
        listeners(&proxy).await == 0.0
    })
    .await;
    // It is a backend like any other again.
    let mut client = proxy.raw(&db).await;
    assert_eq!(
        client
            .value("SELECT count(*) FROM pg_listening_channels()")
            .await,
        "0"
    );
    assert_eq!(client.value("SHOW application_name").await, "");
}

#[tokio::test]
async fn what_a_session_says_itself_it_hears_before_its_answer_ends() {
    let db = database().await;
    let proxy = proxy().max_connections(2).start().await;
    let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
    for listener in [&mut client, &mut other] {
        listener.query("LISTEN here").await;
        listener.query("SELECT 1").await;
    }
    for (request, expected) in [
        (query("NOTIFY here, 'one'"), "CAZ"),
        (query("SELECT pg_notify('here', 'two')"), "TDCAZ"),
        (
            [extended("NOTIFY here, 'three'", &[]), sync()].concat(),
            "12CAZ",
        ),
        (query("BEGIN; NOTIFY here, 'four'"), "CCZ"),
        (query("COMMIT"), "CAZ"),
        (query("BEGIN; NOTIFY here, 'five'; ROLLBACK"), "CCCZ"),
        (query("NOTIFY here, 'six'; SELECT 1/0"), "CEZ"),
    ] {
        assert_eq!(tags(&client.ask(&request).await), expected);
    }
    assert_eq!(pins(&proxy).await, 0.0);
    for said in ["one", "two", "three", "four"] {
        assert_eq!(heard(&[other.frame().await]), [pair("here", said)]);
    }
}

#[tokio::test]
async fn a_notification_never_comes_inside_a_transaction() {
    let db = database().await;
    let proxy = proxy().max_connections(3).start().await;
    let (mut client, speaker) = (proxy.raw(&db).await, db.connect().await);
    client.query("LISTEN news").await;
    client.query("BEGIN").await;
    for _ in 0..3 {
        text(&speaker, "SELECT pg_notify('news', 'x')").await;
        assert_eq!(tags(&client.query("SELECT 1").await), "TDCZ");
    }
    let mut witness = proxy.raw(&db).await;
    witness.query("LISTEN news; LISTEN other").await;
    text(&speaker, "SELECT pg_notify('other', 'x')").await;
    witness.until(b'A').await;
    assert_eq!(tags(&client.query("COMMIT").await), "CAAAZ");
    assert_eq!(pins(&proxy).await, 0.0);
}

#[tokio::test]
async fn a_session_is_told_its_channels() {
    let db = database().await;
    let proxy = proxy().max_connections(2).start().await;
    let mut client = proxy.raw(&db).await;
    client.query("LISTEN a; LISTEN \"B \"\"b\"").await;
    let ask = "SELECT c FROM pg_listening_channels() c ORDER BY 1";
    for _ in 0..3 {
        assert_eq!(column(&client.query(ask).await), ["B \"b", "a"]);
        client.query("SELECT 1").await;
    }
    client.query("UNLISTEN a").await;
    assert_eq!(column(&client.query(ask).await), ["B \"b"]);
    client.query("UNLISTEN *").await;
    assert_eq!(column(&client.query(ask).await), [""; 0]);
    assert_eq!(pins(&proxy).await, 0.0);
}

/// Those who can't share keep their backends, as before.
async fn stays_pinned(proxy: &Proxy, client: &mut RawClient) {
    let answer = client.query("LISTEN news").await;
    assert_eq!(tags(&answer), "CZ");
    let backend = client.value("SELECT pg_backend_pid()").await;
    let pinned = "pgsluice_database_connections_session_pinned";
    let label = [("reason", "listen")];
    assert_eq!(proxy.metrics().await.sum(pinned, &label), 1.0);
    assert_eq!(client.value("SELECT pg_backend_pid()").await, backend);
    assert_eq!(tags(&client.query("NOTIFY news, 'x'").await), "CAZ");
    client.query("UNLISTEN *").await;
    eventually("it is pinned no more", async || {
        proxy.metrics().await.sum(pinned, &label) == 0.0
    })
    .await;
}

#[tokio::test]
async fn the_only_backend_never_becomes_a_listener() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    stays_pinned(&proxy, &mut proxy.raw(&db).await).await;
    assert_eq!(listeners(&proxy).await, 0.0);
}

#[tokio::test]
async fn a_session_with_another_encoding_does_not_share() {
    let db = database().await;
    let proxy = proxy().max_connections(4).start().await;
    let mut other = proxy.raw(&db).await;
    other.query("LISTEN news").await;
    other.query("SELECT 1").await;
    let mut client = proxy.raw_with(&db, &[("client_encoding", "LATIN1")]).await;
    client.query("LISTEN news").await;
    db.execute("NOTIFY news, 'ä'").await;
    assert_eq!(client.until(b'A').await[0].body[4..], *b"news\0\xe4\0");
    assert_eq!(heard(&other.until(b'A').await), [pair("news", "ä")]);
    client.query("UNLISTEN *").await;
    stays_pinned(&proxy, &mut client).await;
}

#[tokio::test]
async fn who_changes_its_encoding_hears_in_the_new_one() {
    let db = database().await;
    let proxy = proxy().max_connections(4).start().await;
    let mut client = proxy.raw(&db).await;
    client.query("LISTEN news").await;
    client.query("SET client_encoding = 'LATIN1'").await;
    db.execute("NOTIFY news, 'ä'").await;
    assert_eq!(client.until(b'A').await[0].body[4..], *b"news\0\xe4\0");
    client.query("SET client_encoding = 'UTF8'").await;
    db.execute("NOTIFY news, 'ä'").await;
    assert_eq!(heard(&client.until(b'A').await), [pair("news", "ä")]);
}

#[tokio::test]
async fn at_most_half_of_the_backends_listen() {
    let (first, second) = (database().await, database().await);
    let proxy = proxy().max_connections(3).start().await;
    let mut client = proxy.raw(&first).await;
    client.query("LISTEN news").await;
    client.query("SELECT 1").await;
    stays_pinned(&proxy, &mut proxy.raw(&second).await).await;
    assert_eq!(listeners(&proxy).await, 1.0);
}

#[tokio::test]
async fn a_session_that_keeps_its_backend_for_another_reason_hears_too() {
    let db = database().await;
    let proxy = proxy().max_connections(4).start().await;
    let (mut client, mut first) = (proxy.raw(&db).await, proxy.raw(&db).await);
    first.query("LISTEN news").await;
    first.query("SELECT 1").await;
    client.query("CREATE TEMP TABLE x (i int)").await;
    client.query("LISTEN news").await;
    client.query("INSERT INTO x VALUES (1)").await;
    for said in ["one", "two"] {
        db.execute(&format!("NOTIFY news, '{said}'")).await;
        assert_eq!(heard(&[client.frame().await]), [pair("news", said)]);
        assert_eq!(heard(&[first.frame().await]), [pair("news", said)]);
    }
    client.query("BEGIN").await;
    db.execute("NOTIFY news, 'three'").await;
    assert_eq!(heard(&[first.frame().await]), [pair("news", "three")]);
    assert_eq!(tags(&client.query("COMMIT").await), "CAZ");
}

/// A COPY is fed in a transaction that has brought the session's channels to its backend.
#[tokio::test]
async fn a_copy_goes_on_behind_a_change_of_channels() {
    let db = database().await;
    db.execute("CREATE TABLE t (a int)").await;
    let proxy = proxy().max_connections(3).start().await;
    let mut client = proxy.raw(&db).await;
    client.query("LISTEN news").await;
    client.query("SELECT 1").await;
    client.query("BEGIN").await;
    client.query("DO $$ BEGIN END $$").await;
    client.send(&query("COPY t FROM STDIN")).await;
    client.until(b'G').await;
    client
        .send(&[copy_data(b"7\n"), copy_done()].concat())
        .await;
    client.ready().await;
    client.query("COMMIT").await;
    assert_eq!(client.value("SELECT sum(a) FROM t").await, "7");
    db.execute("NOTIFY news, 'still'").await;
    assert_eq!(heard(&[client.frame().await]), [pair("news", "still")]);
}
