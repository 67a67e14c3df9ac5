//! Servers that are away, silent, or no PostgreSQL: the client is told, in time; the proxy stays small and alive.

use crate::support::wire::Wire;
use crate::support::{PASSWORD, Proxy, ROLE, eventually, frames, free_port, in_time, proxy};
use futures_util::future::join_all;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// `target.connect_timeout`, and how soon after it a client must know.
const CONNECT_TIMEOUT: &str = "1s";
const TOLD_WITHIN: Duration = Duration::from_secs(6);

async fn proxy_before(port: u16) -> Proxy {
    proxy()
        .set("target.port", i64::from(port))
        .set("target.connect_timeout", CONNECT_TIMEOUT)
        .start()
        .await
}

/// The refusal of a login, which must come in time; the proxy lives on.
async fn refusal(proxy: &Proxy, what: &str) -> (String, String) {
    let begin = Instant::now();
    let mut wire = Wire::tcp(proxy.address).await;
    let refused = wire.log_in("any", ROLE, PASSWORD).await;
    let took = begin.elapsed();
    assert!(took < TOLD_WITHIN, "{what}: told after {took:?}");
    let refused = refused.expect_err(what);
    assert_eq!(in_time(what, proxy.http("/healthz")).await.0, 200);
    assert!(!proxy.log().contains("panicked"), "{what}");
    (refused.sqlstate(), refused.field(b'M').unwrap())
}

/// Counted as a failure, and nothing is held any more.
async fn nothing_is_left(proxy: &Proxy) {
    eventually("no connection is left", async || {
        proxy
            .metrics()
            .await
            .sum("pgsluice_database_connections", &[])
            == 0.0
    })
    .await;
    let metrics = proxy.metrics().await;
    assert_eq!(
        metrics.sum("pgsluice_target_up", &[]),
        0.0,
        "{}",
        metrics.text
    );
}

#[tokio::test]
async fn a_server_that_is_away() {
    let proxy = proxy_before(free_port()).await;
    let (code, text) = refusal(&proxy, "nobody listens").await;
    assert_eq!(code, "08006", "{text}");
    assert!(
        text.contains("could not connect to target \"primary\""),
        "{text}"
    );
    nothing_is_left(&proxy).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = proxy_before(listener.local_addr().unwrap().port()).await;
    let (code, text) = refusal(&proxy, "silence").await;
    assert_eq!(code, "08006", "{text}");
    assert!(text.contains("no answer within 1 s"), "{text}");
}

/// Answers the startup message with these bytes, again and again if so asked, and keeps the connection open.
async fn answer(mut socket: TcpStream, bytes: Vec<u8>, endless: bool) {
    let mut startup = [0; 512];
    let _ = socket.read(&mut startup).await;
    while socket.write_all(&bytes).await.is_ok() && endless {}
    // Until the proxy has had enough.
    while matches!(socket.read(&mut startup).await, Ok(count) if count > 0) {}
}

async fn server(bytes: Vec<u8>, endless: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(answer(socket, bytes.clone(), endless));
        }
    });
    port
}

fn authentication(kind: u32, rest: &[u8]) -> Vec<u8> {
    frames::message(b'R', &[&kind.to_be_bytes()[..], rest].concat())
}

#[tokio::test]
async fn a_server_that_is_no_postgresql() {
    let ok = authentication(0, b"");
    let cases = [
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("zeros", vec![0; 4096]),
        ("a huge message", b"R\x3f\xff\xff\xff\0\0\0\0".to_vec()),
        ("a negative length", b"R\xff\xff\xff\xff".to_vec()),
        ("no kind of authentication", frames::message(b'R', b"")),
        ("an unknown authentication", authentication(99, b"")),
        ("Kerberos", authentication(2, b"")),
        ("a short salt", authentication(5, b"x")),
        ("an unknown mechanism", authentication(10, b"PLAIN\0\0")),
        ("no mechanism", authentication(10, b"\0")),
        (
            "a challenge nobody asked for",
            authentication(11, b"r=x,s=eA==,i=1"),
        ),
        (
            "rows",
            [ok.clone(), frames::message(b'D', b"\0\0")].concat(),
        ),
        (
            "a status that is none",
            [ok.clone(), frames::message(b'Z', b"?")].concat(),
        ),
        ("half a key", [ok, frames::message(b'K', b"\0")].concat()),
    ];
    for (what, bytes) in cases {
        let proxy = proxy_before(server(bytes, false).await).await;
        let (code, text) = refusal(&proxy, what).await;
        assert!(code.starts_with("08"), "{what}: {code} {text}");
        nothing_is_left(&proxy).await;
    }
}

