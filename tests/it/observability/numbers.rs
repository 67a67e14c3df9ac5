//! `/metrics`, `/healthz`, `/readyz`.

use crate::support::wire::{Certificates, Wire};
use crate::support::{
    Database, PASSWORD, Proxy, ROLE, RawClient, database, eventually, frames, observer, proxy,
};

const CLIENTS: &str = "pgsluice_client_connections";
const RECEIVED: &str = "pgsluice_client_connections_received_total";
const SETUP: &str = "pgsluice_client_connections_setup_total";
const CLOSED: &str = "pgsluice_client_connections_closed_total";
const BACKENDS: &str = "pgsluice_database_connections";

/// Waits until a metric has this value.
async fn becomes(proxy: &Proxy, name: &str, labels: &[(&str, &str)], value: f64) {
    let what = format!("{name} {labels:?} is {value}");
    eventually(&what, async || {
        proxy.metrics().await.sum(name, labels) == value
    })
    .await;
}

async fn try_login(proxy: &Proxy, database: &str, role: &str, password: &str) {
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(database, role, password).await.unwrap_err();
}

#[tokio::test]
async fn clients_come_and_go() {
    let db = database().await;
    let certificates = Certificates::new(&["localhost"]);
    let proxy = proxy()
        .file("server.crt", certificates.certificate.as_str())
        .file("server.key", certificates.key.as_str())
        .set("listen.tls_certificate_file", "server.crt")
        .set("listen.tls_private_key_file", "server.key")
        .start()
        .await;
    let mut plain = proxy.raw(&db).await;
    let gone = proxy.raw(&db).await;
    let mut encrypted = certificates.connect(proxy.address).await;
    encrypted.log_in(&db.name, ROLE, PASSWORD).await.unwrap();
    becomes(&proxy, CLIENTS, &[("tls", "no")], 2.0).await;
    becomes(&proxy, CLIENTS, &[("tls", "yes")], 1.0).await;
    becomes(&proxy, RECEIVED, &[], 3.0).await;
    becomes(&proxy, SETUP, &[("result", "succeeded")], 3.0).await;
    drop(gone);
    becomes(&proxy, CLIENTS, &[("tls", "no")], 1.0).await;
    becomes(&proxy, CLOSED, &[("reason", "client_gone")], 1.0).await;
    plain.send(&frames::terminate()).await;
    encrypted.send(&frames::terminate()).await;
    becomes(&proxy, CLIENTS, &[], 0.0).await;
    becomes(&proxy, CLOSED, &[("reason", "client_quit")], 2.0).await;
    let endpoint = proxy.address.to_string();
    becomes(&proxy, CLOSED, &[("endpoint", &endpoint)], 3.0).await;
}

#[tokio::test]
async fn logins_by_outcome() {
    let db = database().await;
    let locked = db.role("locked", "secret").await;
    db.execute(&format!("ALTER ROLE {locked} NOLOGIN")).await;
    let proxy = proxy()
        .secret(&locked, "secret")
        .set("limits.max_clients", 1)
        .set("listen.login_timeout", "3s")
        .start()
        .await;
    try_login(&proxy, &db.name, &locked, "wrong").await;
    try_login(&proxy, &db.name, "nobody", "wrong").await;
    becomes(&proxy, SETUP, &[("result", "failed_auth")], 2.0).await;
    try_login(&proxy, &db.name, &locked, "secret").await;
    becomes(&proxy, SETUP, &[("result", "failed_backend")], 1.0).await;
    let _inside = proxy.raw(&db).await;
    try_login(&proxy, &db.name, ROLE, PASSWORD).await;
    becomes(&proxy, SETUP, &[("result", "failed_limit")], 1.0).await;
    let mut stranger = RawClient::connect(proxy.address).await;
    stranger.send(b"GET / HTTP/1.1\r\n\r\n").await;
    stranger.rest().await;
    becomes(&proxy, SETUP, &[("result", "failed_protocol")], 1.0).await;
    let mut silent = RawClient::connect(proxy.address).await;
    silent.rest().await;
    becomes(&proxy, SETUP, &[("result", "failed_timeout")], 1.0).await;
    becomes(&proxy, SETUP, &[("result", "succeeded")], 1.0).await;
    becomes(&proxy, RECEIVED, &[], 7.0).await;
    becomes(&proxy, CLIENTS, &[], 1.0).await;
}

