//! Bytes that are no messages from somebody who has logged in: the session ends with 08P01, and the only database
//! connection is as good as before for the next client.

use super::is_in_order;
use crate::support::{
    Database, Frame, Proxy, RawClient, database, eventually, frames, observer, proxy,
};

/// A proxy with one database connection.
async fn single() -> (Database, Proxy) {
    (database().await, proxy().max_connections(1).start().await)
}

/// The session ends with a FATAL 08P01; what came before it.
async fn is_thrown_out(proxy: &Proxy, db: &Database, what: &str, before: &[u8], bytes: &[u8]) {
    let mut client = proxy.raw(db).await;
    if !before.is_empty() {
        client.ask(before).await;
    }
    client.send(bytes).await;
    let told = client.rest().await;
    let last = told
        .last()
        .unwrap_or_else(|| panic!("{what}: closed without a word"));
    assert_eq!(
        (last.tag, last.sqlstate().as_str()),
        (b'E', "08P01"),
        "{what}: {told:?}"
    );
    assert_eq!(last.field(b'S').as_deref(), Some("FATAL"), "{what}");
    is_in_order(proxy, db, what).await;
}

fn violations() -> Vec<(&'static str, Vec<u8>)> {
    let no_names = frames::message(b'B', b"no end");
    let endless_names = [b"B\0\x01\0\0".as_slice(), &[b'x'; 20_000]].concat();
    vec![
        ("an unknown message", b"?\0\0\0\x04".to_vec()),
        ("a server's message", b"Z\0\0\0\x05I".to_vec()),
        ("a password", frames::message(b'p', b"secret\0")),
        ("NULs", vec![0; 64]),
        ("a startup packet", frames::startup(&[("user", "app")])),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a negative length", b"Q\xff\xff\xff\xffselect".to_vec()),
        ("a huge length", b"Q\x7f\xff\xff\xffselect".to_vec()),
        ("a length of zero", b"Q\0\0\0\0select".to_vec()),
        ("a length less than itself", b"S\0\0\0\x03".to_vec()),
        ("a long Sync", frames::message(b'S', &[0; 20_000])),
        ("a long Execute", frames::message(b'E', &[b'x'; 20_000])),
        ("a long Close", frames::message(b'C', &[b'x'; 20_000])),
        ("a Bind without names", no_names),
        ("a Bind with endless names", endless_names),
        ("a Describe of nothing", frames::message(b'D', b"")),
    ]
}

#[tokio::test]
async fn what_is_no_message_ends_the_session() {
    let (db, proxy) = single().await;
    for (what, bytes) in violations() {
        is_thrown_out(&proxy, &db, what, b"", &bytes).await;
    }
    eventually("each was counted", async || {
        let metrics = proxy.metrics().await;
        let closed = "pgsluice_client_connections_closed_total";
        metrics.sum(closed, &[("reason", "protocol_violation")]) == violations().len() as f64
    })
    .await;
}

#[tokio::test]
async fn what_is_no_message_ends_the_transaction_too() {
    let (db, proxy) = single().await;
    db.execute("create table t (x int)").await;
    for (what, bytes) in violations() {
        let before = frames::query("begin; insert into t values (1)");
        is_thrown_out(&proxy, &db, what, &before, &bytes).await;
    }
    let mut next = proxy.raw(&db).await;
    assert_eq!(next.value("select count(*) from t").await, "0");
    assert_eq!(
        next.value("select count(*) from pg_locks where relation = 't'::regclass")
            .await,
        "0"
    );
}

#[tokio::test]
async fn garbage_behind_good_messages() {
    let (db, proxy) = single().await;
    db.execute("create table t (x int)").await;
    for (what, bytes) in violations() {
        for good in [
            frames::query("select 1"),
            [frames::extended("select 1", &[]), frames::sync()].concat(),
            frames::extended("select 1", &[]),
            [frames::parse("", "select 1"), frames::flush()].concat(),
        ] {
            let what = format!("{what} behind {}", good.escape_ascii());
            is_thrown_out(&proxy, &db, &what, b"", &[good, bytes.clone()].concat()).await;
        }
    }
    let copy = frames::query("copy t from stdin");
    let mut client = proxy.raw(&db).await;
    client.send(&copy).await;
    client.until(b'G').await;
    client
        .send(&[frames::copy_data(b"1\n"), b"?\0\0\0\x04".to_vec()].concat())
        .await;
    assert_eq!(frames::errors(&client.rest().await), ["08P01"]);
    is_in_order(&proxy, &db, "garbage in a COPY").await;
    assert_eq!(
        proxy.raw(&db).await.value("select count(*) from t").await,
        "0"
    );
}

