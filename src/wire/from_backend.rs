//! What servers send, decoded only as far as the proxy must look. Rows and COPY data stay opaque.
//!
//! Everything here takes bytes from another process: nothing panics, nothing is believed unchecked.

use crate::error::SqlState;
use bytes::Bytes;
use std::fmt;

/// Where a server session stands, as ReadyForQuery tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TxStatus {
    /// Outside a transaction block.
    Idle,
    /// Inside one.
    InTransaction,
    /// Inside a failed one.
    Failed,
}

impl TxStatus {
    /// Reads the byte of ReadyForQuery.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(TxStatus::Idle),
            b'T' => Some(TxStatus::InTransaction),
            b'E' => Some(TxStatus::Failed),
            _ => None,
        }
    }
}

/// An error the server reported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerError {
    /// ERROR, FATAL, PANIC.
    pub severity: String,
    /// Its SQLSTATE.
    pub code: SqlState,
    /// Its primary message.
    pub message: String,
}

impl ServerError {
    /// Reads the body of an ErrorResponse or NoticeResponse; what is missing or malformed gets a stand-in.
    pub fn parse(body: &[u8]) -> Self {
        let field = |wanted: u8| {
            fields(body)
                .find(|(kind, _)| *kind == wanted)
                .map(|(_, value)| value)
        };
        let text = |wanted| field(wanted).map(|value| String::from_utf8_lossy(value).into_owned());
        Self {
            // V is the severity untranslated, since 9.6.
            severity: text(b'V')
                .or_else(|| text(b'S'))
                .unwrap_or_else(|| "ERROR".into()),
            code: field(b'C')
                .and_then(SqlState::parse)
                .unwrap_or(SqlState::INTERNAL_ERROR),
            message: text(b'M').unwrap_or_else(|| "(no message)".into()),
        }
    }
}

fn fields(body: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    body.split(|&byte| byte == 0).filter_map(|field| {
        let (kind, value) = field.split_first()?;
        Some((*kind, value))
    })
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)
    }
}

impl std::error::Error for ServerError {}

/// What a server asks for at login.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthRequest {
    /// It is satisfied.
    Ok,
    /// The password as it is.
    Cleartext,
    /// The password hashed with this salt.
    Md5([u8; 4]),
    /// SASL, by one of these mechanisms.
    Sasl(Vec<String>),
    /// The server's next SASL message.
    SaslContinue(Bytes),
    /// The server's last SASL message.
    SaslFinal(Bytes),
    /// Something the proxy does not do.
    Unsupported(&'static str),
}

impl AuthRequest {
    /// Reads the body of an Authentication message.
    pub fn parse(body: &Bytes) -> Option<Self> {
        let (kind, rest) = body.split_first_chunk::<4>()?;
        Some(match u32::from_be_bytes(*kind) {
            0 => AuthRequest::Ok,
            2 => AuthRequest::Unsupported("Kerberos V5"),
            3 => AuthRequest::Cleartext,
            5 => AuthRequest::Md5(rest.try_into().ok()?),
            7 | 8 => AuthRequest::Unsupported("GSSAPI"),
            9 => AuthRequest::Unsupported("SSPI"),
            10 => AuthRequest::Sasl(
                rest.split(|&byte| byte == 0)
                    .filter(|name| !name.is_empty())
                    .map(|name| String::from_utf8_lossy(name).into_owned())
                    .collect(),
            ),
            11 => AuthRequest::SaslContinue(body.slice(4..)),
            12 => AuthRequest::SaslFinal(body.slice(4..)),
            _ => AuthRequest::Unsupported("an unknown method"),
        })
    }
}

/// Reads a ParameterStatus: name and value. Values that are not UTF-8 are not reported parameters of PostgreSQL's.
pub fn parameter_status(body: &[u8]) -> Option<(&str, &str)> {
    let mut parts = body.split(|&byte| byte == 0);
    let name = std::str::from_utf8(parts.next()?).ok()?;
    let value = std::str::from_utf8(parts.next()?).ok()?;
    // The terminator of the value makes a third, empty part.
    parts.next().map(|_| (name, value))
}

/// Reads a BackendKeyData: process id and secret (4 bytes in protocol 3.0, up to 256 in 3.2).
pub fn backend_key_data(body: &[u8]) -> Option<(u32, &[u8])> {
    let (pid, secret) = body.split_first_chunk::<4>()?;
    (4..=256)
        .contains(&secret.len())
        .then(|| (u32::from_be_bytes(*pid), secret))
}

/// Reads a CommandComplete's tag.
pub fn command_tag(body: &[u8]) -> Option<&str> {
    std::str::from_utf8(body.strip_suffix(b"\0")?).ok()
}

/// Reads the first column of a DataRow as text; `None` if it is null or malformed.
pub fn first_column(body: &[u8]) -> Option<&str> {
    let (columns, rest) = body.split_first_chunk::<2>()?;
    if u16::from_be_bytes(*columns) == 0 {
        return None;
    }
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let len = usize::try_from(i32::from_be_bytes(*len)).ok()?;
    std::str::from_utf8(rest.get(..len)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_read_and_garbage_is_survived() {
        let error = ServerError::parse(b"SFEHLER\0VERROR\0C22012\0Mdivision by zero\0\0");
        assert_eq!(error.to_string(), "ERROR 22012: division by zero");
        for garbage in [&b""[..], b"\0", b"C\0", b"Cab\0", b"\xff\xff", b"M"] {
            let error = ServerError::parse(garbage);
            assert_eq!(error.code, SqlState::INTERNAL_ERROR, "{garbage:?}");
        }
    }

    #[test]
    fn authentication_requests() {
        let parse = |bytes: &'static [u8]| AuthRequest::parse(&Bytes::from_static(bytes));
        assert_eq!(parse(b"\0\0\0\0"), Some(AuthRequest::Ok));
        assert_eq!(parse(b"\0\0\0\x05abcd"), Some(AuthRequest::Md5(*b"abcd")));
        assert_eq!(parse(b"\0\0\0\x05abc"), None);
        assert_eq!(parse(b"\0\0"), None);
        let mechanisms = vec!["SCRAM-SHA-256-PLUS".into(), "SCRAM-SHA-256".into()];
        assert_eq!(
            parse(b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
            Some(AuthRequest::Sasl(mechanisms))
        );
        assert!(matches!(
            parse(b"\0\0\0\x63"),
            Some(AuthRequest::Unsupported(_))
        ));
    }

    #[test]
    fn small_messages() {
        assert_eq!(
            parameter_status(b"TimeZone\0UTC\0"),
            Some(("TimeZone", "UTC"))
        );
        assert_eq!(parameter_status(b"a\0\0"), Some(("a", "")));
        assert_eq!(parameter_status(b"a"), None);
        assert_eq!(parameter_status(b"a\0b"), None);
        assert_eq!(backend_key_data(b"\0\0\0\x01abcd"), Some((1, &b"abcd"[..])));
        assert_eq!(backend_key_data(b"\0\0\0\x01abc"), None);
        assert_eq!(command_tag(b"SELECT 1\0"), Some("SELECT 1"));
        assert_eq!(command_tag(b"SELECT 1"), None);
        assert_eq!(first_column(b"\0\x01\0\0\0\x02hi"), Some("hi"));
        assert_eq!(first_column(b"\0\x01\xff\xff\xff\xff"), None);
        assert_eq!(first_column(b"\0\x01\0\0\0\x09hi"), None);
        assert_eq!(first_column(b"\0\0"), None);
    }
}
