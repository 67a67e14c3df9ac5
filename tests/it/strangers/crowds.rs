//! Crowds of strangers: they cost little, and nobody is kept out by them.

use super::{is_in_order, memory_kb};
use crate::support::wire::SSL_REQUEST;
use crate::support::{ROLE, RawClient, database, eventually, frames, proxy};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Connections of each kind left behind.
const ABANDONED: usize = 1000;

/// A thousand of them may cost the proxy this much: 8 KB each, and the allocator's slack.
const MEMORY_KB: u64 = 16 * 1024;

#[tokio::test]
async fn a_thousand_abandoned_connections_of_each_kind() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let db = database().await;
    let role = db.role("app", "secret").await;
    let proxy = proxy()
        .secret(&role, "secret")
        .set("log.level", "info")
        .set("listen.login_timeout", "60s")
        .max_connections(2)
        .start()
        .await;
    let startup = frames::startup(&[("user", &role), ("database", &db.name)]);
    let cancel = frames::cancel_request(1, b"none");
    let almost = [&b"\0\0\x27\x10\0\x03\0\0user\0"[..], &[b'x'; 9000]].concat();
    let kinds: [(&str, &[u8]); 6] = [
        ("silent ones", b""),
        ("half a length", b"\0\0"),
        ("a packet that never ends", &almost),
        ("no password", &startup),
        ("SSL asked for", SSL_REQUEST),
        ("cancels", &cancel),
    ];
    is_in_order(&proxy, &db, "nothing yet").await;
    for (what, bytes) in kinds {
        let before = memory_kb(&proxy);
        let mut sockets = Vec::new();
        for _ in 0..ABANDONED {
            let mut socket = TcpStream::connect(proxy.address).await.unwrap();
            socket.write_all(bytes).await.unwrap();
            sockets.push(socket);
        }
        is_in_order(&proxy, &db, what).await;
        let grown = memory_kb(&proxy).saturating_sub(before);
        assert!(grown < MEMORY_KB, "{what} cost {grown} KB");
        let held = proxy
            .metrics()
            .await
            .sum("pgsluice_database_connections", &[]);
        assert!(held <= 1.0, "{what}: {held} database connections");
        drop(sockets);
        is_in_order(&proxy, &db, &format!("{what}, gone")).await;
    }
    let received = "pgsluice_client_connections_received_total";
    eventually("all were seen", async || {
        proxy.metrics().await.sum(received, &[]) >= 6.0 * ABANDONED as f64
    })
    .await;
    let fds = || {
        std::fs::read_dir(format!("/proc/{}/fd", proxy.pid()))
            .unwrap()
            .count()
    };
    eventually("their descriptors are closed", async || fds() < 100).await;
}

/// Out of descriptors, those inside are served, and newcomers again as soon as there are some.
#[tokio::test]
async fn strangers_can_take_every_descriptor_but_not_for_ever() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut inside = proxy.raw(&db).await;
    inside.query("select 1").await;
    let limited = std::process::Command::new("prlimit")
        .args(["--nofile=100:100", "--pid", &proxy.pid().to_string()])
        .status();
    assert!(limited.unwrap().success());
    let mut strangers = Vec::new();
    for _ in 0..200 {
        strangers.push(TcpStream::connect(proxy.address).await.unwrap());
    }
    eventually("it has run out", async || {
        proxy.log().contains("accept failed")
    })
    .await;
    assert_eq!(inside.value("select 1").await, "1");
    drop(strangers);
    is_in_order(&proxy, &db, "out of descriptors").await;
}

/// Who may log in may name any database, but not fill memory and metrics with names.
#[tokio::test]
async fn databases_that_do_not_exist_leave_nothing_behind() {
    let db = database().await;
    let proxy = proxy().start().await;
    for number in 0..50 {
        let name = format!("no_such_database_{number}");
        let mut client = RawClient::connect(proxy.address).await;
        client
            .send(&frames::startup(&[("user", ROLE), ("database", &name)]))
            .await;
        let refused = client.finish_login("").await.unwrap();
        assert_eq!(refused.sqlstate(), "3D000");
    }
    eventually("their pools are forgotten", async || {
        let text = proxy.metrics().await.text;
        !text.contains("no_such_database")
    })
    .await;
    is_in_order(&proxy, &db, "many databases").await;
}

/// Beyond the limit the one that has been silent longest is closed; who has just come may log in.
#[tokio::test]
async fn the_longest_silent_one_makes_room() {
    for key in [
        "max_logins_in_progress",
        "max_logins_in_progress_per_address",
    ] {
        let db = database().await;
        let proxy = proxy()
            .set(&format!("limits.{key}"), 10)
            .set("listen.login_timeout", "60s")
            .start()
            .await;
        let mut inside = proxy.raw(&db).await;
        let mut strangers = Vec::new();
        for _ in 0..30 {
            strangers.push(RawClient::connect(proxy.address).await);
        }
        for (number, stranger) in strangers.iter_mut().take(20).enumerate() {
            assert_eq!(
                stranger.rest().await,
                [],
                "{key}: number {number} was told something"
            );
        }
        is_in_order(&proxy, &db, key).await;
        // The newest are still there, and may still log in.
        let newest = strangers.last_mut().unwrap();
        let who = [("user", ROLE), ("database", db.name.as_str())];
        newest.send(&frames::startup(&who)).await;
        assert_eq!(newest.finish_login("").await, None, "{key}");
        assert_eq!(newest.value("select 1").await, "1");
        // Who has logged in is no stranger.
        assert_eq!(inside.value("select 1").await, "1");
    }
}
