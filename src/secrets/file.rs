//! The secrets file: JSON in the shape AWS Secrets Manager uses for databases, one object or a list.
//!
//! No error shows anything the file holds but role, database and host names of secrets that could be read. serde's
//! messages for typed values quote what they did not expect, so the JSON is read untyped and judged here: a
//! `serde_json::Value` can fail on syntax only, whose messages are fixed texts.
//! Text and parsed values are wiped; what serde_json unescapes (`\"` in a password) passes through a buffer of its
//! own, which is not.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use zeroize::{Zeroize, Zeroizing};

use super::{Secret, SecretStore};
use crate::redacted::Redacted;

/// A hundred thousand secrets; a device file given by mistake has more.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The permission bits of everyone else.
const OTHERS: u32 = 0o007;

/// Why the secrets can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The file can't be read.
    #[error("{} can't be read ({source}); check the path and its permissions", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Everybody on the machine can get at the passwords.
    #[error("{file} is open to everyone (mode {mode:04o}); run: chmod 600 {file}", file = file.display())]
    OpenToOthers {
        /// The file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a secrets file.
    #[error("{} is longer than {FILE_BYTES_MAX} bytes; is it the secrets file?", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
    },
    /// Not JSON.
    #[error("{} is not JSON ({what} at line {line}, column {column}); correct it", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser missed; holds nothing of the file.
        what: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// JSON, but not of secrets; every fault.
    #[error("{}: {}", file.display(), faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        faults: Vec<SecretFault>,
    },
    /// No single server to connect to.
    #[error("the secrets name several servers ({}); set target.host, or let them agree", .0.join(", "))]
    Servers(Vec<String>),
}

/// What is wrong with the content of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretFault {
    /// An empty list.
    #[error("holds no secret; write {{\"username\": …, \"password\": …}} or a list of such")]
    NoSecrets,
    /// Something else.
    #[error("secret {0} is not an object {{\"username\": …, \"password\": …}}")]
    NoObject(usize),
    /// A field can't be used.
    #[error("secret {number}: \"{field}\" {what}")]
    Field {
        /// Place in the list, from 1.
        number: usize,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Two secrets for the same.
    #[error("secret {number} is a second one for role {role:?}, database {database}; keep one")]
    Duplicate {
        /// Place in the list, from 1.
        number: usize,
        /// The role.
        role: String,
        /// The database in quotes, or `any`.
        database: String,
    },
}

impl SecretStore {
    /// Reads a secrets file.
    pub fn load(path: &Path) -> Result<Self, SecretsError> {
        let text = read(path)?;
        let mut document = Wiped(serde_json::from_slice(&text).map_err(|error| {
            let place = format!(" at line {} column {}", error.line(), error.column());
            SecretsError::Json {
                file: path.into(),
                what: error.to_string().replace(&place, ""),
                line: error.line(),
                column: error.column(),
            }
        })?);
        let stored = match &mut document.0 {
            Value::Array(entries) => store(entries),
            one => store(std::slice::from_mut(one)),
        };
        stored.map_err(|faults| SecretsError::Content {
            file: path.into(),
            faults,
        })
    }
}

/// The whole file. Permissions are those of the file opened, not of whatever bears its name a moment later.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
    let failed = |source| SecretsError::Read {
        file: path.into(),
        source,
    };
    // Before opening: opening a pipe nobody writes to would wait for ever.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(SecretsError::OpenToOthers {
            file: path.into(),
            mode,
        });
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(SecretsError::TooLong { file: path.into() });
    }
    // Room for all of it from the start: a growing buffer would leave copies behind that nobody wipes.
    let room = usize::try_from(metadata.len()).unwrap_or(0) + 1;
    let mut text = Zeroizing::new(Vec::with_capacity(room));
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(failed)?;
    Ok(text)
}

fn store(entries: &mut [Value]) -> Result<SecretStore, Vec<SecretFault>> {
    let mut store = SecretStore::default();
    let mut faults = Vec::new();
    for (index, entry) in entries.iter_mut().enumerate() {
        let number = index + 1;
        let Value::Object(fields) = entry else {
            faults.push(SecretFault::NoObject(number));
            continue;
        };
        let Some(secret) = secret(fields, number, &mut faults) else {
            continue;
        };
        if let Err(secret) = store.add(secret) {
            let database = secret
                .dbname
                .map_or("any".into(), |name| format!("{name:?}"));
            faults.push(SecretFault::Duplicate {
                number,
                role: secret.username,
                database,
            });
        }
    }
    if entries.is_empty() {
        faults.push(SecretFault::NoSecrets);
    }
    if faults.is_empty() {
        Ok(store)
    } else {
        Err(faults)
    }
}

/// One secret, or all its faults. Takes the values out of the JSON, so that no copy stays behind.
fn secret(
    fields: &mut Map<String, Value>,
    number: usize,
    faults: &mut Vec<SecretFault>,
) -> Option<Secret> {
    let mut told = |field, what| {
        faults.push(SecretFault::Field {
            number,
            field,
            what,
        })
    };
    let mut text = |field| {
        let value = fields.get_mut(field).map(Value::take);
        read_text(value).map_err(|what| told(field, what))
    };
    let (username, password) = (text("username"), text("password"));
    let (dbname, host) = (text("dbname"), text("host"));
    for (field, reading) in [("username", &username), ("password", &password)] {
        if matches!(reading, Ok(None)) {
            told(field, "is missing");
        }
    }
    let port = read_port(fields.get("port")).map_err(|what| told("port", what));
    let password = password.ok()?.map(Redacted::new);
    Some(Secret {
        username: username.ok()??,
        password: password?,
        dbname: dbname.ok()?,
        host: host.ok()?,
        port: port.ok()?,
    })
}

/// `null` is as good as absent: exports write it.
fn read_text(value: Option<Value>) -> Result<Option<String>, &'static str> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Err("is empty"),
        // The protocol ends strings with NUL.
        Some(Value::String(mut text)) if text.contains('\0') => {
            text.zeroize();
            Err("holds a NUL character")
        }
        Some(Value::String(text)) => Ok(Some(text)),
        Some(mut other) => {
            wipe(&mut other);
            Err("must be a string")
        }
    }
}

/// Secrets Manager writes a number; people and tools also write a string.
fn read_port(value: Option<&Value>) -> Result<Option<u16>, &'static str> {
    let number = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => number
            .as_u64()
            .and_then(|number| u16::try_from(number).ok()),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(_) => None,
    };
    number
        .filter(|port| *port != 0)
        .map(Some)
        .ok_or("must be a number from 1 to 65535")
}

/// Parsed JSON, its strings wiped on drop.
struct Wiped(Value);

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// As deep as serde_json lets a document nest, which is 128.
fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe),
        Value::Object(fields) => fields.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests;
