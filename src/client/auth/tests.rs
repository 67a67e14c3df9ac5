use super::*;
use crate::tls::accept::testing::Certificate;
use crate::wire::frame::Frame;
use bytes::{Buf, BufMut};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use ring::digest;
use tokio::io::DuplexStream;

const PASSWORD: &str = "pencil";

/// The server's side of a test: what it checks against.
struct Case<'a> {
    method: AuthMethod,
    trusted: bool,
    password: Option<&'a str>,
    channel: Channel<'a>,
}

impl Case<'_> {
    fn new(method: AuthMethod) -> Self {
        Case {
            method,
            trusted: false,
            password: Some(PASSWORD),
            channel: Channel::Local,
        }
    }

    /// Runs both sides; gives the verdict and what the client returned.
    async fn run<T>(
        &self,
        client: impl AsyncFnOnce(&mut Client) -> T,
    ) -> (Result<Identity, AuthError>, T) {
        let (near, mut far) = tokio::io::duplex(64);
        let secrets = ClientSecrets::new();
        let user = Role::new("ann");
        let password = self.password.map(|text| Redacted::new(text.to_owned()));
        let login = Login {
            user: &user,
            method: self.method,
            trusted: self.trusted,
            password: password.as_ref(),
            secrets: &secrets,
            acceptor: None,
        };
        let mut buf = BytesMut::new();
        let talk = Talk {
            stream: &mut far,
            buf: &mut buf,
            out: BytesMut::new(),
        };
        let mut near = Client {
            stream: near,
            buf: BytesMut::new(),
        };
        let client = async {
            let outcome = client(&mut near).await;
            // Whoever waits for more hears that there is none.
            let _ = near.stream.shutdown().await;
            outcome
        };
        tokio::join!(talk.authenticate(&login, self.channel), client)
    }
}

struct Client {
    stream: DuplexStream,
    buf: BytesMut,
}

impl Client {
    /// The authentication request's number and what follows it.
    async fn request(&mut self) -> (u32, Bytes) {
        let Frame { tag, mut body } = read_frame(&mut self.stream, &mut self.buf, 10_000)
            .await
            .unwrap();
        assert_eq!(tag, b'R');
        (body.get_u32(), body)
    }

    async fn send(&mut self, tag: u8, body: &[u8]) {
        let mut out = BytesMut::new();
        out.put_u8(tag);
        out.put_u32(body.len() as u32 + 4);
        out.put_slice(body);
        let _ = self.stream.write_all(&out).await;
    }

    async fn password(&mut self, password: &str) {
        self.send(b'p', format!("{password}\0").as_bytes()).await;
    }

    async fn initial(&mut self, mechanism: &str, data: &[u8]) {
        let mut body = format!("{mechanism}\0").into_bytes();
        body.put_u32(data.len() as u32);
        body.put_slice(data);
        self.send(b'p', &body).await;
    }

    /// A whole SCRAM login up to the client's last message; gives the server-first message.
    async fn scram(&mut self, mechanism: &str, scram: &mut ScramSha256) -> Bytes {
        assert_eq!(self.request().await.0, 10);
        self.initial(mechanism, scram.message()).await;
        let (number, server_first) = self.request().await;
        assert_eq!(number, 11);
        scram.update(&server_first).unwrap();
        self.send(b'p', scram.message()).await;
        server_first
    }

    async fn expect_final_and_ok(&mut self, scram: &mut ScramSha256) {
        let (number, server_final) = self.request().await;
        assert_eq!(number, 12);
        scram.finish(&server_final).unwrap();
        assert_eq!(self.request().await, (0, Bytes::new()));
    }
}

fn scram(password: &str, binding: ChannelBinding) -> ScramSha256 {
    ScramSha256::new(password.as_bytes(), binding)
}

fn proof(verdict: Result<Identity, AuthError>) -> Proof {
    let identity = verdict.unwrap();
    assert_eq!(identity.role().as_str(), "ann");
    identity.proof()
}

fn refused(verdict: Result<Identity, AuthError>) -> (String, String) {
    let error = verdict.unwrap_err();
    assert!(error.can_be_answered());
    (error.sqlstate().to_string(), error.client_message())
}

fn wrong_password() -> (String, String) {
    (
        "28P01".into(),
        "password authentication failed for user \"ann\"".into(),
    )
}

#[tokio::test]
async fn scram_lets_the_right_password_in() {
    let case = Case::new(AuthMethod::ScramSha256);
    let (verdict, ()) = case
        .run(async |client| {
            let mut scram = scram(PASSWORD, ChannelBinding::unsupported());
            client.scram("SCRAM-SHA-256", &mut scram).await;
            client.expect_final_and_ok(&mut scram).await;
        })
        .await;
    assert_eq!(proof(verdict), Proof::ScramSha256);
}

