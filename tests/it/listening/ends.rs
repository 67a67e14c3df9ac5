//! How listening ends: by the session, by its client, by the listener, by what is too much.

use super::*;

#[tokio::test]
async fn nothing_comes_after_unlisten_was_answered() {
    let db = database().await;
    let proxy = proxy().max_connections(3).start().await;
    for end in [
        "UNLISTEN news",
        "UNLISTEN *",
        "DISCARD ALL",
        "BEGIN; UNLISTEN *; COMMIT",
    ] {
        let (mut client, mut other) = (proxy.raw(&db).await, proxy.raw(&db).await);
        for listener in [&mut client, &mut other] {
            listener.query("LISTEN news").await;
        }
        client.query(end).await;
        db.execute("NOTIFY news, 'late'").await;
        assert_eq!(heard(&[other.frame().await]), [pair("news", "late")]);
        assert_eq!(tags(&client.query("SELECT 1").await), "TDCZ", "{end}");
    }
    assert_eq!(pins(&proxy).await, 0.0);
}

#[tokio::test]
async fn when_the_last_session_has_left_nobody_listens() {
    let db = database().await;
    let proxy = proxy().max_connections(2).start().await;
    let mut client = proxy.raw(&db).await;
    client.query("LISTEN news").await;
    client.query("SELECT 1").await;
    assert_eq!(listeners(&proxy).await, 1.0);
    drop(client);
    eventually("the listener ends", async || listeners(&proxy).await == 0.0).await;
    let borrowed = "pgsluice_database_connections_borrowed";
    assert_eq!(proxy.metrics().await.sum(borrowed, &[]), 0.0);
}

async fn listener_pid(db: &Database) -> i32 {
    let direct = db.connect().await;
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgsluice listener' \
               AND datname = current_database()";
    text(&direct, sql).await.parse().unwrap()
}

#[tokio::test]
async fn sessions_whose_listener_is_lost_are_told_and_end() {
    let db = database().await;
    let proxy = proxy().max_connections(4).start().await;
    let mut idle = proxy.raw(&db).await;
    let mut busy = proxy.raw(&db).await;
    let mut other = proxy.raw(&db).await;
    for client in [&mut idle, &mut busy] {
        client.query("LISTEN news").await;
        client.query("SELECT 1").await;
    }
    busy.query("BEGIN").await;
    observer().await.terminate(listener_pid(&db).await).await;
    for client in [&mut idle, &mut busy] {
        let rest = client.rest().await;
        assert_eq!(errors(&rest), ["08006"]);
        let words = rest[0].field(b'M').unwrap();
        assert!(words.contains("administrator command"), "{words}");
    }
    // Who does not listen is not concerned, and who listens anew has another listener.
    other.query("LISTEN news").await;
    other.query("SELECT 1").await;
    assert_eq!((listeners(&proxy).await, pins(&proxy).await), (1.0, 0.0));
    db.execute("NOTIFY news, 'again'").await;
    assert_eq!(heard(&[other.frame().await]), [pair("news", "again")]);
    let reason = [("reason", "listener_lost")];
    let closed = "pgsluice_client_connections_closed_total";
    assert_eq!(proxy.metrics().await.sum(closed, &reason), 2.0);
}

#[tokio::test]
async fn who_does_not_read_ends_loudly_and_holds_nobody_up() {
    let db = database().await;
    let proxy = proxy().max_connections(3).start().await;
    let (mut slow, mut quick) = (proxy.raw(&db).await, proxy.raw(&db).await);
    for client in [&mut slow, &mut quick] {
        client.query("LISTEN news").await;
        client.query("SELECT 1").await;
    }
    let speaker = db.connect().await;
    let closed = "pgsluice_client_connections_closed_total";
    let reason = [("reason", "notifications_overflow")];
    let mut sent = 0;
    // 70 MB fit nowhere.
    while sent < 10_000 && proxy.metrics().await.sum(closed, &reason) == 0.0 {
        let many =
            "SELECT pg_notify('news', n || repeat('x', 7000)) FROM generate_series(1, 100) n";
        speaker.simple_query(many).await.unwrap();
        for _ in 0..100 {
            assert_eq!(quick.frame().await.tag, b'A');
        }
        sent += 100;
    }
    eventually("it is closed", async || {
        proxy.metrics().await.sum(closed, &reason) > 0.0
    })
    .await;
    let rest = slow.rest().await;
    let count = rest.iter().filter(|frame| frame.tag == b'A').count();
    assert!(count < sent, "some were too much");
    // What it has read was whole and in order.
    for (number, (_, payload)) in heard(&rest).iter().enumerate() {
        let expected = (number % 100 + 1).to_string();
        assert_eq!(payload.trim_end_matches('x'), expected, "{number}");
    }
}

#[tokio::test]
async fn the_proxy_stops_in_order_while_sessions_listen() {
    let db = database().await;
    let mut proxy = proxy().max_connections(3).start().await;
    let mut client = proxy.raw(&db).await;
    client.query("LISTEN news").await;
    client.query("SELECT 1").await;
    proxy.signal("TERM");
    assert_eq!(errors(&client.rest().await), ["57P01"]);
    assert!(proxy.ended().await.success());
    eventually("it says so", async || {
        proxy.log().contains("every session has ended")
    })
    .await;
}

#[tokio::test]
async fn in_session_mode_a_listener_has_its_backend() {
    let db = database().await;
    let proxy = proxy().max_connections(4).mode("session").start().await;
    let mut client = proxy.raw(&db).await;
    client.query("LISTEN news").await;
    assert_eq!(tags(&client.query("NOTIFY news, 'x'").await), "CAZ");
    assert_eq!(listeners(&proxy).await, 0.0);
}
