use super::*;
use crate::tls::accept::testing::{Certificate, tcp_pair};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};

const SSL: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
const GSS: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 48];
const CANCEL: &[u8] = &[0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 7, 1, 2, 3, 4];
const LOGIN: &[u8] = b"\0\0\0\x12\0\x03\0\0user\0ann\0\0";
const LOGIN_3_9999: &[u8] = b"\0\0\0\x1c\0\x03\x27\x0fuser\0ann\0_pq_.x\0on\0\0";

fn certificate() -> Certificate {
    Certificate::new(&rcgen::PKCS_ECDSA_P256_SHA256)
}

/// Greets a TCP client that sends all of `bytes` and then closes its side; gives what it made of that and what it said.
async fn greeted(
    bytes: &[u8],
    tls: Option<&Acceptor>,
    require_tls: bool,
) -> (Result<Greeting, HandshakeError>, Vec<u8>) {
    let (mut client, server) = tcp_pair().await;
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    let mut result = greet(Socket::Tcp(server), tls, require_tls).await;
    close(&mut result).await;
    let mut said = Vec::new();
    let _ = client.read_to_end(&mut said).await;
    (result, said)
}

async fn close(result: &mut Result<Greeting, HandshakeError>) {
    if let Ok(Greeting::Startup { stream, .. } | Greeting::Cancel { stream, .. })
    | Err(HandshakeError::Refused { stream, .. }) = result
    {
        let _ = stream.shutdown().await;
    }
}

fn refusal(result: Result<Greeting, HandshakeError>) -> Refusal {
    match result {
        Err(HandshakeError::Refused { refusal, .. }) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn plain_clients_are_read_and_encryption_politely_declined() {
    let cases: &[(&[&[u8]], &[u8])] = &[
        (&[LOGIN], b""),
        (&[SSL, LOGIN], b"N"),
        (&[GSS, LOGIN], b"N"),
        (&[GSS, SSL, LOGIN], b"NN"),
    ];
    for (packets, expected) in cases {
        let (mut client, server) = tcp_pair().await;
        let talk = async {
            let (last, requests) = packets.split_last().unwrap();
            let mut said = Vec::new();
            for packet in requests {
                client.write_all(packet).await.unwrap();
                said.push(client.read_u8().await.unwrap());
            }
            client.write_all(last).await.unwrap();
            said
        };
        let (said, result) = tokio::join!(talk, greet(Socket::Tcp(server), None, false));
        assert_eq!(&said[..], *expected);
        let Ok(Greeting::Startup {
            startup,
            stream,
            buf,
            direct_tls,
        }) = result
        else {
            panic!("{result:?}")
        };
        assert_eq!(startup.user.as_str(), "ann");
        assert!(!stream.is_tls() && !direct_tls && buf.is_empty());
    }
}

#[tokio::test]
async fn a_login_split_anywhere_is_read() {
    for split in 0..LOGIN.len() {
        let (mut client, server) = tcp_pair().await;
        client.set_nodelay(true).unwrap();
        let send = async {
            client.write_all(&LOGIN[..split]).await.unwrap();
            tokio::task::yield_now().await;
            client.write_all(&LOGIN[split..]).await.unwrap();
        };
        let ((), result) = tokio::join!(send, greet(Socket::Tcp(server), None, false));
        assert!(
            matches!(result, Ok(Greeting::Startup { .. })),
            "{split}: {result:?}"
        );
    }
}

#[tokio::test]
async fn a_login_cut_short_is_gone_or_broken() {
    for len in 0..LOGIN.len() {
        let (result, said) = greeted(&LOGIN[..len], None, false).await;
        assert!(said.is_empty());
        match result {
            Ok(Greeting::Gone) => assert_eq!(len, 0),
            Err(HandshakeError::Broken(_)) => assert_ne!(len, 0),
            other => panic!("{len}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_on_hearing_no_is_gone() {
    let (result, said) = greeted(SSL, None, false).await;
    assert!(matches!(result, Ok(Greeting::Gone)));
    assert_eq!(said, b"N");
}

#[tokio::test]
async fn bytes_sent_with_an_encryption_request_are_refused() {
    let certificate = certificate();
    let acceptor = certificate.acceptor();
    for tls in [None, Some(&acceptor)] {
        let (result, said) = greeted(&[SSL, LOGIN].concat(), tls, false).await;
        assert_eq!(refusal(result), Refusal::DataAfterSslRequest);
        assert!(said.is_empty());
        let (result, _) = greeted(&[SSL, b"\0"].concat(), tls, false).await;
        assert_eq!(refusal(result), Refusal::DataAfterSslRequest);
        let (result, _) = greeted(&[GSS, SSL].concat(), tls, false).await;
        assert_eq!(refusal(result), Refusal::DataAfterGssRequest);
    }
}

#[tokio::test]
async fn encryption_may_be_asked_for_once() {
    for (request, minor) in [(SSL, 5679), (GSS, 5680)] {
        let (mut client, server) = tcp_pair().await;
        let talk = async {
            client.write_all(request).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'N');
            client.write_all(request).await.unwrap();
        };
        let ((), result) = tokio::join!(talk, greet(Socket::Tcp(server), None, false));
        let expected = StartupError::UnsupportedProtocol { major: 1234, minor };
        assert_eq!(refusal(result), Refusal::Packet(expected));
    }
}

#[tokio::test]
async fn garbage_is_refused_and_the_client_can_be_told() {
    let inputs: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 64],
        &[0; 64],
        &[0, 0, 0x27, 0x15],
    ];
    for input in inputs {
        let (result, _) = greeted(input, None, false).await;
        assert_eq!(
            refusal(result),
            Refusal::Packet(StartupError::InvalidLength)
        );
    }
}

#[tokio::test]
async fn require_tls_binds_logins_over_tcp_alone() {
    let certificate = certificate();
    let acceptor = certificate.acceptor();
    let (result, _) = greeted(LOGIN, Some(&acceptor), true).await;
    let refusal = refusal(result);
    assert_eq!(refusal, Refusal::TlsRequired);
    assert_eq!(refusal.sqlstate(), SqlState::INVALID_AUTHORIZATION);
    let (result, _) = greeted(CANCEL, Some(&acceptor), true).await;
    assert!(matches!(result, Ok(Greeting::Cancel { .. })));

    let (mut client, server) = UnixStream::pair().unwrap();
    client.write_all(LOGIN).await.unwrap();
    let result = greet(Socket::Unix(server), Some(&acceptor), true).await;
    assert!(matches!(result, Ok(Greeting::Startup { .. })));
}

#[tokio::test]
async fn a_unix_socket_has_no_tls() {
    let certificate = certificate();
    let acceptor = certificate.acceptor();
    let (mut client, server) = UnixStream::pair().unwrap();
    let talk = async {
        client.write_all(SSL).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'N');
        client.write_all(LOGIN).await.unwrap();
    };
    let ((), result) = tokio::join!(talk, greet(Socket::Unix(server), Some(&acceptor), false));
    assert!(matches!(result, Ok(Greeting::Startup { .. })));
    let (mut client, server) = UnixStream::pair().unwrap();
    client.write_all(b"\x16\x03\x01\x02\0").await.unwrap();
    let result = greet(Socket::Unix(server), Some(&acceptor), false).await;
    assert_eq!(
        refusal(result),
        Refusal::Packet(StartupError::InvalidLength)
    );
}

/// A client that asks for TLS, gets it, and sends `packet` inside.
async fn inside_tls(
    certificate: &Certificate,
    direct: bool,
    packet: &[u8],
) -> (Result<Greeting, HandshakeError>, Vec<u8>) {
    let acceptor = certificate.acceptor();
    let (client, server) = tcp_pair().await;
    let talk = async {
        let mut client: TcpStream = client;
        if !direct {
            client.write_all(SSL).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'S');
        }
        let alpn: &[&str] = if direct { &["postgresql"] } else { &[] };
        let mut client = certificate.connect(client, alpn).await.unwrap();
        client.write_all(packet).await.unwrap();
        client.flush().await.unwrap();
        client
    };
    let (mut client, mut result) =
        tokio::join!(talk, greet(Socket::Tcp(server), Some(&acceptor), true));
    close(&mut result).await;
    let mut said = Vec::new();
    let _ = client.read_to_end(&mut said).await;
    (result, said)
}

