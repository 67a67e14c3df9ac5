//! The first packets of a connection: encryption asked for and answered, then a login or a cancel request.
//!
//! Bytes here come from strangers. What may be buffered for one is bounded by the longest startup packet; how long one
//! may take is the caller's deadline. Nothing received before TLS is taken for something received inside it
//! (CVE-2021-23222).

use crate::error::{ClientFacing, Fault, SqlState};
use crate::tls::accept::Acceptor;
use crate::tls::{Socket, Stream};
use crate::wire::encode;
use crate::wire::startup::{
    CancelRequest, Packet, PacketError, Startup, StartupError, read_packet,
};
use bytes::BytesMut;
use std::io;
use tokio::io::AsyncWriteExt;

/// The first byte of a TLS handshake record; as the first byte of a startup packet it would announce 350 MB.
const TLS_HANDSHAKE: u8 = 0x16;

/// Enough for most startup packets.
const BUFFER_LEN: usize = 256;

/// What the first packets amounted to.
#[derive(Debug)]
pub enum Greeting {
    /// Somebody wants to log in.
    Startup {
        /// The connection.
        stream: Stream,
        /// What was read beyond the startup packet.
        buf: BytesMut,
        /// What the client asked for.
        startup: Box<Startup>,
        /// The connection opened with TLS, without asking first.
        direct_tls: bool,
    },
    /// Somebody wants another connection's query cancelled.
    Cancel {
        /// The connection. No answer is due on it: its end tells the client that the cancel has been carried out.
        stream: Stream,
        /// Whose.
        request: CancelRequest,
    },
    /// Nobody there: connected and left, or left on hearing that there is no encryption.
    Gone,
}

/// Why a connection got no further.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It is refused, and the client can be told why.
    #[error("{refusal}")]
    Refused {
        /// Where to tell it.
        stream: Stream,
        /// Why.
        refusal: Refusal,
    },
    /// The TLS handshake failed; the client has had an alert, and can't be told more.
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    /// The client began TLS and there is no certificate, or it is a kind of socket that never has TLS.
    #[error("client began TLS, which is not configured")]
    NoTls,
    /// The connection broke.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// Why a client is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Its packet is wrong.
    #[error(transparent)]
    Packet(#[from] StartupError),
    /// Plaintext came with the request for TLS.
    #[error("received unencrypted data after SSL request")]
    DataAfterSslRequest,
    /// Plaintext came with the request for GSSAPI encryption.
    #[error("received unencrypted data after GSSAPI encryption request")]
    DataAfterGssRequest,
    /// Plaintext where TLS is required.
    #[error("pgsluice requires TLS; connect with sslmode=require")]
    TlsRequired,
}

impl ClientFacing for Refusal {
    fn fault(&self) -> Fault {
        Fault::Client
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            Refusal::Packet(error) => error.sqlstate(),
            Refusal::DataAfterSslRequest | Refusal::DataAfterGssRequest => {
                SqlState::PROTOCOL_VIOLATION
            }
            Refusal::TlsRequired => SqlState::INVALID_AUTHORIZATION,
        }
    }

    fn client_message(&self) -> String {
        self.to_string()
    }

    fn hint(&self) -> Option<String> {
        match self {
            Refusal::Packet(error) => error.hint(),
            _ => None,
        }
    }
}

