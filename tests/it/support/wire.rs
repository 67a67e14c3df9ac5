//! A client on any kind of stream (TCP, TLS, Unix socket) that can answer every kind of authentication, and keeps the
//! bytes it was sent.

use super::frames::{self, Frame};
use super::wait::in_time;
use bytes::{Buf, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use ring::digest::{SHA256, digest};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// SSLRequest.
pub const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";

/// GSSENCRequest.
pub const GSS_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x30";

const SCRAM: &str = "SCRAM-SHA-256";
const SCRAM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// An authority and a certificate it has signed, PEM.
pub struct Certificates {
    /// The authority's certificate.
    pub ca: String,
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// The certificate, DER.
    pub der: Vec<u8>,
}

impl Certificates {
    /// A certificate for these names and addresses.
    pub fn new(names: &[&str]) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate whose issuer has its own name for a self-signed one.
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "an authority");
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(params, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let params = rcgen::CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Self {
            ca: ca.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().to_vec(),
        }
    }

    fn client(&self, alpn: &[&str]) -> TlsConnector {
        use rustls::pki_types::pem::PemObject;
        let mut roots = RootCertStore::empty();
        let ca = rustls::pki_types::CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    /// TLS on a connection, as a client that expects `localhost` there.
    pub async fn encrypt(&self, socket: TcpStream, alpn: &[&str]) -> io::Result<Wire> {
        let name = ServerName::try_from("localhost").unwrap();
        let handshake = self.client(alpn).connect(name, socket);
        let stream = in_time("the TLS handshake", handshake).await?;
        let mut wire = Wire::new(stream);
        wire.binding = Some(digest(&SHA256, &self.der).as_ref().to_vec());
        Ok(wire)
    }

    /// A connection encrypted after an SSLRequest.
    pub async fn connect(&self, address: SocketAddr) -> Wire {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(SSL_REQUEST).await.unwrap();
        let answer = in_time("the answer to SSLRequest", socket.read_u8()).await;
        assert_eq!(answer.unwrap(), b'S');
        self.encrypt(socket, &[]).await.unwrap()
    }
}

/// Something to read from and write to.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The client.
pub struct Wire {
    stream: Box<dyn Stream>,
    read: BytesMut,
    /// Every frame it was sent.
    pub seen: Vec<Frame>,
    /// Every answer it gave to a request for authentication.
    pub answers: Vec<Vec<u8>>,
    /// The hash of the server's certificate, if it is to be used for channel binding.
    pub binding: Option<Vec<u8>>,
}

impl Wire {
    /// A client on a stream.
    pub fn new(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            read: BytesMut::new(),
            seen: Vec::new(),
            answers: Vec::new(),
            binding: None,
        }
    }

    /// By TCP, in the clear.
    pub async fn tcp(address: SocketAddr) -> Self {
        let connecting = in_time("connecting", TcpStream::connect(address));
        Self::new(connecting.await.unwrap())
    }

    /// By a Unix socket.
    pub async fn unix(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).await.unwrap())
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.unwrap();
    }

    /// Sends bytes, unless the other side has gone.
    pub async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sending = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        in_time("sending", sending).await
    }

    /// A byte that is no frame.
    pub async fn byte(&mut self) -> u8 {
        in_time("a byte", self.stream.read_u8()).await.unwrap()
    }

    /// The next frame; `None` at the end, however it comes.
    pub async fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = take_frame(&mut self.read) {
                self.seen.push(frame.clone());
                return Some(frame);
            }
            let reading = self.stream.read_buf(&mut self.read);
            match in_time("a frame", reading).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next frame, which must come.
    pub async fn frame(&mut self) -> Frame {
        self.next_frame().await.expect("the connection has ended")
    }

    /// Frames up to the end.
    pub async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next_frame().await {
            frames.push(frame);
        }
        frames
    }

    /// A simple query's answer.
    pub async fn query(&mut self, sql: &str) -> Vec<Frame> {
        self.send(&frames::query(sql)).await;
        let mut frames = vec![self.frame().await];
        while frames.last().is_some_and(|frame| frame.tag != b'Z') {
            frames.push(self.frame().await);
        }
        frames
    }

    /// The first value of its first row.
    pub async fn value(&mut self, sql: &str) -> String {
        frames::column(&self.query(sql).await).swap_remove(0)
    }

    /// A login: the frames after authentication up to ReadyForQuery, or the error that ends it.
    pub async fn log_in(
        &mut self,
        database: &str,
        role: &str,
        password: &str,
    ) -> Result<Vec<Frame>, Frame> {
        let who = [("user", role), ("database", database)];
        self.send(&frames::startup(&who)).await;
        self.finish_login(role, password).await
    }

    /// What follows a startup message.
    pub async fn finish_login(&mut self, role: &str, password: &str) -> Result<Vec<Frame>, Frame> {
        let (mut scram, mut welcome) = (None, Vec::new());
        loop {
            let Some(frame) = self.next_frame().await else {
                panic!("closed without a word, after {:?}", self.seen);
            };
            if frame.tag == b'R' {
                if let Some(answer) = self.answer(&frame, role, password, &mut scram) {
                    self.answers.push(answer.clone());
                    // It may have been refused meanwhile.
                    let _ = self.try_send(&frames::message(b'p', &answer)).await;
                }
                continue;
            }
            let tag = frame.tag;
            if tag == b'E' {
                return Err(frame);
            }
            welcome.push(frame);
            if tag == b'Z' {
                return Ok(welcome);
            }
        }
    }

    fn answer(
        &self,
        request: &Frame,
        role: &str,
        password: &str,
        scram: &mut Option<ScramSha256>,
    ) -> Option<Vec<u8>> {
        let rest = &request.body[4..];
        match request.body.clone().get_u32() {
            0 | 12 => None,
            3 => Some([password.as_bytes(), b"\0"].concat()),
            5 => {
                let salt = rest.try_into().unwrap();
                let hash = md5_hash(role.as_bytes(), password.as_bytes(), salt);
                Some([hash.as_bytes(), b"\0"].concat())
            }
            10 => {
                let offered: Vec<_> = rest.split(|&byte| byte == 0).collect();
                let plus = self
                    .binding
                    .clone()
                    .filter(|_| offered.contains(&SCRAM_PLUS.as_bytes()));
                let (name, binding) = match plus {
                    Some(hash) => (SCRAM_PLUS, ChannelBinding::tls_server_end_point(hash)),
                    None => (SCRAM, ChannelBinding::unsupported()),
                };
                let exchange = ScramSha256::new(password.as_bytes(), binding);
                let first = exchange.message();
                let len = u32::try_from(first.len()).unwrap().to_be_bytes();
                let answer = [name.as_bytes(), b"\0", &len, first].concat();
                *scram = Some(exchange);
                Some(answer)
            }
            11 => {
                let exchange = scram.as_mut().unwrap();
                exchange.update(rest).unwrap();
                Some(exchange.message().to_vec())
            }
            other => panic!("authentication {other}"),
        }
    }
}

fn take_frame(read: &mut BytesMut) -> Option<Frame> {
    let header = read.first_chunk::<5>()?;
    let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if read.len() < len + 1 {
        return None;
    }
    let mut frame = read.split_to(len + 1);
    let tag = frame.get_u8();
    frame.advance(4);
    Some(Frame {
        tag,
        body: frame.freeze(),
    })
}