#[tokio::test]
async fn logins_and_cancels_work_inside_tls_asked_for_or_direct() {
    let certificate = certificate();
    for direct in [false, true] {
        let (result, said) = inside_tls(&certificate, direct, &[LOGIN, b"more"].concat()).await;
        let Ok(Greeting::Startup {
            stream,
            buf,
            direct_tls,
            ..
        }) = result
        else {
            panic!("{result:?}")
        };
        assert!(stream.is_tls() && direct_tls == direct && buf == b"more"[..]);
        assert!(said.is_empty());
        let (result, _) = inside_tls(&certificate, direct, CANCEL).await;
        let Ok(Greeting::Cancel { request, .. }) = result else {
            panic!("{result:?}")
        };
        assert_eq!((request.pid, &request.secret[..]), (7, &[1, 2, 3, 4][..]));
    }
}

#[tokio::test]
async fn inside_negotiated_tls_nothing_is_left_to_negotiate() {
    let certificate = certificate();
    for (request, minor) in [(SSL, 5679), (GSS, 5680)] {
        let (result, _) = inside_tls(&certificate, false, request).await;
        let expected = StartupError::UnsupportedProtocol { major: 1234, minor };
        assert_eq!(refusal(result), Refusal::Packet(expected));
    }
}

#[tokio::test]
async fn direct_tls_without_alpn_or_certificate_is_closed() {
    let certificate = certificate();
    let acceptor = certificate.acceptor();
    let (client, server) = tcp_pair().await;
    let connect = certificate.connect(client, &[]);
    let (_client, result) =
        tokio::join!(connect, greet(Socket::Tcp(server), Some(&acceptor), false));
    assert!(matches!(result, Err(HandshakeError::Tls(_))), "{result:?}");
    let (result, _) = greeted(b"\x16\x03\x01", None, false).await;
    assert!(matches!(result, Err(HandshakeError::NoTls)), "{result:?}");
}

#[tokio::test]
async fn plaintext_instead_of_a_tls_handshake_is_not_taken_for_a_login() {
    let certificate = certificate();
    let acceptor = certificate.acceptor();
    let (mut client, server) = tcp_pair().await;
    let talk = async {
        client.write_all(SSL).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'S');
        client.write_all(LOGIN).await.unwrap();
    };
    let ((), result) = tokio::join!(talk, greet(Socket::Tcp(server), Some(&acceptor), false));
    assert!(matches!(result, Err(HandshakeError::Tls(_))), "{result:?}");
}

#[tokio::test]
async fn a_newer_protocol_is_told_what_it_gets() {
    let (result, said) = greeted(LOGIN_3_9999, None, false).await;
    assert!(matches!(result, Ok(Greeting::Startup { .. })));
    assert_eq!(said, b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0");
}

#[tokio::test]
async fn bytes_after_the_startup_packet_are_kept() {
    let (result, _) = greeted(&[LOGIN, b"p\0\0\0\x04"].concat(), None, false).await;
    let Ok(Greeting::Startup { buf, .. }) = result else {
        panic!("{result:?}")
    };
    assert_eq!(buf, &b"p\0\0\0\x04"[..]);
}
