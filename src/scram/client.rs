//! SCRAM-SHA-256(-PLUS) towards servers, over postgres-protocol. Values in, values out.

use crate::redacted::Redacted;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use std::io;

/// The mechanism's name.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// With channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// What the exchange says about channel binding.
pub enum Binding {
    /// Bound to the certificate with this hash (tls-server-end-point).
    EndPoint(Vec<u8>),
    /// We could, the server does not offer it: it will notice if that was an attacker's doing.
    NotOffered,
    /// No TLS.
    Unsupported,
}

/// One exchange.
pub struct Exchange(ScramSha256);

/// The exchange failed. The text never holds key material.
#[derive(Debug, thiserror::Error)]
#[error("SCRAM with the server failed: {0}")]
pub struct ScramError(io::Error);

impl Exchange {
    /// Begins.
    pub fn new(password: &Redacted<String>, binding: Binding) -> Self {
        let binding = match binding {
            Binding::EndPoint(hash) => ChannelBinding::tls_server_end_point(hash),
            Binding::NotOffered => ChannelBinding::unrequested(),
            Binding::Unsupported => ChannelBinding::unsupported(),
        };
        Self(ScramSha256::new(password.expose().as_bytes(), binding))
    }

    /// The message to send now.
    pub fn message(&self) -> &[u8] {
        self.0.message()
    }

    /// The server's first message.
    pub fn on_challenge(&mut self, challenge: &[u8]) -> Result<(), ScramError> {
        self.0.update(challenge).map_err(ScramError)
    }

    /// The server's last message: checks that it knows the password too.
    pub fn on_outcome(&mut self, outcome: &[u8]) -> Result<(), ScramError> {
        self.0.finish(outcome).map_err(ScramError)
    }
}
