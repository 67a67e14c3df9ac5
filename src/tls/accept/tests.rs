use super::testing::{Certificate, tcp_pair};
use super::*;
use crate::config::{SslMode, TargetTls};
use crate::tls::connect::Connector;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn ecdsa() -> Certificate {
    Certificate::new(&rcgen::PKCS_ECDSA_P256_SHA256)
}

#[tokio::test]
async fn both_sides_talk_with_and_without_alpn() {
    let certificate = ecdsa();
    for alpn in [&[][..], &["postgresql"]] {
        let (client, server) = tcp_pair().await;
        let acceptor = certificate.acceptor();
        let accept = acceptor.accept(Socket::Tcp(server));
        let (client, server) = tokio::join!(certificate.connect(client, alpn), accept);
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        client.write_all(b"hello").await.unwrap();
        client.flush().await.unwrap();
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");
        assert!(server.is_tls());
    }
}

#[tokio::test]
async fn direct_tls_needs_alpn_and_another_protocol_is_refused_either_way() {
    let certificate = ecdsa();
    for (alpn, direct, plain) in [
        (&[][..], false, true),
        (&["postgresql"], true, true),
        (&["http/1.1"], false, false),
    ] {
        let acceptor = certificate.acceptor();
        let (client, server) = tcp_pair().await;
        let accept = acceptor.accept_direct(Socket::Tcp(server));
        let (_client, server) = tokio::join!(certificate.connect(client, alpn), accept);
        assert_eq!(server.is_ok(), direct, "{alpn:?} direct");
        let (client, server) = tcp_pair().await;
        let accept = acceptor.accept(Socket::Tcp(server));
        let (_client, server) = tokio::join!(certificate.connect(client, alpn), accept);
        assert_eq!(server.is_ok(), plain, "{alpn:?} after SSLRequest");
    }
}

#[test]
fn the_leaf_is_kept_to_the_byte() {
    let certificate = ecdsa();
    assert_eq!(certificate.acceptor().leaf(), &certificate.der[..]);
}

#[test]
fn errors_name_the_file_and_never_its_content() {
    let (good, other) = (ecdsa(), ecdsa());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let certificate = good.files.certificate_file.clone();
    let key = good.files.private_key_file.clone();
    let missing = folder.path().join("missing");
    let secret = "-----BEGIN PRIVATE KEY-----\nhunter2!\n-----END PRIVATE KEY-----\n";
    let cases = [
        (missing.clone(), key.clone(), "cannot read", "missing"),
        (certificate.clone(), missing, "cannot read", "missing"),
        (
            file("empty.crt", ""),
            key.clone(),
            "no valid PEM certificate",
            "empty.crt",
        ),
        (
            file("bad.crt", secret),
            key.clone(),
            "no valid PEM certificate",
            "bad.crt",
        ),
        (
            certificate.clone(),
            file("empty.key", ""),
            "no valid PEM private key",
            "empty.key",
        ),
        (
            certificate.clone(),
            file("bad.key", secret),
            "no valid PEM private key",
            "bad.key",
        ),
        (
            certificate.clone(),
            file("cut.key", "-----BEGIN hunter2"),
            "private key",
            "cut.key",
        ),
        (
            certificate,
            other.files.private_key_file.clone(),
            "cannot be used together",
            "server.key",
        ),
    ];
    for (certificate_file, private_key_file, what, name) in cases {
        let files = ServerTls {
            certificate_file,
            private_key_file,
        };
        let own = Connector::load(&TargetTls {
            mode: SslMode::Require,
            ca_file: None,
            client: Some(files.clone()),
        })
        .unwrap_err();
        assert!(!format!("{own:?}{own}").contains("hunter2"), "{own:?}");
        let error = Acceptor::load(&files).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(what) && text.contains(name), "{text}");
        assert!(!format!("{error:?}{text}").contains("hunter2"), "{error:?}");
    }
}
