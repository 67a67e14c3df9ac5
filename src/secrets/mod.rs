//! Where credentials come from. A secret is looked up by role (and database, where the secret names one); the
//! proxy checks clients against it and logs in to the database with it.

mod file;

pub use file::SecretsError;

use std::collections::HashMap;
use std::sync::Arc;

use crate::redacted::Redacted;

/// The port of a secret that names a host alone.
const DEFAULT_PORT: u16 = 5432;

/// The credentials of one role.
#[derive(Debug)]
pub struct Secret {
    /// The role.
    pub username: String,
    /// Its password.
    pub password: Redacted<String>,
    /// Only for this database; `None`: for any.
    pub dbname: Option<String>,
    /// The server the secret belongs to.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
}

/// Every secret, by role. One role may have several, each for another database.
#[derive(Debug, Default)]
pub struct SecretStore {
    by_role: HashMap<String, Vec<Arc<Secret>>>,
}

impl SecretStore {
    /// The secret of a role for a database: one that names the database wins over one that names none.
    pub fn find(&self, role: &str, database: &str) -> Option<Arc<Secret>> {
        let secrets = self.by_role.get(role)?;
        let for_database = |name: Option<&str>| {
            secrets
                .iter()
                .find(|secret| secret.dbname.as_deref() == name)
        };
        for_database(Some(database))
            .or_else(|| for_database(None))
            .cloned()
    }

    /// The one server the secrets name; `None` if they name none.
    pub fn server(&self) -> Result<Option<(String, u16)>, SecretsError> {
        let mut servers: Vec<(&str, u16)> = self.iter().filter_map(Secret::server).collect();
        servers.sort_unstable();
        servers.dedup();
        match servers.as_slice() {
            [] => Ok(None),
            [(host, port)] => Ok(Some((host.to_string(), *port))),
            _ => Err(SecretsError::Servers(
                servers
                    .iter()
                    .map(|(host, port)| format!("{host}:{port}"))
                    .collect(),
            )),
        }
    }

    /// How many secrets there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Is there no secret at all? A loaded store never is empty.
    pub fn is_empty(&self) -> bool {
        self.by_role.is_empty()
    }

    /// Has the role a secret, for whichever database?
    pub fn knows(&self, role: &str) -> bool {
        self.by_role.contains_key(role)
    }

    /// How many roles have a secret.
    pub fn roles(&self) -> usize {
        self.by_role.len()
    }

    /// All secrets.
    pub fn iter(&self) -> impl Iterator<Item = &Secret> {
        self.by_role.values().flatten().map(Arc::as_ref)
    }

    /// Adds a secret; gives it back if the role already has one for the same database.
    fn add(&mut self, secret: Secret) -> Result<(), Secret> {
        let of_role = self.by_role.entry(secret.username.clone()).or_default();
        if of_role.iter().any(|other| other.dbname == secret.dbname) {
            return Err(secret);
        }
        of_role.push(Arc::new(secret));
        Ok(())
    }
}

impl Secret {
    fn server(&self) -> Option<(&str, u16)> {
        self.host
            .as_deref()
            .map(|host| (host, self.port.unwrap_or(DEFAULT_PORT)))
    }
}
