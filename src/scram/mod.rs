//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, 5929, 7677) without I/O: values in, values out.
//!
//! Towards clients it runs over pgwire's server, with a [`verifier::Verifier`] in place of the password.

pub mod client;
pub mod verifier;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pgwire::api::auth::sasl::scram::{ScramServerAuth, ScramServerAuthWaitingForClientFinal};
use pgwire::error::PgWireError;
use verifier::Verifier;

/// The two mechanisms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    /// SCRAM-SHA-256
    Sha256,
    /// SCRAM-SHA-256-PLUS: bound to the TLS connection.
    Sha256Plus,
}

impl Mechanism {
    /// As SASL names it.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Sha256 => "SCRAM-SHA-256",
            Mechanism::Sha256Plus => "SCRAM-SHA-256-PLUS",
        }
    }
}

/// Why an exchange did not end with a proof.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScramError {
    /// A mechanism that was not offered.
    #[error("client selected an invalid SASL authentication mechanism")]
    UnknownMechanism,
    /// Not what RFC 5802 lets a client send here.
    #[error("malformed SCRAM message")]
    Malformed,
    /// The client thinks channel binding is not offered: someone between us may have taken it off the list.
    #[error("SCRAM channel binding negotiation error")]
    BindingNegotiation,
    /// The client is connected to another certificate than ours.
    #[error("SCRAM channel binding check failed")]
    BindingMismatch,
    /// The proof is not one of the password.
    #[error("wrong password")]
    WrongPassword,
}

/// The server's side, before an exchange.
#[derive(Debug)]
pub struct Server(ScramServerAuth);

/// The server's side once it has answered the client's first message.
#[derive(Debug)]
pub struct Exchange(ScramServerAuthWaitingForClientFinal);

impl Server {
    /// `certificate` is our leaf certificate (DER) inside TLS. If its signature algorithm has no binding hash
    /// (RFC 5929 leaves that undefined, for example for Ed25519), channel binding is not offered.
    pub fn new(certificate: Option<&[u8]>) -> Self {
        let mut server = ScramServerAuth::new();
        if let Some(der) = certificate {
            // A failure leaves it unconfigured, see above.
            let _ = server.configure_certificate(pem(der).as_bytes());
        }
        Self(server)
    }

    /// What to offer, the best first.
    pub fn mechanisms(&self) -> &'static [&'static str] {
        if self.0.supports_channel_binding() {
            &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]
        } else {
            &["SCRAM-SHA-256"]
        }
    }

    /// The mechanism a client chose by name.
    pub fn choose(&self, name: &[u8]) -> Result<Mechanism, ScramError> {
        [Mechanism::Sha256, Mechanism::Sha256Plus]
            .into_iter()
            .find(|mechanism| mechanism.name().as_bytes() == name)
            .filter(|mechanism| self.mechanisms().contains(&mechanism.name()))
            .ok_or(ScramError::UnknownMechanism)
    }

    /// Takes the client's first message and gives the server's.
    pub fn begin(
        &self,
        mechanism: Mechanism,
        client_first: &[u8],
        verifier: &Verifier,
    ) -> Result<(String, Exchange), ScramError> {
        match (mechanism, client_first.first()) {
            // The flag must agree with the mechanism, else binding could be asked for and not done.
            (Mechanism::Sha256Plus, Some(b'p')) | (Mechanism::Sha256, Some(b'n')) => {}
            (Mechanism::Sha256, Some(b'y')) if !self.0.supports_channel_binding() => {}
            (Mechanism::Sha256, Some(b'y')) => return Err(ScramError::BindingNegotiation),
            _ => return Err(ScramError::Malformed),
        }
        self.0
            .on_client_first_message_with_secret(client_first, verifier.to_secret())
            .map(|(server_first, exchange)| (server_first, Exchange(exchange)))
            .map_err(scram_error)
    }
}

impl Exchange {
    /// Takes the client's last message; gives the server's if the proof is one of the password.
    pub fn finish(self, client_final: &[u8]) -> Result<String, ScramError> {
        self.0
            .on_client_final_message(client_final)
            .map_err(scram_error)
    }
}

/// A certificate in the form pgwire reads.
fn pem(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n")
}

/// pgwire's errors quote what the client sent; ours don't.
fn scram_error(error: PgWireError) -> ScramError {
    match error {
        PgWireError::InvalidPassword(_) => ScramError::WrongPassword,
        PgWireError::InvalidScramMessage(text) if text == "Channel binding mismatch" => {
            ScramError::BindingMismatch
        }
        _ => ScramError::Malformed,
    }
}

#[cfg(test)]
mod tests;
