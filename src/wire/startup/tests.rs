use super::*;
use bytes::BufMut;

fn packet(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u32(body.len() as u32 + 4);
    bytes.put_slice(body);
    bytes
}

fn startup_packet(minor: u16, list: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 3];
    body.put_u16(minor);
    body.put_slice(list);
    packet(&body)
}

fn request(code: u16, rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_u16(1234);
    body.put_u16(code);
    body.put_slice(rest);
    packet(&body)
}

fn take(bytes: &[u8]) -> Result<Option<Packet>, StartupError> {
    take_packet(&mut BytesMut::from(bytes))
}

fn startup_of(bytes: &[u8]) -> Startup {
    match take(bytes) {
        Ok(Some(Packet::Startup(startup))) => startup,
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_are_told_apart() {
    let cancel = |secret: &[u8]| CancelRequest {
        pid: 0x0102_0304,
        secret: secret.to_vec(),
    };
    let cases = [
        (request(5679, b""), Ok(Some(Packet::SslRequest))),
        (request(5680, b""), Ok(Some(Packet::GssEncRequest))),
        (
            request(5678, b"\x01\x02\x03\x04key!"),
            Ok(Some(Packet::Cancel(cancel(b"key!")))),
        ),
        (
            request(5678, &[&[1, 2, 3, 4][..], &[7; 256]].concat()),
            Ok(Some(Packet::Cancel(cancel(&[7; 256])))),
        ),
        (
            request(5678, b"\x01\x02\x03\x04"),
            Err(StartupError::InvalidCancelKeyLength),
        ),
        (
            request(5678, b"\x01\x02\x03\x04key"),
            Err(StartupError::InvalidCancelKeyLength),
        ),
        (
            request(5678, &[&[1, 2, 3, 4][..], &[7; 257]].concat()),
            Err(StartupError::InvalidCancelKeyLength),
        ),
        (request(5678, b"\x01\x02"), Err(StartupError::InvalidLength)),
        (
            request(9, b""),
            Err(StartupError::UnsupportedProtocol {
                major: 1234,
                minor: 9,
            }),
        ),
        (
            packet(&[0, 2, 0, 0]),
            Err(StartupError::UnsupportedProtocol { major: 2, minor: 0 }),
        ),
        (
            packet(&[0, 4, 0, 1]),
            Err(StartupError::UnsupportedProtocol { major: 4, minor: 1 }),
        ),
        (vec![0, 0, 0, 7, 0, 0, 0], Err(StartupError::InvalidLength)),
        (vec![0, 0, 0, 0], Err(StartupError::InvalidLength)),
        (vec![0xff; 4], Err(StartupError::InvalidLength)),
        (
            b"GET / HTTP/1.1\r\n".to_vec(),
            Err(StartupError::InvalidLength),
        ),
        (
            b"\x16\x03\x01\x02\x00".to_vec(),
            Err(StartupError::InvalidLength),
        ),
        (
            10_005u32.to_be_bytes().to_vec(),
            Err(StartupError::InvalidLength),
        ),
        (10_004u32.to_be_bytes().to_vec(), Ok(None)),
    ];
    for (bytes, expected) in cases {
        assert_eq!(take(&bytes), expected, "{bytes:?}");
    }
}

#[test]
fn a_startup_message_is_read() {
    let startup = startup_of(&startup_packet(
        2,
        b"user\0ann\0database\0shop\0application_name\0psql\0\0",
    ));
    assert_eq!(startup.version, ProtocolVersion { major: 3, minor: 2 });
    assert!(startup.version.has_long_cancel_keys());
    assert!(!startup.needs_negotiation());
    assert_eq!(
        (startup.user.as_str(), startup.database.as_str()),
        ("ann", "shop")
    );
    assert_eq!(
        startup.parameters,
        [("application_name".into(), "psql".into())]
    );
}

#[test]
fn the_database_defaults_to_the_user_and_the_last_of_a_name_wins() {
    let startup = startup_of(&startup_packet(
        0,
        b"user\0ann\0user\0bob\0a\x001\0options\0-c a=3 -c c=4 -c b=5\0A\x002\0b\x006\0\0",
    ));
    assert_eq!(
        (startup.user.as_str(), startup.database.as_str()),
        ("bob", "bob")
    );
    // options first, the packet's own over them, as PostgreSQL applies them
    let expected = [("c", "4"), ("A", "2"), ("b", "6")].map(|(n, v)| (n.into(), v.into()));
    assert_eq!(startup.parameters, expected);
}

#[test]
fn newer_minors_and_unknown_options_are_negotiated() {
    // requested minor, agreed minor, negotiation, long cancel keys
    let cases = [
        (0, 0, false, false),
        (1, 1, false, false),
        (2, 2, false, true),
        (3, 2, true, true),
        (9999, 2, true, true),
    ];
    for (requested, agreed, negotiation, long_keys) in cases {
        let startup = startup_of(&startup_packet(requested, b"user\0ann\0\0"));
        assert_eq!(startup.version.minor, agreed);
        assert_eq!(startup.needs_negotiation(), negotiation, "3.{requested}");
        assert_eq!(
            startup.version.has_long_cancel_keys(),
            long_keys,
            "3.{requested}"
        );
    }
    let startup = startup_of(&startup_packet(0, b"user\0ann\0_pq_.zip\0on\0\0"));
    assert_eq!(startup.unknown_pq_options, ["_pq_.zip"]);
    assert!(startup.needs_negotiation());
    assert!(startup.parameters.is_empty());
}

#[test]
fn bad_startup_messages_are_refused() {
    let unsupported = OptionsError::Unsupported("-F".into());
    let cases: &[(&[u8], StartupError)] = &[
        (b"", StartupError::MissingTerminator),
        (b"user\0ann\0", StartupError::MissingTerminator),
        (b"user\0ann", StartupError::MissingTerminator),
        (b"user\0ann\0\0\0", StartupError::MissingTerminator),
        (b"user\0ann\0lonely\0\0", StartupError::MissingTerminator),
        (b"user\0\xff\xfe\0\0", StartupError::NotUtf8),
        (b"\xff\0x\0\0", StartupError::NotUtf8),
        (b"\0", StartupError::NoUser),
        (b"user\0\0\0", StartupError::NoUser),
        (b"database\0shop\0\0", StartupError::NoUser),
        (
            b"user\0ann\0options\0-F\0\0",
            StartupError::Options(unsupported),
        ),
        (
            b"user\0ann\0replication\0database\0\0",
            StartupError::Replication,
        ),
        (b"user\0ann\0replication\0ON\0\0", StartupError::Replication),
        (
            b"user\0ann\0replication\0o\0\0",
            StartupError::ReplicationValue,
        ),
        (
            b"user\0ann\0replication\0\0\0",
            StartupError::ReplicationValue,
        ),
    ];
    for (list, expected) in cases {
        assert_eq!(
            &take(&startup_packet(0, list)).unwrap_err(),
            expected,
            "{list:?}"
        );
    }
}

#[test]
fn replication_switched_off_is_an_ordinary_login() {
    for value in ["0", "f", "false", "no", "off", "FALSE"] {
        let list = format!("user\0ann\0replication\0{value}\0\0");
        assert!(
            startup_of(&startup_packet(0, list.as_bytes()))
                .parameters
                .is_empty()
        );
    }
    for value in ["1", "t", "true", "y", "yes", "on", "True"] {
        assert_eq!(parse_bool(value), Some(true), "{value}");
    }
}

#[test]
fn long_names_are_cut_between_characters() {
    let list = format!(
        "user\0{}\0database\0x{}\0\0",
        "a".repeat(5000),
        "é".repeat(40)
    );
    let startup = startup_of(&startup_packet(0, list.as_bytes()));
    assert_eq!(startup.user.as_str(), "a".repeat(63));
    assert_eq!(startup.database.as_str(), format!("x{}", "é".repeat(31)));
}

#[tokio::test]
async fn packets_split_anywhere_are_read_whole_and_the_rest_is_kept() {
    let bytes = [
        request(5679, b""),
        startup_packet(2, b"user\0ann\0\0"),
        b"pX".to_vec(),
    ]
    .concat();
    for split in 0..=bytes.len() {
        let mut stream = AsyncReadExt::chain(&bytes[..split], &bytes[split..]);
        let mut buf = BytesMut::new();
        let first = read_packet(&mut stream, &mut buf).await.unwrap();
        assert_eq!(first, Some(Packet::SslRequest));
        let second = read_packet(&mut stream, &mut buf).await.unwrap();
        assert!(matches!(second, Some(Packet::Startup(_))));
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    }
}

#[tokio::test]
async fn every_truncation_is_an_end_or_a_break() {
    let bytes = startup_packet(2, b"user\0ann\0\0");
    for len in 0..bytes.len() {
        let result = read_packet(&mut &bytes[..len], &mut BytesMut::new()).await;
        match result {
            Ok(None) => assert_eq!(len, 0),
            Err(PacketError::Io(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
            other => panic!("{len}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_buffer_grows_with_what_arrives() {
    // Announces the most there may be, sends little.
    let bytes = [&10_004u32.to_be_bytes()[..], &[0, 3, 0, 0]].concat();
    let mut buf = BytesMut::new();
    assert!(read_packet(&mut &bytes[..], &mut buf).await.is_err());
    assert!(buf.capacity() <= 256, "{}", buf.capacity());
}

#[test]
fn a_cancel_key_is_not_printed() {
    let packet = take(&request(5678, b"\x01\x02\x03\x04SECR")).unwrap();
    let text = format!("{packet:?}");
    assert!(text.contains("***") && !text.contains("83"), "{text}");
}

#[test]
fn parameters_are_bounded_however_they_are_given() {
    let own = |count: usize| -> Vec<u8> {
        (0..count)
            .flat_map(|n| format!("p{n}\0x\0").into_bytes())
            .collect()
    };
    let pq = |count: usize| -> Vec<u8> {
        (0..count)
            .flat_map(|n| format!("_pq_.{n}\0x\0").into_bytes())
            .collect()
    };
    let options =
        |count: usize| [&b"options\0"[..], "-ca=b ".repeat(count).as_bytes(), b"\0"].concat();
    let login = |more: &[u8]| take(&startup_packet(0, &[b"user\0ann\0", more, b"\0"].concat()));
    for parameters in [own, pq, options] {
        assert!(login(&parameters(PARAMETERS_MAX)).is_ok());
        let refused = login(&parameters(PARAMETERS_MAX + 1));
        assert_eq!(refused, Err(StartupError::TooManyParameters));
    }
}