/// A client, logged in, in a transaction or not, and what ends it.
async fn each_end_once(proxy: &Proxy, db: &Database) {
    let observer = observer().await;
    // idle_client_timeout: a second.
    proxy.raw(db).await.rest().await;
    becomes(proxy, CLOSED, &[("reason", "idle_client_timeout")], 1.0).await;
    // idle_in_transaction_timeout: as long.
    let mut client = proxy.raw(db).await;
    client.query("begin").await;
    client.rest().await;
    let reason = [("reason", "idle_in_transaction_timeout")];
    becomes(proxy, CLOSED, &reason, 1.0).await;
    let mut client = proxy.raw(db).await;
    client.send(&frames::query("select pg_sleep(60)")).await;
    eventually("it runs", async || {
        observer.in_state(db, "active").await == 1
    })
    .await;
    for pid in observer.pids(db).await {
        observer.terminate(pid).await;
    }
    client.rest().await;
    becomes(proxy, CLOSED, &[("reason", "backend_lost")], 1.0).await;
    let mut client = proxy.raw(db).await;
    client.send(b"?\0\0\0\x04").await;
    client.rest().await;
    becomes(proxy, CLOSED, &[("reason", "protocol_violation")], 1.0).await;
}

#[tokio::test]
async fn sessions_end_for_a_reason() {
    let db = database().await;
    let proxy = proxy()
        .set("pool.idle_client_timeout", "1s")
        .set("pool.idle_in_transaction_timeout", "1s")
        .start()
        .await;
    each_end_once(&proxy, &db).await;
    becomes(&proxy, CLOSED, &[], 4.0).await;
    becomes(&proxy, CLIENTS, &[], 0.0).await;
    becomes(
        &proxy,
        "pgsluice_database_connections_in_transaction",
        &[],
        0.0,
    )
    .await;
}

async fn counts_as_the_server(proxy: &Proxy, db: &Database, expected: usize) {
    let observer = observer().await;
    eventually("both count the same connections", async || {
        let ours = proxy.metrics().await.sum(BACKENDS, &[]);
        ours == expected as f64 && observer.backends(db).await == expected
    })
    .await;
}

#[tokio::test]
async fn database_connections_by_state() {
    let db = database().await;
    let proxy = proxy().max_connections(2).start().await;
    becomes(&proxy, BACKENDS, &[], 0.0).await;
    let (mut a, mut b, mut c) = (
        proxy.raw(&db).await,
        proxy.raw(&db).await,
        proxy.raw(&db).await,
    );
    let pool = [
        ("target", "primary"),
        ("database", db.name.as_str()),
        ("user", ROLE),
    ];
    let of_pool = |state| [&pool[..], &[("state", state), ("tls", "no")]].concat();
    becomes(&proxy, BACKENDS, &of_pool("idle"), 1.0).await;
    becomes(&proxy, "pgsluice_database_connections_allowed", &[], 2.0).await;
    becomes(&proxy, "pgsluice_target_up", &[("target", "primary")], 1.0).await;
    a.query("begin").await;
    b.query("begin").await;
    becomes(&proxy, BACKENDS, &of_pool("borrowed"), 2.0).await;
    becomes(&proxy, BACKENDS, &of_pool("idle"), 0.0).await;
    becomes(&proxy, "pgsluice_database_connections_borrowed", &pool, 2.0).await;
    becomes(
        &proxy,
        "pgsluice_database_connections_in_transaction",
        &pool,
        2.0,
    )
    .await;
    counts_as_the_server(&proxy, &db, 2).await;
    c.send(&frames::query("select 1")).await;
    becomes(&proxy, "pgsluice_clients_waiting", &pool, 1.0).await;
    a.query("commit").await;
    c.ready().await;
    becomes(&proxy, "pgsluice_clients_waiting", &pool, 0.0).await;
    b.query("rollback").await;
    becomes(
        &proxy,
        "pgsluice_database_connections_in_transaction",
        &pool,
        0.0,
    )
    .await;
    becomes(&proxy, "pgsluice_database_connections_borrowed", &pool, 0.0).await;
    becomes(&proxy, BACKENDS, &of_pool("borrowed"), 0.0).await;
    let setup = "pgsluice_database_connection_setup_total";
    becomes(&proxy, setup, &[("result", "succeeded")], 2.0).await;
    becomes(&proxy, setup, &[("result", "failed")], 0.0).await;
    let metrics = proxy.metrics().await;
    let requests = metrics.sum("pgsluice_database_connection_requests_total", &pool);
    let borrowed = metrics.sum("pgsluice_database_connection_borrow_seconds_count", &pool);
    assert!(
        requests >= 4.0 && requests == borrowed,
        "{requests} requests, {borrowed} served"
    );
}

