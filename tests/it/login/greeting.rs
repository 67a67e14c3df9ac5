//! What is said before and right after a login: versions of the protocol, encryption asked for, parameters told.

use crate::support::wire::{GSS_REQUEST, SSL_REQUEST, Wire};
use crate::support::{
    Database, Frame, PASSWORD, Proxy, ROLE, RawClient, cancel, database, eventually, frames,
    observer, proxy,
};
use bytes::Buf;
use std::collections::BTreeMap;

/// A startup packet of this minor version.
fn startup(minor: u8, db: &Database, more: &[(&str, &str)]) -> Vec<u8> {
    let who = [("user", ROLE), ("database", db.name.as_str())];
    let mut packet = frames::startup(&[&who, more].concat());
    packet[7] = minor;
    packet
}

async fn refused(proxy: &Proxy, packet: &[u8]) -> Frame {
    let mut client = RawClient::connect(proxy.address).await;
    client.send(packet).await;
    let answer = client.rest().await;
    assert_eq!(frames::tags(&answer), "E", "{answer:?}");
    answer.into_iter().next().unwrap()
}

/// What ParameterStatus tells.
fn parameters(welcome: &[Frame]) -> BTreeMap<String, String> {
    let told = welcome
        .iter()
        .filter(|frame| frame.tag == b'S')
        .map(|frame| {
            let mut parts = frame.body.split(|&byte| byte == 0);
            let mut text = || String::from_utf8(parts.next().unwrap().to_vec()).unwrap();
            (text(), text())
        });
    told.collect()
}

