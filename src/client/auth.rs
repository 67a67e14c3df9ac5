//! Proving who a client is. An unknown role looks and takes as long as a wrong password (see [`super::credentials`]).
//!
//! [`Identity`] can be made only here: whoever holds one knows that a proof was given.

use super::credentials::ClientSecrets;
use crate::config::AuthMethod;
use crate::error::{ClientFacing, Fault, SqlState};
use crate::ids::Role;
use crate::redacted::Redacted;
use crate::scram::verifier::Verifier;
use crate::scram::{self, Mechanism, ScramError};
use crate::tls::Stream;
use crate::tls::accept::Acceptor;
use crate::wire::encode;
use crate::wire::frame::{ReadError, read_frame};
use crate::wire::password::{self, Malformed, SaslInitialResponse};
use bytes::{Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// What a login is checked against.
#[derive(Debug)]
pub struct Login<'a> {
    /// Who the client says it is.
    pub user: &'a Role,
    /// How it must prove that.
    pub method: AuthMethod,
    /// It need not prove it, if it has a secret.
    pub trusted: bool,
    /// The role's password; `None` for a role nobody knows.
    pub password: Option<&'a Redacted<String>>,
    /// Verifiers and stand-ins.
    pub secrets: &'a ClientSecrets,
    /// What the connection's TLS was accepted with, for channel binding.
    pub acceptor: Option<&'a Acceptor>,
}

/// Who a client is, proved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    role: Role,
    proof: Proof,
}

impl Identity {
    /// The role.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// How it was proved.
    pub fn proof(&self) -> Proof {
        self.proof
    }
}

/// How a client proved who it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Proof {
    /// Not at all: the configuration trusts the role.
    Trust,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// SCRAM-SHA-256 bound to the TLS connection.
    ScramSha256Plus,
    /// Salted MD5.
    Md5,
    /// The password itself.
    Cleartext,
}

impl Proof {
    /// For logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Proof::Trust => "trust",
            Proof::ScramSha256 => "scram-sha-256",
            Proof::ScramSha256Plus => "scram-sha-256-plus",
            Proof::Md5 => "md5",
            Proof::Cleartext => "cleartext",
        }
    }
}

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The password is wrong, or nobody knows the role.
    #[error("password authentication failed for user \"{0}\"")]
    WrongPassword(Role),
    /// The password would cross the network readable.
    #[error("cleartext authentication requires TLS; connect with sslmode=require")]
    CleartextWithoutTls,
    /// Another message than the answer.
    #[error("expected password response, got message type {0}")]
    UnexpectedMessage(u8),
    /// An answer that can't be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// An answer of impossible length.
    #[error("invalid length of authentication response")]
    InvalidLength,
    /// The SCRAM exchange went wrong; never [`ScramError::WrongPassword`].
    #[error(transparent)]
    Scram(ScramError),
    /// The client left, as psql does to ask its user for a password.
    #[error("client left during authentication")]
    Gone,
    /// The connection broke.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

impl AuthError {
    /// Whether there is still somebody to tell.
    pub fn can_be_answered(&self) -> bool {
        !matches!(self, AuthError::Gone | AuthError::Broken(_))
    }
}

impl From<ReadError> for AuthError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Closed => AuthError::Gone,
            ReadError::Io(error) => AuthError::Broken(error),
            ReadError::BadLength(_) | ReadError::TooLong { .. } => AuthError::InvalidLength,
        }
    }
}

impl ClientFacing for AuthError {
    fn fault(&self) -> Fault {
        Fault::Client
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            AuthError::WrongPassword(_) => SqlState::INVALID_PASSWORD,
            AuthError::CleartextWithoutTls
            | AuthError::Scram(ScramError::BindingNegotiation | ScramError::BindingMismatch) => {
                SqlState::INVALID_AUTHORIZATION
            }
            AuthError::UnexpectedMessage(_)
            | AuthError::Malformed(_)
            | AuthError::InvalidLength
            | AuthError::Scram(_) => SqlState::PROTOCOL_VIOLATION,
            AuthError::Gone | AuthError::Broken(_) => SqlState::CONNECTION_FAILURE,
        }
    }

    fn client_message(&self) -> String {
        match self {
            // An operating system's text is no client's business, and nobody would read it.
            AuthError::Broken(_) => "connection broke during authentication".into(),
            _ => self.to_string(),
        }
    }
}

/// Lets a client prove who it is. On success it has been told AuthenticationOk; on failure nothing: that is the
/// caller's.
///
/// Not cancel-safe: a login half done can't be resumed, the caller drops the connection. Bounded in memory by the
/// longest answer; the deadline is the caller's.
pub async fn authenticate(
    stream: &mut Stream,
    buf: &mut BytesMut,
    login: Login<'_>,
) -> Result<Identity, AuthError> {
    let channel = match (&*stream, stream.socket().is_unix()) {
        (_, true) => Channel::Local,
        (Stream::Plain(_), _) => Channel::Open,
        (Stream::Tls(_), _) => Channel::Tls(login.acceptor.map(Acceptor::leaf)),
    };
    Talk {
        stream,
        buf,
        out: BytesMut::new(),
    }
    .authenticate(&login, channel)
    .await
}

/// What lies between the client and us.
#[derive(Clone, Copy)]
enum Channel<'a> {
    /// This machine.
    Local,
    /// A network that others may read.
    Open,
    /// TLS, with this certificate.
    Tls(Option<&'a [u8]>),
}