#[tokio::test]
async fn an_error_without_its_fields_is_still_one() {
    for body in [&b""[..], b"\0", b"C123\0\0", b"M\xff\xfe\0\0", b"SFATAL"] {
        let proxy = proxy_before(server(frames::message(b'E', body), false).await).await;
        let (code, text) = refusal(&proxy, "an error").await;
        assert_eq!(code, "XX000", "{text}");
    }
}

#[tokio::test]
async fn a_server_that_never_comes_to_an_end() {
    let ok = authentication(0, b"");
    let endless = [
        ("parameters", frames::message(b'S', b"name\0value\0")),
        (
            "notices",
            frames::message(b'N', &[b"Mx", &[b'x'; 4000][..], b"\0\0"].concat()),
        ),
        ("yes", ok),
    ];
    for (what, bytes) in endless {
        let proxy = proxy_before(server(bytes, true).await).await;
        let (code, text) = refusal(&proxy, what).await;
        assert!(code.starts_with("08"), "{what}: {code} {text}");
        let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
        let peak = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        let peak: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(peak < 100_000, "{what}: {peak} KB");
    }
}

/// Who waits while somebody else's connection fails is told as well, and as soon.
#[tokio::test]
async fn all_who_wait_for_a_bad_server_are_told() {
    let nonsense = authentication(10, b"PLAIN\0\0");
    for _ in 0..5 {
        for port in [free_port(), server(nonsense.clone(), false).await] {
            let proxy = proxy_before(port).await;
            let waiting = (0..8).map(|_| refusal(&proxy, "one of many"));
            for (code, text) in join_all(waiting).await {
                assert!(code.starts_with("08"), "{code} {text}");
            }
        }
    }
}

/// A server, or somebody in between, can't make the proxy compute for hours.
#[tokio::test]
async fn a_challenge_of_four_billion_rounds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = proxy_before(listener.local_addr().unwrap().port()).await;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut received = vec![0; 512];
            let _ = socket.read(&mut received).await;
            let _ = socket
                .write_all(&authentication(10, b"SCRAM-SHA-256\0\0"))
                .await;
            let len = socket.read(&mut received).await.unwrap_or(0);
            let first = String::from_utf8_lossy(&received[..len]).into_owned();
            let nonce = first.rsplit("r=").next().unwrap_or_default();
            let challenge = format!("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=4294967295");
            let _ = socket
                .write_all(&authentication(11, challenge.as_bytes()))
                .await;
            while matches!(socket.read(&mut received).await, Ok(count) if count > 0) {}
        }
    });
    for _ in 0..2 {
        let (code, text) = refusal(&proxy, "a challenge").await;
        assert!(code.starts_with("08"), "{code} {text}");
    }
    // It does not go on with the arithmetic, either.
    eventually("the proxy rests", async || {
        let before = cpu_ticks(&proxy);
        tokio::time::sleep(Duration::from_millis(200)).await;
        cpu_ticks(&proxy) - before < 5
    })
    .await;
}

/// Hundredths of a second that the proxy has computed.
fn cpu_ticks(proxy: &Proxy) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", proxy.pid())).unwrap();
    let numbers = stat.rsplit(')').next().unwrap().split_whitespace();
    numbers
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum()
}
