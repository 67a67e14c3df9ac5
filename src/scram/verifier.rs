//! What is kept of a password to check SCRAM proofs against: PostgreSQL's
//! `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`.

use crate::redacted::Redacted;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pgwire::api::auth::sasl::scram::{ScramSecret, gen_salted_password};
use ring::{digest, hmac};
use zeroize::Zeroizing;

/// PostgreSQL's default (`SCRAM_SHA_256_DEFAULT_ITERATIONS`).
const ITERATIONS: u32 = 4096;

/// Bytes of salt (`SCRAM_DEFAULT_SALT_LEN`).
pub const SALT_LEN: usize = 16;

/// Bytes of a SHA-256 digest.
const KEY_LEN: usize = 32;

/// Proves a password without holding it. It still is a secret: it allows guessing at leisure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Redacted<[u8; KEY_LEN]>,
    server_key: Redacted<[u8; KEY_LEN]>,
}

/// A text that is no verifier. It does not say what the text was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a SCRAM-SHA-256 verifier")]
pub struct NoVerifier;

impl Verifier {
    /// Makes a verifier with a random salt. Takes milliseconds of CPU.
    pub fn from_password(password: &Redacted<String>) -> Self {
        Self::derive(password, rand::random())
    }

    /// Makes a verifier with a given salt. Takes milliseconds of CPU.
    pub fn derive(password: &Redacted<String>, salt: [u8; SALT_LEN]) -> Self {
        let salted = gen_salted_password(password.expose(), &salt, ITERATIONS as usize);
        let salted = hmac::Key::new(hmac::HMAC_SHA256, &Zeroizing::new(salted));
        let stored_key =
            digest::digest(&digest::SHA256, hmac::sign(&salted, b"Client Key").as_ref());
        let server_key = hmac::sign(&salted, b"Server Key");
        Self::from_keys(salt, key(stored_key.as_ref()), key(server_key.as_ref()))
    }

    /// A verifier with these very keys, made from a password or not.
    pub fn from_keys(
        salt: [u8; SALT_LEN],
        stored_key: [u8; KEY_LEN],
        server_key: [u8; KEY_LEN],
    ) -> Self {
        Self {
            iterations: ITERATIONS,
            salt: salt.to_vec(),
            stored_key: Redacted::new(stored_key),
            server_key: Redacted::new(server_key),
        }
    }

    /// Reads a verifier as PostgreSQL stores it in `pg_authid`.
    pub fn parse(text: &str) -> Result<Self, NoVerifier> {
        let rest = text.strip_prefix("SCRAM-SHA-256$").ok_or(NoVerifier)?;
        let (parameters, keys) = rest.split_once('$').ok_or(NoVerifier)?;
        let (iterations, salt) = parameters.split_once(':').ok_or(NoVerifier)?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(NoVerifier)?;
        let iterations = iterations.parse().map_err(|_| NoVerifier)?;
        if iterations == 0 {
            return Err(NoVerifier);
        }
        Ok(Self {
            iterations,
            salt: decode(salt)?,
            stored_key: decode_key(stored_key)?,
            server_key: decode_key(server_key)?,
        })
    }

    /// The form pgwire's server takes.
    pub(super) fn to_secret(&self) -> ScramSecret {
        ScramSecret::Verifier {
            salt: self.salt.clone(),
            iterations: self.iterations as usize,
            stored_key: self.stored_key.expose().to_vec(),
            server_key: self.server_key.expose().to_vec(),
        }
    }
}

/// Copies a SHA-256 digest into an array.
fn key(digest: &[u8]) -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    // Both are 32 bytes: SHA-256.
    key.copy_from_slice(digest);
    key
}

fn decode(text: &str) -> Result<Vec<u8>, NoVerifier> {
    STANDARD.decode(text).map_err(|_| NoVerifier)
}

fn decode_key(text: &str) -> Result<Redacted<[u8; KEY_LEN]>, NoVerifier> {
    let bytes = Zeroizing::new(decode(text)?);
    let key = bytes.as_slice().try_into().map_err(|_| NoVerifier)?;
    Ok(Redacted::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7677, section 3: password "pencil" and this salt.
    const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    fn pencil() -> Verifier {
        let salt = STANDARD.decode(SALT).unwrap().try_into().unwrap();
        Verifier::derive(&Redacted::new("pencil".into()), salt)
    }

    #[test]
    fn a_password_gives_the_verifier_postgresql_stores() {
        assert_eq!(Verifier::parse(VERIFIER), Ok(pencil()));
    }

    #[test]
    fn the_rfcs_server_signature_comes_out() {
        let auth_message = "n=user,r=rOprNGfwEbeRWgbNEkqO,\
            r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
            c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let key = hmac::Key::new(hmac::HMAC_SHA256, pencil().server_key.expose());
        let signature = STANDARD.encode(hmac::sign(&key, auth_message.as_bytes()));
        assert_eq!(signature, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn every_verifier_has_its_own_salt() {
        let password = Redacted::new("pencil".into());
        assert_ne!(
            Verifier::from_password(&password),
            Verifier::from_password(&password)
        );
    }

    #[test]
    fn other_texts_are_refused() {
        let good = ["4096", SALT, "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="];
        let text = |i: &str, salt: &str, key: &str| format!("SCRAM-SHA-256${i}:{salt}${key}:{key}");
        assert!(Verifier::parse(&text(good[0], good[1], good[2])).is_ok());
        let cases = [
            String::new(),
            "pencil".into(),
            "md5f3a9".into(),
            "SCRAM-SHA-256$".into(),
            "SCRAM-SHA-256$4096:abcd".into(),
            text("0", good[1], good[2]),
            text("-1", good[1], good[2]),
            text("", good[1], good[2]),
            text("4096", "*", good[2]),
            text("4096", good[1], "AAAA"),
            text("4096", good[1], ""),
            text(good[0], good[1], good[2]).replace("256", "512"),
        ];
        for case in cases {
            assert_eq!(Verifier::parse(&case), Err(NoVerifier), "{case}");
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let text = format!("{:?}", pencil());
        assert!(
            text.contains("stored_key: ***") && text.contains("server_key: ***"),
            "{text}"
        );
    }
}
