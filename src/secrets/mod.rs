//! Where credentials come from. A secret is looked up by role (and database, where the secret names one); the
//! proxy checks clients against it and logs in to the database with it.

use crate::redacted::Redacted;

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