#[tokio::test]
async fn a_backend_that_ends_is_not_counted_any_more() {
    let db = database().await;
    let proxy = proxy().start().await;
    let mut client = proxy.raw(&db).await;
    client.query("select 1").await;
    counts_as_the_server(&proxy, &db, 1).await;
    let observer = observer().await;
    for pid in observer.pids(&db).await {
        observer.terminate(pid).await;
    }
    becomes(&proxy, BACKENDS, &[], 0.0).await;
    client.query("begin").await;
    counts_as_the_server(&proxy, &db, 1).await;
    drop(client);
    becomes(&proxy, "pgsluice_database_connections_borrowed", &[], 0.0).await;
}

#[tokio::test]
async fn a_login_the_server_refuses_is_a_failed_setup() {
    let db = database().await;
    let proxy = proxy().start().await;
    try_login(&proxy, "no_such_database", ROLE, PASSWORD).await;
    let setup = "pgsluice_database_connection_setup_total";
    becomes(&proxy, setup, &[("result", "failed")], 1.0).await;
    becomes(&proxy, BACKENDS, &[], 0.0).await;
    let _client = proxy.raw(&db).await;
    becomes(&proxy, setup, &[("result", "succeeded")], 1.0).await;
}

#[tokio::test]
async fn pins_are_counted_by_reason_and_end() {
    let db = database().await;
    // The only backend never listens for others.
    let proxy = proxy().max_connections(1).start().await;
    let pinned = "pgsluice_database_connections_session_pinned";
    for (reason, sql) in [
        ("listen", "listen somebody"),
        ("temp_object", "create temp table mine (x int)"),
        ("advisory_lock", "select pg_advisory_lock(1)"),
        (
            "sql_prepare",
            "prepare p as select 1; prepare q as select 2",
        ),
        ("hold_cursor", "declare c cursor with hold for select 1"),
    ] {
        let mut client = proxy.raw(&db).await;
        client.query(sql).await;
        let labels = [("reason", reason)];
        becomes(&proxy, pinned, &labels, 1.0).await;
        becomes(&proxy, "pgsluice_pins_total", &labels, 1.0).await;
        becomes(&proxy, "pgsluice_unpins_total", &labels, 0.0).await;
        client.query("discard all").await;
        becomes(&proxy, pinned, &labels, 0.0).await;
        becomes(&proxy, "pgsluice_unpins_total", &labels, 1.0).await;
        becomes(&proxy, "pgsluice_database_connections_borrowed", &[], 0.0).await;
    }
}

#[tokio::test]
async fn queries_are_counted_and_timed() {
    let db = database().await;
    let proxy = proxy().start().await;
    let mut client = proxy.raw(&db).await;
    let labels = [("database", db.name.as_str()), ("user", ROLE)];
    let requests = "pgsluice_query_requests_total";
    client.query("select 1").await;
    becomes(&proxy, requests, &labels, 1.0).await;
    client
        .ask(&[frames::extended("select 1", &[]), frames::sync()].concat())
        .await;
    becomes(&proxy, requests, &labels, 2.0).await;
    client.query("select pg_sleep(0.3)").await;
    becomes(&proxy, requests, &labels, 3.0).await;
    becomes(&proxy, "pgsluice_query_seconds_count", &labels, 3.0).await;
    becomes(
        &proxy,
        "pgsluice_query_database_seconds_count",
        &labels,
        3.0,
    )
    .await;
    let metrics = proxy.metrics().await;
    let whole = metrics.sum("pgsluice_query_seconds_sum", &labels);
    let server = metrics.sum("pgsluice_query_database_seconds_sum", &labels);
    assert!((0.3..10.0).contains(&server), "{server} s in the database");
    assert!(
        whole >= server,
        "{whole} s in all, {server} s in the database"
    );
}

#[tokio::test]
async fn health_readiness_and_the_rest_of_the_page() {
    let proxy = proxy().start().await;
    assert_eq!(proxy.http("/healthz").await, (200, "ok\n".into()));
    assert_eq!(proxy.http("/readyz").await, (200, "ready\n".into()));
    assert_eq!(proxy.http("/nowhere").await.0, 404);
    let text = proxy.metrics().await.text;
    let version = format!(
        "pgsluice_build_info{{version=\"{}\"}} 1",
        env!("CARGO_PKG_VERSION")
    );
    assert!(text.contains(&version), "{text}");
    for line in text.lines() {
        let known = line.starts_with("# HELP pgsluice_")
            || line.starts_with("# TYPE pgsluice_")
            || line.starts_with("pgsluice_");
        assert!(known, "{line}");
    }
}