#[tokio::test]
async fn half_a_message_and_gone() {
    let (db, proxy) = single().await;
    db.execute("create table t (x int)").await;
    let long = frames::query(&format!(
        "insert into t values (1) /* {} */",
        "x".repeat(200_000)
    ));
    let insert = frames::query("insert into t values (2)");
    let bind = frames::bind("", "", &["a parameter"]);
    let parse = frames::parse("name", "insert into t values (3)");
    for (what, whole) in [
        ("long", long),
        ("short", insert),
        ("Bind", bind),
        ("Parse", parse),
    ] {
        for cut in [1, 4, 5, 6, whole.len() / 2, whole.len() - 1] {
            for reset in [false, true] {
                let mut client = proxy.raw(&db).await;
                client.send(&whole[..cut]).await;
                if reset {
                    client.reset();
                } else {
                    drop(client);
                }
                is_in_order(&proxy, &db, &format!("{cut} bytes of a message ({what})")).await;
            }
        }
    }
    assert_eq!(
        proxy.raw(&db).await.value("select count(*) from t").await,
        "0"
    );
    assert!(observer().await.backends(&db).await <= 1);
}

/// The server's answers to messages whose inside is wrong are the server's business.
#[tokio::test]
async fn what_is_wrong_inside_a_message_is_told_by_the_server() {
    let (db, proxy) = single().await;
    let inside = |tag: u8, body: &[u8]| [frames::message(tag, body), frames::sync()].concat();
    let cases = [
        ("a query without end", frames::message(b'Q', b"select 1")),
        (
            "a query of two",
            frames::message(b'Q', b"select 1\0select 2\0"),
        ),
        ("no text", frames::message(b'Q', b"select '\xff\xfe'\0")),
        ("a Parse without end", inside(b'P', b"name")),
        ("a Parse without text", inside(b'P', b"name\0")),
        (
            "a Parse of many types",
            inside(b'P', b"\0select 1\0\x7f\xff"),
        ),
        ("a Bind of nothing", inside(b'B', b"\0\0")),
        (
            "a Bind that lies",
            inside(b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff"),
        ),
        ("a Describe of what", inside(b'D', b"Q\0")),
        ("a Close of what", inside(b'C', b"Q\0")),
        ("an Execute of half", inside(b'E', b"\0\0")),
        ("a function call of nothing", frames::message(b'F', b"")),
        ("a Sync with a body", frames::message(b'S', b"x")),
    ];
    for (what, bytes) in cases {
        let (mut ours, mut direct) = (proxy.raw(&db).await, db.raw().await);
        let shown = |frames: Vec<Frame>| {
            let shown = frames.iter().map(|frame| match frame.tag {
                b'E' => format!("E {} {:?}", frame.sqlstate(), frame.field(b'M')),
                _ => format!("{frame:?}"),
            });
            shown.collect::<Vec<_>>()
        };
        ours.send(&bytes).await;
        direct.send(&bytes).await;
        let ours = shown(to_the_end(&mut ours).await);
        assert_eq!(ours, shown(to_the_end(&mut direct).await), "{what}");
        is_in_order(&proxy, &db, what).await;
    }
}

/// Frames up to ReadyForQuery, or to the end.
async fn to_the_end(client: &mut RawClient) -> Vec<Frame> {
    let mut frames = Vec::new();
    while frames.last().is_none_or(|last: &Frame| last.tag != b'Z') {
        match client.next_frame().await {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) | Err(_) => break,
        }
    }
    frames
}

/// As from PostgreSQL itself: what was asked before the goodbye is answered before the end.
#[tokio::test]
async fn a_goodbye_right_behind_a_request_does_not_cost_the_answer() {
    let (db, proxy) = single().await;
    for request in [
        frames::query("select 1"),
        [frames::extended("select 1", &[]), frames::sync()].concat(),
    ] {
        let both = [request, frames::terminate()].concat();
        let (mut ours, mut direct) = (proxy.raw(&db).await, db.raw().await);
        ours.send(&both).await;
        direct.send(&both).await;
        assert_eq!(ours.rest().await, direct.rest().await);
        is_in_order(&proxy, &db, "a goodbye").await;
    }
}