/// The conversation with one client.
struct Talk<'a, S> {
    stream: &'a mut S,
    buf: &'a mut BytesMut,
    out: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<'_, S> {
    async fn authenticate(
        mut self,
        login: &Login<'_>,
        channel: Channel<'_>,
    ) -> Result<Identity, AuthError> {
        // A trusted role without a secret could not log in to the database: it gets no further than one nobody knows.
        let trusted = login.trusted && login.known().is_some();
        let proof = match (trusted, login.method) {
            (true, _) => Proof::Trust,
            (false, AuthMethod::ScramSha256) => self.scram(login, channel).await?,
            (false, AuthMethod::Md5) => self.md5(login).await?,
            (false, AuthMethod::Cleartext) => self.cleartext(login, channel).await?,
        };
        encode::authentication_ok(&mut self.out);
        self.send().await?;
        Ok(Identity {
            role: login.user.clone(),
            proof,
        })
    }

    async fn scram(&mut self, login: &Login<'_>, channel: Channel<'_>) -> Result<Proof, AuthError> {
        let certificate = match channel {
            Channel::Tls(certificate) => certificate,
            Channel::Local | Channel::Open => None,
        };
        let server = scram::Server::new(certificate);
        let verifier = login.verifier().await;
        encode::authentication_sasl(&mut self.out, server.mechanisms());
        let answer = self.ask().await?;
        let initial = SaslInitialResponse::parse(&answer)?;
        let mechanism = server.choose(initial.mechanism).map_err(AuthError::Scram)?;
        let client_first = match initial.data {
            Some(data) => answer.slice_ref(data),
            // The client waits for an empty challenge before it begins (RFC 4422, section 3).
            None => {
                encode::sasl_continue(&mut self.out, b"");
                self.ask().await?
            }
        };
        let (server_first, exchange) = server
            .begin(mechanism, &client_first, &verifier)
            .map_err(AuthError::Scram)?;
        encode::sasl_continue(&mut self.out, server_first.as_bytes());
        let client_final = self.ask().await?;
        let server_final = exchange
            .finish(&client_final)
            .map_err(|error| match error {
                ScramError::WrongPassword => login.wrong_password(),
                error => AuthError::Scram(error),
            })?;
        login.require_known()?;
        encode::sasl_final(&mut self.out, server_final.as_bytes());
        Ok(match mechanism {
            Mechanism::Sha256 => Proof::ScramSha256,
            Mechanism::Sha256Plus => Proof::ScramSha256Plus,
        })
    }

    async fn md5(&mut self, login: &Login<'_>) -> Result<Proof, AuthError> {
        let salt: [u8; 4] = rand::random();
        encode::authentication_md5(&mut self.out, salt);
        let answer = self.ask().await?;
        let expected = login
            .with_password(|password| md5_hash(login.user.as_str().as_bytes(), password, salt));
        login.check(password::password(&answer)?, expected.as_bytes())?;
        Ok(Proof::Md5)
    }

    async fn cleartext(
        &mut self,
        login: &Login<'_>,
        channel: Channel<'_>,
    ) -> Result<Proof, AuthError> {
        if matches!(channel, Channel::Open) {
            return Err(AuthError::CleartextWithoutTls);
        }
        encode::authentication_cleartext(&mut self.out);
        let answer = self.ask().await?;
        let given = password::password(&answer)?;
        login.with_password(|expected| login.check(given, expected))?;
        Ok(Proof::Cleartext)
    }

    /// Sends what is to be sent and reads the client's answer.
    async fn ask(&mut self) -> Result<Bytes, AuthError> {
        self.send().await?;
        let frame = read_frame(self.stream, self.buf, password::BODY_LEN_MAX).await?;
        if frame.tag != password::TAG {
            return Err(AuthError::UnexpectedMessage(frame.tag));
        }
        Ok(frame.body)
    }

    async fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        self.stream.flush().await
    }
}

impl Login<'_> {
    /// The password, if there is one to know. An empty one proves nothing (PostgreSQL has none either).
    fn known(&self) -> Option<&Redacted<String>> {
        self.password
            .filter(|password| !password.expose().is_empty())
    }

    async fn verifier(&self) -> Arc<Verifier> {
        match self.known() {
            Some(password) => self.secrets.verifier(self.user, password).await,
            None => Arc::new(self.secrets.stand_in_verifier(self.user)),
        }
    }

    /// Calls `f` with the password, or with one that nobody knows.
    fn with_password<T>(&self, f: impl FnOnce(&[u8]) -> T) -> T {
        let stand_in = self.secrets.stand_in_password(self.user);
        f(self
            .known()
            .map_or(stand_in.expose(), |password| password.expose().as_bytes()))
    }

    fn check(&self, given: &[u8], expected: &[u8]) -> Result<(), AuthError> {
        if !self.secrets.same(given, expected) {
            return Err(self.wrong_password());
        }
        self.require_known()
    }

    /// Not even the right answer to a stand-in lets anybody in.
    fn require_known(&self) -> Result<(), AuthError> {
        self.known()
            .map(|_| ())
            .ok_or_else(|| self.wrong_password())
    }

    fn wrong_password(&self) -> AuthError {
        AuthError::WrongPassword(self.user.clone())
    }
}

#[cfg(test)]
mod tests;