#[tokio::test]
async fn parameters_at_login_are_those_of_a_direct_one() {
    let db = database().await;
    db.execute(&format!(
        "ALTER DATABASE {} SET TimeZone = 'Asia/Tokyo'",
        db.name
    ))
    .await;
    let proxy = proxy().max_connections(2).start().await;
    let cases: [&[(&str, &str)]; 6] = [
        &[],
        &[("application_name", "shop"), ("client_encoding", "LATIN1")],
        &[
            ("DateStyle", "German"),
            ("TimeZone", "Europe/Rome"),
            ("extra_float_digits", "3"),
        ],
        &[(
            "options",
            "-c IntervalStyle=iso_8601 --client-encoding=SQL_ASCII -cgeqo=off",
        )],
        &[(
            "options",
            r"-c application_name=with\ space\\s -c search_path=a,\ b",
        )],
        &[
            ("options", "-c application_name=first"),
            ("application_name", "second"),
        ],
    ];
    // Twice: the second time the proxy may remember.
    for case in cases.iter().chain(&cases) {
        let direct = RawClient::login(db.server.address, &db.name, ROLE, PASSWORD, case).await;
        let mut ours = proxy.raw_with(&db, case).await;
        assert_eq!(
            parameters(&ours.welcome),
            parameters(&direct.welcome),
            "{case:?}"
        );
        let order = frames::tags(&ours.welcome);
        assert_eq!(order.trim_start_matches('S'), "KZ", "{case:?}");
        let mut direct = direct;
        for setting in [
            "geqo",
            "search_path",
            "TimeZone",
            "client_encoding",
            "application_name",
        ] {
            let sql = format!("select current_setting('{setting}')");
            assert_eq!(
                ours.value(&sql).await,
                direct.value(&sql).await,
                "{setting} {case:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_parameter_the_server_does_not_take_is_refused_in_its_words() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let cases: [&[(&str, &str)]; 5] = [
        &[("no_such_setting", "1")],
        &[("statement_timeout", "soon")],
        &[("options", "-c shared_buffers=1GB")],
        &[("client_encoding", "klingon")],
        &[("DateStyle", "'; drop table x; --")],
    ];
    for case in cases {
        let packet = startup(0, &db, case);
        let mut direct = RawClient::connect(db.server.address).await;
        direct.send(&packet).await;
        let expected = direct.finish_login(PASSWORD).await.expect("a refusal");
        let mut ours = RawClient::connect(proxy.address).await;
        ours.send(&packet).await;
        let got = ours.finish_login(PASSWORD).await;
        let got = got.unwrap_or_else(|| panic!("let in with {case:?}"));
        assert_eq!(got.sqlstate(), expected.sqlstate(), "{case:?}: {got:?}");
        assert_eq!(got.field(b'M'), expected.field(b'M'), "{case:?}");
        assert_eq!(got.field(b'S').as_deref(), Some("FATAL"), "{case:?}");
    }
    // The backend that was asked is as good as before.
    let mut next = proxy.raw(&db).await;
    assert_eq!(next.value("show statement_timeout").await, "0");
}

#[tokio::test]
async fn protocol_3_0_has_short_cancel_keys_and_3_2_long_ones() {
    let db = database().await;
    let proxy = proxy().start().await;
    for (minor, key_len) in [(0, 4..=4), (2, 16..=256)] {
        let mut client = RawClient::connect(proxy.address).await;
        client.send(&startup(minor, &db, &[])).await;
        assert_eq!(client.finish_login(PASSWORD).await, None);
        assert!(!frames::tags(&client.welcome).contains('v'), "3.{minor}");
        assert!(
            key_len.contains(&client.key.secret.len()),
            "3.{minor}: {:?}",
            client.key
        );
        let observer = observer().await;
        client.send(&frames::query("select pg_sleep(60)")).await;
        eventually("the query runs", async || {
            let sql = "select 1 from pg_stat_activity where datname = $1 and query like '%sleep(60)' \
                       and state = 'active'";
            observer.client.query_opt(sql, &[&db.name]).await.unwrap().is_some()
        })
        .await;
        // A key of the wrong length is no key.
        let mut short = client.key.clone();
        short.secret.push(0);
        cancel(proxy.address, &short).await;
        assert_eq!(observer.in_state(&db, "active").await, 1);
        client.cancel().await;
        assert_eq!(
            frames::errors(&client.ready().await),
            ["57014"],
            "3.{minor}"
        );
    }
}

#[tokio::test]
async fn newer_versions_and_unknown_protocol_options_are_negotiated() {
    let db = database().await;
    let proxy = proxy().start().await;
    type Case = (
        u8,
        &'static [(&'static str, &'static str)],
        u32,
        &'static [&'static str],
    );
    let cases: [Case; 3] = [
        (99, &[], 2, &[]),
        (
            2,
            &[("_pq_.one", "x"), ("_pq_.two", "")],
            2,
            &["_pq_.one", "_pq_.two"],
        ),
        (0, &[("_pq_.one", "x")], 0, &["_pq_.one"]),
    ];
    for (minor, options, spoken, unknown) in cases {
        let mut client = RawClient::connect(proxy.address).await;
        client.send(&startup(minor, &db, options)).await;
        let first = client.frame().await;
        assert_eq!(first.tag, b'v', "3.{minor} {options:?}: {first:?}");
        let mut body = first.body.clone();
        assert_eq!(body.get_u32(), 0x3_0000 | spoken, "3.{minor} {options:?}");
        assert_eq!(body.get_u32() as usize, unknown.len());
        let names: Vec<_> = unknown.iter().map(|name| format!("{name}\0")).collect();
        assert_eq!(body, names.concat().as_bytes());
        assert_eq!(client.finish_login(PASSWORD).await, None);
        assert_eq!(client.value("select 1").await, "1");
    }
}

#[tokio::test]
async fn other_protocols_are_refused() {
    let db = database().await;
    let proxy = proxy().start().await;
    for (major, code) in [(2_u8, "0A000"), (4, "0A000"), (0, "0A000")] {
        let mut packet = startup(0, &db, &[]);
        packet[5] = major;
        let error = refused(&proxy, &packet).await;
        assert_eq!(error.sqlstate(), code, "{error:?}");
        assert!(
            error
                .field(b'M')
                .unwrap()
                .contains("unsupported frontend protocol")
        );
    }
}

#[tokio::test]
async fn gss_encryption_is_politely_refused() {
    let db = database().await;
    let proxy = proxy().start().await;
    let mut wire = Wire::tcp(proxy.address).await;
    for request in [GSS_REQUEST, SSL_REQUEST] {
        wire.send(request).await;
        assert_eq!(wire.byte().await, b'N');
    }
    wire.log_in(&db.name, ROLE, PASSWORD).await.unwrap();
    assert_eq!(wire.value("select 1").await, "1");
    // Once is enough.
    let mut wire = Wire::tcp(proxy.address).await;
    wire.send(GSS_REQUEST).await;
    assert_eq!(wire.byte().await, b'N');
    wire.send(GSS_REQUEST).await;
    assert_eq!(frames::errors(&wire.rest().await), ["0A000"]);
}

#[tokio::test]
async fn replication_is_refused_and_told_where_to_go() {
    let db = database().await;
    let proxy = proxy().start().await;
    for value in ["true", "database", "1", "on", "yes"] {
        let error = refused(&proxy, &startup(0, &db, &[("replication", value)])).await;
        assert_eq!(error.sqlstate(), "0A000", "{value}");
        let text = error.field(b'M').unwrap();
        assert!(
            text.contains("replication") && text.contains("directly"),
            "{text}"
        );
    }
    let error = refused(&proxy, &startup(0, &db, &[("replication", "maybe")])).await;
    assert_eq!(error.sqlstate(), "22023");
    for value in ["false", "off", "0"] {
        let mut client = RawClient::connect(proxy.address).await;
        client
            .send(&startup(0, &db, &[("replication", value)]))
            .await;
        assert_eq!(client.finish_login(PASSWORD).await, None, "{value}");
    }
}

#[tokio::test]
async fn a_user_must_be_named_and_names_the_database_otherwise() {
    let db = database().await;
    let proxy = proxy().start().await;
    let error = refused(&proxy, &frames::startup(&[("database", &db.name)])).await;
    assert_eq!(error.sqlstate(), "28000");
    let error = refused(&proxy, &frames::startup(&[("user", "")])).await;
    assert_eq!(error.sqlstate(), "28000");
    let mut client = RawClient::connect(proxy.address).await;
    client.send(&frames::startup(&[("user", ROLE)])).await;
    assert_eq!(client.finish_login(PASSWORD).await, None);
    assert_eq!(client.value("select current_database()").await, ROLE);
}

#[tokio::test]
async fn a_unix_socket_is_a_way_in() {
    let db = database().await;
    let role = db.role("app", "secret").await;
    let folder = tempfile::tempdir().unwrap();
    let proxy = proxy()
        .secret(&role, "secret")
        .set("listen.unix_socket_dir", folder.path().to_str().unwrap())
        .set("listen.unix_socket_mode", "0700")
        .start()
        .await;
    let path = folder
        .path()
        .join(format!(".s.PGSQL.{}", proxy.address.port()));
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    let mut wire = Wire::unix(&path).await;
    wire.send(SSL_REQUEST).await;
    assert_eq!(wire.byte().await, b'N');
    wire.log_in(&db.name, &role, "secret").await.unwrap();
    assert_eq!(wire.value("select current_user").await, role);
    let mut wire = Wire::unix(&path).await;
    let refused = wire.log_in(&db.name, &role, "wrong").await.unwrap_err();
    assert_eq!(refused.sqlstate(), "28P01");
    let metrics = proxy.metrics().await;
    let received = "pgsluice_client_connections_received_total";
    assert_eq!(
        metrics.sum(received, &[("endpoint", "unix")]),
        2.0,
        "{}",
        metrics.text
    );
    // The socket goes with the proxy.
    let mut proxy = proxy;
    proxy.signal("TERM");
    assert!(proxy.ended().await.success());
    assert!(!path.exists());
}
