//! What client logins are checked against: verifiers made once per secret, and stand-ins for roles that have none.
//!
//! A role that does not exist must look and take as long as one whose password is wrong. So it has a salt, keys and a
//! password too: made from its name and a key that only this process knows, always the same for the same name. Roles
//! that exist take their salt from the same place, so that it does not change when a secret comes or goes.

use crate::ids::Role;
use crate::redacted::Redacted;
use crate::scram::verifier::{SALT_LEN, Verifier};
use ring::hmac;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// Verifiers kept at once. More than that only pile up when secrets change without end; all are made anew then.
const VERIFIERS_MAX: usize = 65_536;

/// A keyed digest of role and password: what a verifier is found by, without keeping the password.
type Fingerprint = [u8; 32];

/// Checks passwords. One for the process, shared by all logins; outlives reloads of the secrets.
pub struct ClientSecrets {
    key: hmac::Key,
    verifiers: Mutex<HashMap<Fingerprint, Arc<OnceCell<Arc<Verifier>>>>>,
}

impl std::fmt::Debug for ClientSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientSecrets")
    }
}

impl Default for ClientSecrets {
    fn default() -> Self {
        Self::new()
    }
}

impl ClientSecrets {
    /// With a new random key and no verifiers.
    pub fn new() -> Self {
        let key: [u8; 32] = rand::random();
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            verifiers: Mutex::new(HashMap::new()),
        }
    }

    /// The verifier of a secret: made on a blocking thread the first time, by one caller however many ask.
    ///
    /// [`Self::prepare`] asks for every secret before the first client comes: the milliseconds this takes the first time would tell the first stranger
    /// who tries a role that it exists.
    ///
    /// Cancel-safe: if the caller that makes it goes away, the next one does.
    pub async fn verifier(&self, role: &Role, password: &Redacted<String>) -> Arc<Verifier> {
        let cell = self.cell(role, password);
        let salt = self.salt(role);
        let made = cell.get_or_init(|| async move {
            let owned = password.clone();
            let made = tokio::task::spawn_blocking(move || Verifier::derive(&owned, salt)).await;
            // The runtime refuses blocking work only while it stops.
            Arc::new(made.unwrap_or_else(|_| Verifier::derive(password, salt)))
        });
        made.await.clone()
    }

    /// Makes the verifiers of all secrets, on all cores: see [`Self::verifier`]. Returns how many.
    pub async fn prepare(&self, secrets: impl Iterator<Item = (Role, Redacted<String>)>) -> usize {
        let mut work: Vec<_> = secrets
            .take(VERIFIERS_MAX)
            .map(|(role, password)| (self.cell(&role, &password), self.salt(&role), password))
            .collect();
        let count = work.len();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut tasks = Vec::new();
        while !work.is_empty() {
            let share = work.split_off(work.len() - count.div_ceil(cores).min(work.len()));
            tasks.push(tokio::task::spawn_blocking(move || {
                for (cell, salt, password) in share {
                    // A login that came first has made the same.
                    let _ = cell.set(Arc::new(Verifier::derive(&password, salt)));
                }
            }));
        }
        for task in tasks {
            // It fails only while the runtime stops.
            let _ = task.await;
        }
        count
    }

    /// The verifier of a role that has no secret. Nobody can prove anything to it.
    pub fn stand_in_verifier(&self, role: &Role) -> Verifier {
        let stored_key = self.digest(b"stored key", &[role.as_str().as_bytes()]);
        let server_key = self.digest(b"server key", &[role.as_str().as_bytes()]);
        Verifier::from_keys(self.salt(role), stored_key, server_key)
    }

    /// The password of a role that has no secret.
    pub fn stand_in_password(&self, role: &Role) -> Redacted<Vec<u8>> {
        Redacted::new(
            self.digest(b"password", &[role.as_str().as_bytes()])
                .to_vec(),
        )
    }

    /// Whether two secrets are the same, in time that depends on neither content nor which lengths differ.
    pub fn same(&self, a: &[u8], b: &[u8]) -> bool {
        let tag = hmac::sign(&self.key, a);
        hmac::verify(&self.key, b, tag.as_ref()).is_ok()
    }

    fn cell(&self, role: &Role, password: &Redacted<String>) -> Arc<OnceCell<Arc<Verifier>>> {
        let parts = [role.as_str().as_bytes(), password.expose().as_bytes()];
        let fingerprint = self.digest(b"fingerprint", &parts);
        // A map that somebody panicked over is still a map.
        let mut verifiers = self
            .verifiers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if verifiers.len() >= VERIFIERS_MAX && !verifiers.contains_key(&fingerprint) {
            verifiers.clear();
        }
        verifiers.entry(fingerprint).or_default().clone()
    }

    fn salt(&self, role: &Role) -> [u8; SALT_LEN] {
        let digest = self.digest(b"salt", &[role.as_str().as_bytes()]);
        std::array::from_fn(|i| digest[i])
    }

    /// The process's key over a purpose and parts, each ended so that no two lists give the same bytes (names have no
    /// NUL in them).
    fn digest(&self, purpose: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(purpose);
        for part in parts {
            context.update(b"\0");
            context.update(part);
        }
        let tag = context.sign();
        // SHA-256: 32 bytes.
        std::array::from_fn(|i| tag.as_ref()[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Redacted<String> {
        Redacted::new(text.into())
    }

    #[tokio::test]
    async fn a_verifier_is_made_once_per_role_and_password() {
        let secrets = ClientSecrets::new();
        let (ann, bob) = (Role::new("ann"), Role::new("bob"));
        let first = secrets.verifier(&ann, &password("x")).await;
        let again = secrets.verifier(&ann, &password("x")).await;
        assert!(Arc::ptr_eq(&first, &again));
        assert_ne!(first, secrets.verifier(&ann, &password("y")).await);
        assert_ne!(first, secrets.verifier(&bob, &password("x")).await);
        assert_eq!(secrets.verifiers.lock().unwrap().len(), 3);
    }

    #[tokio::test]
    async fn prepared_verifiers_are_those_that_logins_get() {
        for count in [0, 1, 5] {
            let secrets = ClientSecrets::new();
            let all = (0..count).map(|n| (Role::new(format!("r{n}")), password("x")));
            assert_eq!(secrets.prepare(all).await, count);
            for n in 0..count {
                let role = Role::new(format!("r{n}"));
                let cell = secrets.cell(&role, &password("x"));
                let made = cell.get().expect("made before anybody asks").clone();
                assert!(Arc::ptr_eq(
                    &made,
                    &secrets.verifier(&role, &password("x")).await
                ));
            }
        }
    }

    #[tokio::test]
    async fn many_who_ask_at_once_get_the_same() {
        let secrets = Arc::new(ClientSecrets::new());
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let secrets = secrets.clone();
                tokio::spawn(
                    async move { secrets.verifier(&Role::new("ann"), &password("x")).await },
                )
            })
            .collect();
        let first = secrets.verifier(&Role::new("ann"), &password("x")).await;
        for task in tasks {
            assert!(Arc::ptr_eq(&first, &task.await.unwrap()));
        }
    }

    #[test]
    fn stand_ins_are_steady_within_a_process_and_differ_between_roles_and_processes() {
        let secrets = ClientSecrets::new();
        let (ann, bob) = (Role::new("ann"), Role::new("bob"));
        assert_eq!(
            secrets.stand_in_verifier(&ann),
            secrets.stand_in_verifier(&ann)
        );
        assert_ne!(
            secrets.stand_in_verifier(&ann),
            secrets.stand_in_verifier(&bob)
        );
        assert_ne!(
            secrets.stand_in_verifier(&ann),
            ClientSecrets::new().stand_in_verifier(&ann)
        );
        assert_ne!(
            secrets.stand_in_password(&ann),
            secrets.stand_in_password(&bob)
        );
    }

    #[test]
    fn same_is_same() {
        let secrets = ClientSecrets::new();
        assert!(secrets.same(b"", b"") && secrets.same(b"abc", b"abc"));
        for (a, b) in [("abc", "abd"), ("abc", "ab"), ("", "a"), ("abc", "abc\0")] {
            assert!(!secrets.same(a.as_bytes(), b.as_bytes()));
        }
    }
}