#[tokio::test]
async fn scram_inside_tls_offers_binding_first_and_checks_it() {
    let certificate = Certificate::new(&rcgen::PKCS_ECDSA_P256_SHA256);
    let channel = Channel::Tls(Some(&certificate.der));
    let case = Case {
        channel,
        ..Case::new(AuthMethod::ScramSha256)
    };
    let right = digest::digest(&digest::SHA256, &certificate.der)
        .as_ref()
        .to_vec();
    let wrong = digest::digest(&digest::SHA256, b"another certificate")
        .as_ref()
        .to_vec();

    let (verdict, ()) = case
        .run(async |client| {
            let binding = ChannelBinding::tls_server_end_point(right);
            let mut scram = scram(PASSWORD, binding);
            client.scram("SCRAM-SHA-256-PLUS", &mut scram).await;
            client.expect_final_and_ok(&mut scram).await;
        })
        .await;
    assert_eq!(proof(verdict), Proof::ScramSha256Plus);

    let (verdict, ()) = case
        .run(async |client| {
            let mut scram = scram(PASSWORD, ChannelBinding::tls_server_end_point(wrong));
            client.scram("SCRAM-SHA-256-PLUS", &mut scram).await;
        })
        .await;
    let (code, text) = refused(verdict);
    assert_eq!(
        (&code[..], &text[..]),
        ("28000", "SCRAM channel binding check failed")
    );

    let (_, offer) = case.run(async |client| client.request().await.1).await;
    assert_eq!(offer, &b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"[..]);
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_role_look_the_same() {
    let mut shapes = Vec::new();
    for password in [Some("other"), Some(""), None] {
        let case = Case {
            password,
            ..Case::new(AuthMethod::ScramSha256)
        };
        let (verdict, server_first) = case
            .run(async |client| {
                let mut scram = scram(PASSWORD, ChannelBinding::unsupported());
                client.scram("SCRAM-SHA-256", &mut scram).await
            })
            .await;
        assert_eq!(refused(verdict), wrong_password());
        let text = String::from_utf8(server_first.to_vec()).unwrap();
        let lens: Vec<_> = text.split(',').map(str::len).collect();
        assert!(text.ends_with(",i=4096"));
        shapes.push(lens);
    }
    assert!(shapes.iter().all(|shape| shape == &shapes[0]), "{shapes:?}");
}

#[tokio::test]
async fn an_unknown_role_has_the_same_salt_every_time() {
    let (secrets, user) = (ClientSecrets::new(), Role::new("nobody"));
    let stand_in = secrets.stand_in_verifier(&user);
    let server = scram::Server::new(None);
    let salt = || {
        let begun = server.begin(Mechanism::Sha256, b"n,,n=,r=abc", &stand_in);
        let (server_first, _) = begun.unwrap();
        server_first.split(',').nth(1).unwrap().to_owned()
    };
    assert_eq!(salt(), salt());
}

#[tokio::test]
async fn md5_and_cleartext_tell_right_from_wrong() {
    for method in [AuthMethod::Md5, AuthMethod::Cleartext] {
        for (password, given, lets_in) in [
            (Some(PASSWORD), PASSWORD, true),
            (Some(PASSWORD), "other", false),
            (Some(PASSWORD), "pencil2", false),
            (Some(PASSWORD), "", false),
            (Some(""), "", false),
            (None, PASSWORD, false),
            (None, "", false),
        ] {
            let case = Case {
                password,
                ..Case::new(method)
            };
            let (verdict, ()) = case
                .run(async |client| {
                    let (number, salt) = client.request().await;
                    let answer = match number {
                        5 => md5_hash(b"ann", given.as_bytes(), salt[..].try_into().unwrap()),
                        3 => given.to_owned(),
                        other => panic!("{other}"),
                    };
                    client.password(&answer).await;
                    if lets_in {
                        assert_eq!(client.request().await, (0, Bytes::new()));
                    }
                })
                .await;
            let expected = if method == AuthMethod::Md5 {
                Proof::Md5
            } else {
                Proof::Cleartext
            };
            if lets_in {
                assert_eq!(proof(verdict), expected);
            } else {
                assert_eq!(refused(verdict), wrong_password(), "{password:?} {given:?}");
            }
        }
    }
}

#[tokio::test]
async fn no_two_md5_logins_have_the_same_salt() {
    let case = Case::new(AuthMethod::Md5);
    let (_, first) = case.run(async |client| client.request().await.1).await;
    let (_, second) = case.run(async |client| client.request().await.1).await;
    let (_, third) = case.run(async |client| client.request().await.1).await;
    assert!(first != second || second != third);
}

#[tokio::test]
async fn cleartext_is_never_asked_for_over_an_open_network() {
    let case = Case {
        channel: Channel::Open,
        ..Case::new(AuthMethod::Cleartext)
    };
    let (verdict, buf) = case
        .run(async |client| {
            client.stream.shutdown().await.unwrap();
            client.buf.clone()
        })
        .await;
    assert!(buf.is_empty());
    assert_eq!(refused(verdict).0, "28000");
    let case = Case {
        channel: Channel::Tls(None),
        ..Case::new(AuthMethod::Cleartext)
    };
    let (verdict, ()) = case
        .run(async |client| client.password(PASSWORD).await)
        .await;
    assert_eq!(proof(verdict), Proof::Cleartext);
}

#[tokio::test]
async fn a_trusted_role_is_asked_nothing() {
    let case = Case {
        trusted: true,
        ..Case::new(AuthMethod::ScramSha256)
    };
    let (verdict, request) = case.run(async |client| client.request().await).await;
    assert_eq!((proof(verdict), request), (Proof::Trust, (0, Bytes::new())));
}

#[tokio::test]
async fn a_trusted_role_without_a_secret_is_asked_like_one_nobody_knows() {
    let case = Case {
        trusted: true,
        password: None,
        ..Case::new(AuthMethod::Md5)
    };
    let (verdict, request) = case
        .run(async |client| {
            let (number, _) = client.request().await;
            client.password("md5whatever").await;
            number
        })
        .await;
    assert_eq!(request, 5);
    assert!(
        matches!(verdict, Err(AuthError::WrongPassword(_))),
        "{verdict:?}"
    );
}

#[tokio::test]
async fn a_scram_client_may_wait_to_be_asked_for_its_first_message() {
    let case = Case::new(AuthMethod::ScramSha256);
    let (verdict, ()) = case
        .run(async |client| {
            let mut scram = scram(PASSWORD, ChannelBinding::unsupported());
            client.request().await;
            client.send(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff").await;
            assert_eq!(client.request().await, (11, Bytes::new()));
            client.send(b'p', scram.message()).await;
            scram.update(&client.request().await.1).unwrap();
            client.send(b'p', scram.message()).await;
            client.expect_final_and_ok(&mut scram).await;
        })
        .await;
    assert_eq!(proof(verdict), Proof::ScramSha256);
}

#[tokio::test]
async fn what_is_no_answer_breaks_the_protocol() {
    let methods = [
        AuthMethod::ScramSha256,
        AuthMethod::Md5,
        AuthMethod::Cleartext,
    ];
    let inputs: &[(&[u8], &str)] = &[
        (
            b"Q\0\0\0\x09SEL\0\0",
            "expected password response, got message type 81",
        ),
        (
            b"X\0\0\0\x04",
            "expected password response, got message type 88",
        ),
        (b"p\0\0\0\x03", "invalid length of authentication response"),
        (
            b"p\xff\xff\xff\xff",
            "invalid length of authentication response",
        ),
        (
            b"p\0\0\x27\x15",
            "invalid length of authentication response",
        ),
        (b"p\0\0\0\x04", "malformed authentication response"),
        (b"p\0\0\0\x06xx", "malformed authentication response"),
    ];
    for method in methods {
        for (input, text) in inputs {
            let (verdict, ()) = Case::new(method)
                .run(async |client| client.stream.write_all(input).await.unwrap())
                .await;
            assert_eq!(
                refused(verdict),
                ("08P01".into(), (*text).into()),
                "{input:?}"
            );
        }
    }
    let scram_inputs: &[(&str, &[u8], &str)] = &[
        (
            "SCRAM-SHA-1",
            b"n,,n=,r=x",
            "client selected an invalid SASL authentication mechanism",
        ),
        (
            "SCRAM-SHA-256-PLUS",
            b"p=tls-server-end-point,,n=,r=x",
            "client selected an invalid SASL authentication mechanism",
        ),
        ("SCRAM-SHA-256", b"", "malformed SCRAM message"),
        ("SCRAM-SHA-256", b"n,,x", "malformed SCRAM message"),
    ];
    for (mechanism, data, text) in scram_inputs {
        let (verdict, ()) = Case::new(AuthMethod::ScramSha256)
            .run(async |client| client.initial(mechanism, data).await)
            .await;
        assert_eq!(refused(verdict), ("08P01".into(), (*text).into()));
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_not_answered() {
    for method in [
        AuthMethod::ScramSha256,
        AuthMethod::Md5,
        AuthMethod::Cleartext,
    ] {
        let (verdict, ()) = Case::new(method)
            .run(async |client| {
                client.request().await;
                client.stream.shutdown().await.unwrap();
            })
            .await;
        let error = verdict.unwrap_err();
        assert!(
            matches!(error, AuthError::Gone) && !error.can_be_answered(),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn errors_name_the_role_and_never_the_password() {
    let case = Case::new(AuthMethod::Cleartext);
    let (verdict, ()) = case
        .run(async |client| client.password("hunter2").await)
        .await;
    let text = format!("{verdict:?}");
    assert!(
        !text.contains("hunter2") && !text.contains(PASSWORD),
        "{text}"
    );
}
