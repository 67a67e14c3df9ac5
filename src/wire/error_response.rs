//! ErrorResponse and NoticeResponse: written for clients, read from servers (PostgreSQL documentation, "Error and Notice
//! Message Fields").

use super::encode::{message, text};
use crate::error::{ClientFacing, SqlState};
use bytes::{BufMut, BytesMut};

/// How grave a message is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The session ends.
    Fatal,
    /// The server ends.
    Panic,
    /// Worth knowing.
    Notice,
    /// Probably not what was meant.
    Warning,
    /// Asked for.
    Info,
    /// For the server's log.
    Log,
    /// For developers of the server.
    Debug,
}

impl Severity {
    /// As the protocol writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Panic => "PANIC",
            Severity::Notice => "NOTICE",
            Severity::Warning => "WARNING",
            Severity::Info => "INFO",
            Severity::Log => "LOG",
            Severity::Debug => "DEBUG",
        }
    }

    /// ErrorResponse or NoticeResponse.
    fn tag(self) -> u8 {
        match self {
            Severity::Error | Severity::Fatal | Severity::Panic => b'E',
            _ => b'N',
        }
    }

    fn parse(word: &[u8]) -> Option<Self> {
        use Severity::*;
        [Error, Fatal, Panic, Notice, Warning, Info, Log, Debug]
            .into_iter()
            // servers write DEBUG as DEBUG1 … DEBUG5 in some versions
            .find(|severity| word.starts_with(severity.as_str().as_bytes()))
    }
}

/// An error or notice of the proxy's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorMessage {
    /// How grave.
    pub severity: Severity,
    /// Which one.
    pub code: SqlState,
    /// What happened.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ErrorMessage {
    /// What a client may read of an error.
    pub fn from_client_facing(severity: Severity, error: &dyn ClientFacing) -> Self {
        Self {
            severity,
            code: error.sqlstate(),
            message: error.client_message(),
            detail: None,
            hint: error.hint(),
        }
    }

    /// Appends the message: ErrorResponse, or NoticeResponse if the severity is one of a notice.
    pub fn encode(&self, out: &mut BytesMut) {
        message(out, self.severity.tag(), |out| {
            field(out, b'S', self.severity.as_str());
            field(out, b'V', self.severity.as_str());
            field(out, b'C', self.code.as_str());
            field(out, b'M', &self.message);
            self.detail
                .iter()
                .for_each(|detail| field(out, b'D', detail));
            self.hint.iter().for_each(|hint| field(out, b'H', hint));
            out.put_u8(0);
        });
    }
}

fn field(out: &mut BytesMut, code: u8, value: &str) {
    out.put_u8(code);
    text(out, value.as_bytes());
}

/// An error or notice of a server, as far as the proxy must look at it. The message goes to logs only: it is text
/// whatever bytes the server sent, so a client must be given the server's own bytes instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerMessage {
    /// How grave; `Error` if the server did not say so in a word known here.
    pub severity: Severity,
    /// Which one; internal_error if the server did not say.
    pub code: SqlState,
    /// What happened.
    pub message: String,
}

impl ServerMessage {
    /// Reads the body of an ErrorResponse or NoticeResponse, making the best of a damaged one.
    pub fn parse(body: &[u8]) -> Self {
        let (mut word, mut code, mut message) = (None, None, &b""[..]);
        for entry in body.split(|&byte| byte == 0) {
            match entry {
                // V is never translated; S may be.
                [b'V', value @ ..] => word = Some(value),
                [b'S', value @ ..] => word = word.or(Some(value)),
                [b'C', value @ ..] => code = SqlState::parse(value),
                [b'M', value @ ..] => message = value,
                _ => {}
            }
        }
        Self {
            severity: word.and_then(Severity::parse).unwrap_or(Severity::Error),
            code: code.unwrap_or(SqlState::INTERNAL_ERROR),
            message: String::from_utf8_lossy(message).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(severity: Severity, hint: Option<&str>) -> ErrorMessage {
        ErrorMessage {
            severity,
            code: SqlState::TOO_MANY_CONNECTIONS,
            message: "too\0 many".into(),
            detail: None,
            hint: hint.map(Into::into),
        }
    }

    #[test]
    fn errors_and_notices_have_the_documented_bytes() {
        let cases: &[(ErrorMessage, &[u8])] = &[
            (
                sample(Severity::Fatal, Some("wait")),
                b"E\0\0\0\x2aSFATAL\0VFATAL\0C53300\0Mtoo many\0Hwait\0\0",
            ),
            (
                sample(Severity::Notice, None),
                b"N\0\0\0\x26SNOTICE\0VNOTICE\0C53300\0Mtoo many\0\0",
            ),
            (
                ErrorMessage {
                    detail: Some("d".into()),
                    ..sample(Severity::Error, None)
                },
                b"E\0\0\0\x27SERROR\0VERROR\0C53300\0Mtoo many\0Dd\0\0",
            ),
        ];
        for (error, expected) in cases {
            let mut out = BytesMut::new();
            error.encode(&mut out);
            assert_eq!(out, *expected);
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut out = BytesMut::new();
        sample(Severity::Fatal, Some("wait")).encode(&mut out);
        let read = ServerMessage::parse(&out[5..]);
        let expected = ServerMessage {
            severity: Severity::Fatal,
            code: SqlState::TOO_MANY_CONNECTIONS,
            message: "too many".into(),
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn servers_messages_are_read_however_damaged() {
        let message = |severity, code: &[u8], message: &str| ServerMessage {
            severity,
            code: SqlState::parse(code).unwrap(),
            message: message.into(),
        };
        let unknown = message(Severity::Error, b"XX000", "");
        let cases: &[(&[u8], ServerMessage)] = &[
            (b"", unknown.clone()),
            (b"\0\0\0\0", unknown.clone()),
            (b"\xff\xfe\xfd", unknown.clone()),
            (b"C123\0", unknown.clone()),
            (b"SFATAL\0VERR", message(Severity::Error, b"XX000", "")),
            (
                b"SFATAL\0C57P01\0Mbye",
                message(Severity::Fatal, b"57P01", "bye"),
            ),
            (
                "SFATALE\0VFATAL\0C28P01\0Mnon\0R\0\0".as_bytes(),
                message(Severity::Fatal, b"28P01", "non"),
            ),
            (
                "VFATAL\0SFEHLER\0C28P01\0\0".as_bytes(),
                message(Severity::Fatal, b"28P01", ""),
            ),
            (
                b"SWARNING\0M\xe9t\xe9\0\0",
                message(Severity::Warning, b"XX000", "\u{fffd}t\u{fffd}"),
            ),
            (b"SDEBUG1\0\0", message(Severity::Debug, b"XX000", "")),
        ];
        for (body, expected) in cases {
            assert_eq!(&ServerMessage::parse(body), expected, "{body:?}");
        }
    }
}
