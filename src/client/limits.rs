//! How many clients at once: in all, per user, per database, per address.

use crate::config;
use crate::error::{ClientFacing, Fault, SqlState};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts clients against the limits.
pub struct Limits {
    config: config::Limits,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    all: u32,
    users: HashMap<String, u32>,
    databases: HashMap<String, u32>,
    addresses: HashMap<IpAddr, u32>,
}

/// A client let in; dropping it makes room for another.
pub struct Admission {
    limits: Arc<Limits>,
    user: String,
    database: String,
    address: Option<IpAddr>,
}

/// A limit is reached.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("too many clients: {key} is {limit}")]
pub struct LimitReached {
    /// The configuration's key.
    pub key: &'static str,
    /// Its value.
    pub limit: u32,
}

impl ClientFacing for LimitReached {
    fn fault(&self) -> Fault {
        Fault::Proxy
    }

    fn sqlstate(&self) -> SqlState {
        SqlState::TOO_MANY_CONNECTIONS
    }

    fn client_message(&self) -> String {
        format!(
            "sorry, too many clients already: pgsluice's {} is {}",
            self.key, self.limit
        )
    }

    fn hint(&self) -> Option<String> {
        Some(format!("Close unused connections, or raise {}.", self.key))
    }
}

impl Limits {
    /// Nobody is in yet.
    pub fn new(config: config::Limits) -> Arc<Self> {
        Arc::new(Self {
            config,
            counts: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a client in, or says which limit is reached. `address` is `None` for a Unix socket.
    pub fn admit(
        self: &Arc<Self>,
        user: &str,
        database: &str,
        address: Option<IpAddr>,
    ) -> Result<Admission, LimitReached> {
        let mut counts = self.lock();
        let config = &self.config;
        within("limits.max_clients", Some(config.max_clients), counts.all)?;
        let users = counts.users.get(user).copied().unwrap_or(0);
        within(
            "limits.max_clients_per_user",
            config.max_clients_per_user,
            users,
        )?;
        let databases = counts.databases.get(database).copied().unwrap_or(0);
        within(
            "limits.max_clients_per_database",
            config.max_clients_per_database,
            databases,
        )?;
        let addresses = address
            .and_then(|address| counts.addresses.get(&address).copied())
            .unwrap_or(0);
        within(
            "limits.max_clients_per_address",
            config.max_clients_per_address,
            addresses,
        )?;
        counts.all += 1;
        *counts.users.entry(user.to_owned()).or_default() += 1;
        *counts.databases.entry(database.to_owned()).or_default() += 1;
        if let Some(address) = address {
            *counts.addresses.entry(address).or_default() += 1;
        }
        Ok(Admission {
            limits: self.clone(),
            user: user.to_owned(),
            database: database.to_owned(),
            address,
        })
    }
}

fn within(key: &'static str, limit: Option<u32>, count: u32) -> Result<(), LimitReached> {
    match limit {
        Some(limit) if count >= limit => Err(LimitReached { key, limit }),
        _ => Ok(()),
    }
}

fn leave<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut counts = self.limits.lock();
        counts.all -= 1;
        leave(&mut counts.users, &self.user);
        leave(&mut counts.databases, &self.database);
        if let Some(address) = self.address {
            leave(&mut counts.addresses, &address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_counts_its_own_and_forgets_who_has_left() {
        let limits = Limits::new(config::Limits {
            max_clients: 4,
            max_clients_per_user: Some(2),
            max_clients_per_database: Some(3),
            max_clients_per_address: Some(3),
            max_logins_in_progress: 1,
            max_logins_in_progress_per_address: None,
        });
        let here = Some(IpAddr::from([127, 0, 0, 1]));
        let key = |result: Result<Admission, LimitReached>| result.err().map(|error| error.key);
        let first = limits.admit("a", "d", here).unwrap();
        let _second = limits.admit("a", "d", here).unwrap();
        assert_eq!(
            key(limits.admit("a", "e", here)),
            Some("limits.max_clients_per_user")
        );
        let _third = limits.admit("b", "d", here).unwrap();
        assert_eq!(
            key(limits.admit("c", "d", None)),
            Some("limits.max_clients_per_database")
        );
        assert_eq!(
            key(limits.admit("c", "e", here)),
            Some("limits.max_clients_per_address")
        );
        let fourth = limits.admit("c", "e", None).unwrap();
        assert_eq!(
            key(limits.admit("d", "f", None)),
            Some("limits.max_clients")
        );
        drop((first, fourth));
        assert!(limits.admit("a", "d", here).is_ok());
        assert_eq!(limits.lock().users.get("c"), None);
    }
}
