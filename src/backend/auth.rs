//! Answers a server's demand for a password, as libpq would.

use super::connect::ConnectError;
use crate::redacted::Redacted;
use crate::scram::client::{Binding, Exchange, MECHANISM, MECHANISM_PLUS};
use crate::tls::Stream;
use crate::tls::connect::channel_binding;
use crate::wire::frame::{Frame, read_frame};
use crate::wire::from_backend::{AuthRequest, ServerError};
use crate::wire::to_backend;
use bytes::BytesMut;
use tokio::io::AsyncWriteExt;

/// The longest message of a login.
pub(super) const LOGIN_LEN_MAX: usize = 64 * 1024;

/// Logs in: from the StartupMessage's answer to AuthenticationOk.
pub(super) async fn authenticate(
    stream: &mut Stream,
    buf: &mut BytesMut,
    user: &str,
    password: &Redacted<String>,
) -> Result<(), ConnectError> {
    loop {
        match next(stream, buf).await? {
            AuthRequest::Ok => return Ok(()),
            // Whoever answers in the server's place could ask for it, too.
            AuthRequest::Cleartext if !stream.is_tls() && !stream.socket().is_unix() => {
                return Err(ConnectError::CleartextWithoutTls);
            }
            AuthRequest::Cleartext => send_password(stream, password.expose().as_bytes()).await?,
            AuthRequest::Md5(salt) => {
                let hash = postgres_protocol::authentication::md5_hash(
                    user.as_bytes(),
                    password.expose().as_bytes(),
                    salt,
                );
                send_password(stream, hash.as_bytes()).await?;
            }
            AuthRequest::Sasl(mechanisms) => scram(stream, buf, &mechanisms, password).await?,
            AuthRequest::Unsupported(name) => return Err(ConnectError::AuthUnsupported(name)),
            AuthRequest::SaslContinue(_) | AuthRequest::SaslFinal(_) => {
                return Err(ConnectError::Protocol("a SASL message out of turn"));
            }
        }
    }
}

async fn send_password(stream: &mut Stream, password: &[u8]) -> Result<(), ConnectError> {
    let mut message = BytesMut::new();
    to_backend::password(&mut message, password);
    send(stream, &message).await
}

async fn send(stream: &mut Stream, message: &[u8]) -> Result<(), ConnectError> {
    stream.write_all(message).await?;
    stream.flush().await?;
    Ok(())
}

async fn scram(
    stream: &mut Stream,
    buf: &mut BytesMut,
    mechanisms: &[String],
    password: &Redacted<String>,
) -> Result<(), ConnectError> {
    let offers = |name: &str| mechanisms.iter().any(|offered| offered == name);
    let end_point = channel_binding(stream);
    let (mechanism, binding) = match end_point {
        Some(hash) if offers(MECHANISM_PLUS) => (MECHANISM_PLUS, Binding::EndPoint(hash)),
        Some(_) if offers(MECHANISM) => (MECHANISM, Binding::NotOffered),
        None if offers(MECHANISM) => (MECHANISM, Binding::Unsupported),
        _ => return Err(ConnectError::AuthUnsupported("SASL without SCRAM-SHA-256")),
    };
    let mut exchange = Exchange::new(password, binding);
    let mut message = BytesMut::new();
    to_backend::sasl_initial(&mut message, mechanism, exchange.message());
    send(stream, &message).await?;
    let AuthRequest::SaslContinue(first) = next(stream, buf).await? else {
        return Err(ConnectError::Protocol("no SASL challenge"));
    };
    exchange.on_challenge(&first).map_err(ConnectError::Scram)?;
    message.clear();
    to_backend::sasl_response(&mut message, exchange.message());
    send(stream, &message).await?;
    let AuthRequest::SaslFinal(last) = next(stream, buf).await? else {
        return Err(ConnectError::Protocol("no SASL outcome"));
    };
    // Only a server that knows the password can sign this.
    exchange.on_outcome(&last).map_err(ConnectError::Scram)
}

async fn next(stream: &mut Stream, buf: &mut BytesMut) -> Result<AuthRequest, ConnectError> {
    let frame = next_frame(stream, buf).await?;
    match frame.tag {
        b'R' => AuthRequest::parse(&frame.body)
            .ok_or(ConnectError::Protocol("a malformed authentication request")),
        _ => Err(ConnectError::Protocol(
            "something else than an authentication request",
        )),
    }
}

/// The next message of a login; the server's error as an error.
pub(super) async fn next_frame(
    stream: &mut Stream,
    buf: &mut BytesMut,
) -> Result<Frame, ConnectError> {
    loop {
        let frame = read_frame(stream, buf, LOGIN_LEN_MAX).await?;
        match frame.tag {
            b'E' => return Err(ConnectError::Server(ServerError::parse(&frame.body))),
            b'N' | b'v' => {}
            _ => return Ok(frame),
        }
    }
}