/// Talks to a new connection until it has said what it wants. `require_tls` binds TCP only.
///
/// Not cancel-safe: dropping the future closes the connection.
pub async fn greet(
    socket: Socket,
    tls: Option<&Acceptor>,
    require_tls: bool,
) -> Result<Greeting, HandshakeError> {
    let (mut stream, direct_tls) = match first_byte(&socket).await? {
        FirstByte::None => return Ok(Greeting::Gone),
        FirstByte::Tls => (Box::pin(accept_direct(socket, tls)).await?, true),
        FirstByte::Other => (Stream::Plain(socket), false),
    };
    let mut buf = BytesMut::with_capacity(BUFFER_LEN);
    let (mut ssl_asked, mut gss_asked) = (false, false);
    loop {
        let refusal = match read_packet(&mut stream, &mut buf).await {
            Err(PacketError::Io(error)) => return Err(HandshakeError::Broken(error)),
            Err(PacketError::Invalid(error)) => Refusal::Packet(error),
            Ok(None) => return Ok(Greeting::Gone),
            // A cancel request is taken without TLS, too: libpq before 17 sends it no other way.
            Ok(Some(Packet::Cancel(request))) => return Ok(Greeting::Cancel { stream, request }),
            Ok(Some(Packet::SslRequest)) if ssl_asked => twice(5679),
            Ok(Some(Packet::GssEncRequest)) if gss_asked => twice(5680),
            Ok(Some(Packet::SslRequest)) if !buf.is_empty() => Refusal::DataAfterSslRequest,
            Ok(Some(Packet::GssEncRequest)) if !buf.is_empty() => Refusal::DataAfterGssRequest,
            Ok(Some(Packet::SslRequest)) => {
                ssl_asked = true;
                stream = Box::pin(answer_ssl(stream, tls)).await?;
                // Inside TLS there is nothing left to negotiate.
                gss_asked |= stream.is_tls();
                continue;
            }
            Ok(Some(Packet::GssEncRequest)) => {
                gss_asked = true;
                write(&mut stream, b"N").await?;
                continue;
            }
            Ok(Some(Packet::Startup(_))) if require_tls && is_plain_tcp(&stream) => {
                Refusal::TlsRequired
            }
            Ok(Some(Packet::Startup(startup))) => {
                Box::pin(negotiate(&mut stream, &startup)).await?;
                let startup = Box::new(startup);
                return Ok(Greeting::Startup {
                    stream,
                    buf,
                    startup,
                    direct_tls,
                });
            }
        };
        return Err(HandshakeError::Refused { stream, refusal });
    }
}

enum FirstByte {
    None,
    Tls,
    Other,
}

/// Looks at the first byte and leaves it in the socket. A Unix socket never has TLS, so its is not looked at.
async fn first_byte(socket: &Socket) -> io::Result<FirstByte> {
    let Socket::Tcp(socket) = socket else {
        return Ok(FirstByte::Other);
    };
    let mut byte = [0];
    let len = socket.peek(&mut byte).await?;
    Ok(match (len, byte) {
        (0, _) => FirstByte::None,
        (_, [TLS_HANDSHAKE]) => FirstByte::Tls,
        _ => FirstByte::Other,
    })
}

async fn accept_direct(socket: Socket, tls: Option<&Acceptor>) -> Result<Stream, HandshakeError> {
    let acceptor = tls.ok_or(HandshakeError::NoTls)?;
    acceptor
        .accept_direct(socket)
        .await
        .map_err(HandshakeError::Tls)
}

/// Answers an SSLRequest: `S` and the TLS handshake, or `N` where there is no certificate, no TCP, or TLS already.
async fn answer_ssl(stream: Stream, tls: Option<&Acceptor>) -> Result<Stream, HandshakeError> {
    match (stream, tls) {
        (Stream::Plain(Socket::Tcp(mut socket)), Some(acceptor)) => {
            socket.write_all(b"S").await?;
            // The state of a TLS connection takes kilobytes: not before a stranger has begun it.
            socket.readable().await?;
            let accepted = Box::pin(acceptor.accept(Socket::Tcp(socket))).await;
            accepted.map_err(HandshakeError::Tls)
        }
        (mut stream, _) => {
            write(&mut stream, b"N").await?;
            Ok(stream)
        }
    }
}

/// A request made again, as PostgreSQL refuses it: by then its code is a protocol version like any other.
fn twice(code: u16) -> Refusal {
    Refusal::Packet(StartupError::UnsupportedProtocol {
        major: 1234,
        minor: code,
    })
}

fn is_plain_tcp(stream: &Stream) -> bool {
    matches!(stream, Stream::Plain(Socket::Tcp(_)))
}

/// Tells a client that asked for more than there is what it gets instead.
async fn negotiate(stream: &mut Stream, startup: &Startup) -> io::Result<()> {
    if !startup.needs_negotiation() {
        return Ok(());
    }
    let mut out = BytesMut::new();
    encode::negotiate_protocol_version(&mut out, startup.version, &startup.unknown_pq_options);
    write(stream, &out).await
}

async fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests;
