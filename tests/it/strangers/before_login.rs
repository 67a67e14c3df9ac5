//! Bytes from somebody who has not proved anything.

use super::is_in_order;
use crate::support::wire::{Certificates, SSL_REQUEST};
use crate::support::{Database, PATIENCE, Proxy, ROLE, RawClient, database, frames, proxy};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

fn startup(db: &Database) -> Vec<u8> {
    frames::startup(&[("user", ROLE), ("database", &db.name)])
}

/// A packet of any code and body.
fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 8).unwrap();
    [&len.to_be_bytes()[..], &code.to_be_bytes(), body].concat()
}

/// What is answered until the connection is closed, which must happen.
async fn answer(proxy: &Proxy, bytes: &[u8], then_close: bool) -> Vec<u8> {
    let mut socket = TcpStream::connect(proxy.address).await.unwrap();
    // It may be closed before all is sent.
    let _ = socket.write_all(bytes).await;
    if then_close {
        let _ = socket.shutdown().await;
    }
    let mut answer = Vec::new();
    let end = timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
    assert!(
        end.is_ok(),
        "neither answered nor closed: {}",
        bytes[..bytes.len().min(80)].escape_ascii()
    );
    answer
}

/// Is told an SQLSTATE, in whole frames, and the connection is closed.
async fn is_refused(proxy: &Proxy, what: &str, bytes: &[u8], code: &str) {
    let mut client = RawClient::connect(proxy.address).await;
    client.try_send(bytes).await.unwrap();
    let told = client.rest().await;
    assert_eq!(frames::errors(&told), [code], "{what}: {told:?}");
}

/// Packets that are wrong, and the SQLSTATE each is told.
fn wrong_packets() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let long_name = "x".repeat(10 * 1024);
    vec![
        (
            "HTTP",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            "08P01",
        ),
        (
            "a huge length",
            b"\x7f\xff\xff\xff\0\x03\0\0user\0".to_vec(),
            "08P01",
        ),
        (
            "a negative length",
            b"\xff\xff\xff\xff\0\x03\0\0user\0".to_vec(),
            "08P01",
        ),
        ("a length of zero", b"\0\0\0\0\0\x03\0\0".to_vec(), "08P01"),
        (
            "a length without a code",
            b"\0\0\0\x04\0\x03\0\0".to_vec(),
            "08P01",
        ),
        ("no parameters", packet(0x3_0000, b""), "08P01"),
        ("no terminator", packet(0x3_0000, b"user\0app\0"), "08P01"),
        (
            "a name without a value",
            packet(0x3_0000, b"user\0\0"),
            "08P01",
        ),
        ("only NULs", packet(0x3_0000, &[0; 100]), "08P01"),
        (
            "bytes behind the terminator",
            packet(0x3_0000, b"user\0app\0\0more"),
            "08P01",
        ),
        ("no text", packet(0x3_0000, b"user\0\xff\xfe\0\0"), "08P01"),
        (
            "a user of 10 KB",
            frames::startup(&[("user", &long_name)]),
            "08P01",
        ),
        (
            "another protocol",
            packet(0x7fff_0000, b"user\0app\0\0"),
            "0A000",
        ),
        (
            "a cancel without a key",
            packet(80_877_102, b"\0\0\0\x01"),
            "08P01",
        ),
        (
            "a cancel with an endless key",
            packet(80_877_102, &[1; 300]),
            "08P01",
        ),
    ]
}

#[tokio::test]
async fn wrong_packets_are_refused_with_a_reason() {
    let db = database().await;
    let proxy = proxy().start().await;
    for (what, bytes, code) in wrong_packets() {
        is_refused(&proxy, what, &bytes, code).await;
        is_in_order(&proxy, &db, what).await;
    }
    // A name that just fits into a packet is cut, as PostgreSQL does, and nobody bears it.
    let long_name = "x".repeat(9 * 1024);
    let mut client = RawClient::connect(proxy.address).await;
    client.send(&frames::startup(&[("user", &long_name)])).await;
    let refused = client.finish_login("secret").await.unwrap();
    assert_eq!(refused.sqlstate(), "28P01", "{refused:?}");
    assert!(refused.body.len() < 300, "{refused:?}");
}

#[tokio::test]
async fn anything_cut_short_is_closed() {
    let db = database().await;
    let proxy = proxy().start().await;
    let whole = startup(&db);
    for len in 0..whole.len() {
        let told = answer(&proxy, &whole[..len], true).await;
        assert!(
            told.is_empty() || told[0] == b'E',
            "after {len} bytes: {told:?}"
        );
    }
    is_in_order(&proxy, &db, "startup packets cut short").await;
}

#[tokio::test]
async fn random_bytes_are_answered_by_an_error_or_a_close() {
    let db = database().await;
    let proxy = proxy().start().await;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..300 {
        let bytes: Vec<u8> = (0..round * 7 % 600 + 1)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 33) as u8
            })
            .collect();
        // A plausible beginning gets further.
        let bytes = match round % 3 {
            0 => bytes,
            1 => packet(0x3_0000, &bytes),
            _ => [packet(0x3_0002, b"user\0app\0\0"), bytes].concat(),
        };
        let told = answer(&proxy, &bytes, true).await;
        let known = told.first().is_none_or(|tag| b"ERvNS".contains(tag));
        assert!(known, "{}: {}", bytes.escape_ascii(), told.escape_ascii());
    }
    is_in_order(&proxy, &db, "random bytes").await;
}

