//! Encryption: what clients may ask for and must, and how the database is reached.

use crate::support::wire::{Certificates, GSS_REQUEST, SSL_REQUEST, Wire};
use crate::support::{
    Database, PASSWORD, Proxy, ProxyBuilder, ROLE, RawClient, database, eventually, frames,
    observer, proxy, text,
};
use std::process::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

const PSQL: &str = "/usr/lib/postgresql/15/bin/psql";

fn with_tls(certificates: &Certificates) -> ProxyBuilder {
    proxy()
        .file("ca.crt", certificates.ca.as_str())
        .file("server.crt", certificates.certificate.as_str())
        .file("server.key", certificates.key.as_str())
        .set("listen.tls_certificate_file", "server.crt")
        .set("listen.tls_private_key_file", "server.key")
}

/// Runs one statement by libpq: what it printed, or what went wrong.
async fn psql(proxy: &Proxy, db: &Database, host: &str, options: &str) -> Result<String, String> {
    let ca = proxy.folder().join("ca.crt");
    let target = format!(
        "host={host} hostaddr={} port={} dbname={} user={ROLE} sslrootcert={} {options}",
        proxy.address.ip(),
        proxy.address.port(),
        db.name,
        ca.display(),
    );
    let output = Command::new(PSQL)
        .args([
            "-XAtq",
            "-d",
            &target,
            "-c",
            "\\conninfo",
            "-c",
            "select 'fine'",
        ])
        .env("PGPASSWORD", PASSWORD)
        .env("HOME", proxy.folder())
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

#[tokio::test]
async fn every_sslmode_of_libpq() {
    let db = database().await;
    let certificates = Certificates::new(&["localhost"]);
    let proxy = with_tls(&certificates).with_passwords().start().await;
    for (mode, encrypted) in [
        ("disable", false),
        ("allow", false),
        ("prefer", true),
        ("require", true),
        ("verify-ca", true),
        ("verify-full", true),
    ] {
        let answer = psql(&proxy, &db, "localhost", &format!("sslmode={mode}"))
            .await
            .unwrap();
        assert!(answer.contains("fine"), "{mode}: {answer}");
        assert_eq!(
            answer.contains("SSL connection"),
            encrypted,
            "{mode}: {answer}"
        );
    }
    let metrics = proxy.metrics().await;
    let setup = "pgsluice_client_connections_setup_total";
    assert_eq!(
        metrics.sum(setup, &[("result", "succeeded")]),
        6.0,
        "{}",
        metrics.text
    );
}

#[tokio::test]
async fn libpq_trusts_nobody_else() {
    let db = database().await;
    let (certificates, stranger) = (
        Certificates::new(&["localhost"]),
        Certificates::new(&["localhost"]),
    );
    let proxy = with_tls(&certificates)
        .with_passwords()
        .file("stranger.crt", stranger.ca)
        .start()
        .await;
    let bound = psql(
        &proxy,
        &db,
        "localhost",
        "sslmode=verify-full channel_binding=require",
    )
    .await;
    assert!(bound.is_ok(), "{bound:?}");
    let unbound = psql(
        &proxy,
        &db,
        "localhost",
        "sslmode=disable channel_binding=require",
    )
    .await;
    assert!(
        unbound.unwrap_err().contains("channel binding"),
        "no TLS, no binding"
    );
    let other_host = psql(&proxy, &db, "db.example", "sslmode=verify-full").await;
    assert!(
        other_host.unwrap_err().contains("does not match"),
        "another name"
    );
    let other_ca = format!(
        "sslmode=verify-ca sslrootcert={}",
        proxy.folder().join("stranger.crt").display()
    );
    let other_ca = psql(&proxy, &db, "localhost", &other_ca).await;
    assert!(
        other_ca.unwrap_err().contains("SSL error"),
        "another authority"
    );
}

#[tokio::test]
async fn without_a_certificate_there_is_no_tls() {
    let db = database().await;
    let (certificates, proxy) = (Certificates::new(&["localhost"]), proxy().start().await);
    let mut wire = Wire::tcp(proxy.address).await;
    wire.send(SSL_REQUEST).await;
    assert_eq!(wire.byte().await, b'N');
    wire.log_in(&db.name, ROLE, PASSWORD).await.unwrap();
    let socket = TcpStream::connect(proxy.address).await.unwrap();
    assert!(certificates.encrypt(socket, &["postgresql"]).await.is_err());
}

#[tokio::test]
async fn direct_tls_for_those_who_mean_postgresql() {
    let db = database().await;
    let certificates = Certificates::new(&["localhost"]);
    let proxy = with_tls(&certificates)
        .set("listen.require_tls", true)
        .start()
        .await;
    let connect = async |alpn: &[&str]| {
        let socket = TcpStream::connect(proxy.address).await.unwrap();
        certificates.encrypt(socket, alpn).await
    };
    let mut wire = connect(&["postgresql"]).await.unwrap();
    wire.log_in(&db.name, ROLE, PASSWORD).await.unwrap();
    assert_eq!(wire.value("select 1").await, "1");
    for alpn in [&[][..], &["http/1.1"], &["h2", "http/1.1"]] {
        // In TLS 1.3 the client is done before the server has decided.
        let Ok(mut wire) = connect(alpn).await else {
            continue;
        };
        let _ = wire
            .try_send(&frames::startup(&[("user", ROLE), ("database", &db.name)]))
            .await;
        assert_eq!(wire.rest().await, [], "served with ALPN {alpn:?}");
    }
    // Once encrypted, TLS is not negotiated again.
    let mut wire = connect(&["postgresql"]).await.unwrap();
    wire.send(SSL_REQUEST).await;
    assert_eq!(wire.byte().await, b'N');
}

#[tokio::test]
async fn plaintext_is_refused_where_tls_is_required() {
    let db = database().await;
    let certificates = Certificates::new(&["localhost"]);
    let folder = tempfile::tempdir().unwrap();
    let proxy = with_tls(&certificates)
        .set("listen.require_tls", true)
        .set("listen.unix_socket_dir", folder.path().to_str().unwrap())
        .start()
        .await;
    let mut wire = Wire::tcp(proxy.address).await;
    let refused = wire.log_in(&db.name, ROLE, PASSWORD).await.unwrap_err();
    assert_eq!(refused.sqlstate(), "28000", "{refused:?}");
    let text = refused.field(b'M').unwrap();
    assert!(
        text.contains("requires TLS") && text.contains("sslmode=require"),
        "{text}"
    );
    let refused = psql(&proxy, &db, "localhost", "sslmode=disable")
        .await
        .unwrap_err();
    assert!(refused.contains("requires TLS"), "{refused}");
    let mut wire = certificates.connect(proxy.address).await;
    wire.log_in(&db.name, ROLE, PASSWORD).await.unwrap();
    // A Unix socket never leaves the machine.
    let path = folder
        .path()
        .join(format!(".s.PGSQL.{}", proxy.address.port()));
    Wire::unix(&path)
        .await
        .log_in(&db.name, ROLE, PASSWORD)
        .await
        .unwrap();
}

/// CVE-2021-23222: what somebody in between sends ahead of the handshake must not be taken for the client's.
#[tokio::test]
async fn bytes_before_the_answer_to_a_request_for_encryption_are_refused() {
    let db = database().await;
    let certificates = Certificates::new(&["localhost"]);
    let proxy = with_tls(&certificates).start().await;
    let injected = frames::startup(&[("user", ROLE), ("database", &db.name)]);
    for request in [SSL_REQUEST, GSS_REQUEST] {
        let mut client = RawClient::connect(proxy.address).await;
        client.send(&[request, &injected].concat()).await;
        let answer = client.rest().await;
        assert_eq!(frames::errors(&answer), ["08P01"], "{answer:?}");
        assert!(
            answer[0]
                .field(b'M')
                .unwrap()
                .contains("received unencrypted data")
        );
    }
}

#[tokio::test]
async fn a_broken_handshake_hurts_nobody() {
    let db = database().await;
    let certificates = Certificates::new(&["localhost"]);
    let proxy = with_tls(&certificates).start().await;
    for garbage in [
        &b"\x16\x03\x01"[..],
        b"\x16\x03\x01\xff\xff",
        &[0x16; 20_000],
    ] {
        for first in [&b""[..], SSL_REQUEST] {
            let mut socket = TcpStream::connect(proxy.address).await.unwrap();
            socket.write_all(first).await.unwrap();
            if !first.is_empty() {
                assert_eq!(socket.read_u8().await.unwrap(), b'S');
            }
            let _ = socket.write_all(garbage).await;
            let _ = socket.shutdown().await;
            let mut rest = Vec::new();
            // An alert, perhaps, and the end.
            let reading = socket.read_to_end(&mut rest);
            let _ = crate::support::in_time("the end", reading).await;
        }
    }
    let mut wire = certificates.connect(proxy.address).await;
    wire.log_in(&db.name, ROLE, PASSWORD).await.unwrap();
    assert!(!proxy.log().contains("panicked"));
}

/// libpq sends a cancel request in the clear until version 16, encrypted since.
#[tokio::test]
async fn a_cancel_request_may_be_encrypted_or_not() {
    let db = database().await;
    let certificates = Certificates::new(&["localhost"]);
    let proxy = with_tls(&certificates)
        .set("listen.require_tls", true)
        .start()
        .await;
    let observer = observer().await;
    for encrypted in [false, true] {
        let mut busy = certificates.connect(proxy.address).await;
        busy.log_in(&db.name, ROLE, PASSWORD).await.unwrap();
        let key = busy.seen.iter().find(|frame| frame.tag == b'K').unwrap();
        let (pid, secret) = key.body.split_first_chunk::<4>().unwrap();
        let request = frames::cancel_request(u32::from_be_bytes(*pid), secret);
        busy.send(&frames::query("select pg_sleep(60)")).await;
        eventually("it runs", async || {
            observer.in_state(&db, "active").await == 1
        })
        .await;
        let mut other = match encrypted {
            true => certificates.connect(proxy.address).await,
            false => Wire::tcp(proxy.address).await,
        };
        other.send(&request).await;
        assert_eq!(other.rest().await, []);
        // (The rows may have been described before.)
        let mut answer = busy.frame().await;
        if answer.tag == b'T' {
            answer = busy.frame().await;
        }
        assert_eq!(answer.sqlstate(), "57014", "encrypted: {encrypted}");
    }
}

/// Lets the server accept TLS with this certificate, or not at all.
async fn serve_tls(certificates: Option<&Certificates>) {
    let observer = observer().await;
    let client = &observer.client;
    if let Some(certificates) = certificates {
        let folder = text(client, "show data_directory").await;
        let files = [
            ("tls.crt", &certificates.certificate),
            ("tls.key", &certificates.key),
        ];
        for (name, content) in files {
            let sql = format!(
                "COPY (SELECT * FROM regexp_split_to_table('{}', '\\n')) \
                 TO PROGRAM 'umask 077; cat >{folder}/{name}'",
                content.trim()
            );
            client.batch_execute(&sql).await.unwrap();
        }
        for (key, value) in [("ssl_cert_file", "tls.crt"), ("ssl_key_file", "tls.key")] {
            let sql = format!("ALTER SYSTEM SET {key} = '{value}'");
            client.batch_execute(&sql).await.unwrap();
        }
    }
    let state = if certificates.is_some() { "on" } else { "off" };
    client
        .batch_execute(&format!("ALTER SYSTEM SET ssl = '{state}'"))
        .await
        .unwrap();
    client
        .batch_execute("SELECT pg_reload_conf()")
        .await
        .unwrap();
    let address = crate::support::server().await.address;
    let expected = if certificates.is_some() { b'S' } else { b'N' };
    eventually("the server's TLS is as it should be", async || {
        let mut wire = Wire::tcp(address).await;
        wire.send(SSL_REQUEST).await;
        wire.byte().await == expected
    })
    .await;
}

/// Whether the database connection is encrypted; or the SQLSTATE and text that say why there is none.
async fn backend_tls(
    db: &Database,
    host: &str,
    mode: &str,
    ca: Option<&Certificates>,
) -> Result<bool, (String, String)> {
    let mut builder = proxy().set("target.host", host).set("target.tls", mode);
    if let Some(ca) = ca {
        builder = builder
            .file("root.crt", ca.ca.as_str())
            .set("target.tls_ca_file", "root.crt");
    }
    let proxy = builder.start().await;
    let mut wire = Wire::tcp(proxy.address).await;
    if let Err(error) = wire.log_in(&db.name, ROLE, PASSWORD).await {
        return Err((error.sqlstate(), error.field(b'M').unwrap()));
    }
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let encrypted = wire.value(sql).await == "t";
    let label = if encrypted { "yes" } else { "no" };
    let metrics = proxy.metrics().await;
    let count = metrics.sum("pgsluice_database_connections", &[("tls", label)]);
    assert_eq!(count, 1.0, "{}", metrics.text);
    Ok(encrypted)
}

fn assert_refused(result: Result<bool, (String, String)>, word: &str) {
    let (code, text) = result.expect_err(word);
    assert_eq!(code, "08006", "{text}");
    assert!(text.to_lowercase().contains(word), "{text}");
}

/// One test, for all share the server whose TLS is turned off and on.
#[tokio::test]
async fn every_tls_mode_towards_the_database() {
    let db = database().await;
    let (ours, other) = (
        Certificates::new(&["localhost"]),
        Certificates::new(&["localhost"]),
    );
    // (The certificate does not name the address.)
    let (name, address) = ("localhost", "127.0.0.1");

    serve_tls(None).await;
    assert_eq!(backend_tls(&db, address, "disable", None).await, Ok(false));
    assert_eq!(backend_tls(&db, address, "prefer", None).await, Ok(false));
    assert_refused(backend_tls(&db, address, "require", None).await, "tls");
    assert_refused(
        backend_tls(&db, name, "verify-full", Some(&ours)).await,
        "tls",
    );

    serve_tls(Some(&ours)).await;
    assert_eq!(backend_tls(&db, address, "disable", None).await, Ok(false));
    assert_eq!(backend_tls(&db, address, "prefer", None).await, Ok(true));
    assert_eq!(backend_tls(&db, address, "require", None).await, Ok(true));
    assert_eq!(
        backend_tls(&db, name, "verify-ca", Some(&ours)).await,
        Ok(true)
    );
    assert_eq!(
        backend_tls(&db, address, "verify-ca", Some(&ours)).await,
        Ok(true)
    );
    assert_refused(
        backend_tls(&db, name, "verify-ca", Some(&other)).await,
        "certificate",
    );
    assert_eq!(
        backend_tls(&db, name, "verify-full", Some(&ours)).await,
        Ok(true)
    );
    assert_refused(
        backend_tls(&db, address, "verify-full", Some(&ours)).await,
        "certificate",
    );
    assert_refused(
        backend_tls(&db, name, "verify-full", Some(&other)).await,
        "certificate",
    );

    // SCRAM inside TLS binds to the server's certificate.
    let role = db.role("app", "secret").await;
    let proxy = proxy()
        .secret(&role, "secret")
        .set("target.tls", "require")
        .start()
        .await;
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&db.name, &role, "secret").await.unwrap();
    assert_eq!(wire.value("select current_user").await, role);
}