#[tokio::test]
async fn wrong_answers_to_the_request_for_a_password() {
    let db = database().await;
    let role = db.role("app", "secret").await;
    let scram = |body: &[u8]| {
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        frames::message(b'p', &[b"SCRAM-SHA-256\0", &len[..], body].concat())
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a query instead", frames::query("select 1"), "08P01"),
        ("a huge length", b"p\x7f\xff\xff\xff".to_vec(), "08P01"),
        ("a negative length", b"p\xff\xff\xff\xff".to_vec(), "08P01"),
        (
            "a length of 20 KB",
            frames::message(b'p', &[b'x'; 20_000]),
            "08P01",
        ),
        ("nothing", frames::message(b'p', b""), "08P01"),
        (
            "another mechanism",
            frames::message(b'p', b"PLAIN\0\0\0\0\0"),
            "08P01",
        ),
        (
            "a binding nobody offered",
            scram(b"p=tls-unique,,n=,r=abc"),
            "08P01",
        ),
        ("no SCRAM", scram(b"\xff\xfe\0,,,,"), "08P01"),
        (
            "a name without end",
            frames::message(b'p', &[b'x'; 9000]),
            "08P01",
        ),
        (
            "a length that lies",
            frames::message(b'p', b"SCRAM-SHA-256\0\x7f\0\0\0n,,"),
            "08P01",
        ),
    ];
    let proxy = proxy()
        .secret(&role, "secret")
        .max_connections(1)
        .start()
        .await;
    for (what, bytes, code) in cases {
        let mut client = RawClient::connect(proxy.address).await;
        client
            .send(&frames::startup(&[("user", &role), ("database", &db.name)]))
            .await;
        assert_eq!(client.frame().await.tag, b'R');
        client.send(&bytes).await;
        let told = client.rest().await;
        assert_eq!(frames::errors(&told), [code], "{what}: {told:?}");
    }
    is_in_order(&proxy, &db, "wrong answers").await;
}

#[tokio::test]
async fn a_cancel_with_a_random_key_is_closed_without_a_word() {
    let db = database().await;
    let proxy = proxy().start().await;
    let mut busy = proxy.raw(&db).await;
    busy.query("begin").await;
    for round in 0..200_u32 {
        let key = round.wrapping_mul(2_654_435_761);
        let secret = [key.to_be_bytes().as_slice(), &[round as u8; 28]].concat();
        let len = if round % 2 == 0 { 4 } else { 32 };
        // The right process id half of the time.
        let pid = if round % 4 < 2 { busy.key.pid } else { key };
        let told = answer(&proxy, &frames::cancel_request(pid, &secret[..len]), false).await;
        assert!(told.is_empty(), "{told:?}");
    }
    assert_eq!(busy.value("select 1").await, "1");
    is_in_order(&proxy, &db, "cancels with random keys").await;
}

#[tokio::test]
async fn nobody_stays_beyond_the_login_deadline() {
    let db = database().await;
    let role = db.role("app", "secret").await;
    let certificates = Certificates::new(&["localhost"]);
    let proxy = proxy()
        .secret(&role, "secret")
        .file("server.crt", certificates.certificate.as_str())
        .file("server.key", certificates.key.as_str())
        .set("listen.tls_certificate_file", "server.crt")
        .set("listen.tls_private_key_file", "server.key")
        .set("listen.login_timeout", "1s")
        .start()
        .await;
    let startup = frames::startup(&[("user", &role), ("database", &db.name)]);
    let kinds: [&[u8]; 6] = [
        b"",
        b"\0\0",
        &startup[..20],
        &startup,
        SSL_REQUEST,
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc",
    ];
    for bytes in kinds {
        let begin = Instant::now();
        answer(&proxy, bytes, false).await;
        let took = begin.elapsed();
        let what = bytes.escape_ascii();
        assert!(
            took >= Duration::from_millis(900),
            "closed after {took:?}: {what}"
        );
        assert!(
            took < Duration::from_secs(5),
            "closed only after {took:?}: {what}"
        );
    }
    // One byte now and then is no excuse.
    let mut socket = TcpStream::connect(proxy.address).await.unwrap();
    let begin = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    for byte in &startup {
        pace.tick().await;
        if socket.write_all(&[*byte]).await.is_err() {
            break;
        }
    }
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "let drip for {:?}",
        begin.elapsed()
    );
    let metrics = proxy.metrics().await;
    let setup = "pgsluice_client_connections_setup_total";
    let count = metrics.sum(setup, &[("result", "failed_timeout")]);
    assert_eq!(count, 7.0, "{}", metrics.text);
    is_in_order(&proxy, &db, "late logins").await;
}
