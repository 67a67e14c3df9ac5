//! The packets without a tag that open a connection: SSLRequest, GSSENCRequest, CancelRequest, StartupMessage
//! (PostgreSQL documentation, "Message Formats"; src/backend/tcop/backend_startup.c).
//!
//! These bytes come from strangers: the length is checked before anything is buffered for it.

use super::startup_options::{self, OptionsError};
use crate::error::{ClientFacing, Fault, SqlState};
use crate::ids::{Database, Role};
use bytes::{Buf, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest packet after its length field (`MAX_STARTUP_PACKET_LENGTH`).
pub const BODY_LEN_MAX: usize = 10_000;

/// Names longer than this are cut, as PostgreSQL does (`NAMEDATALEN` less the final NUL).
const NAME_LEN_MAX: usize = 63;

/// Run-time parameters and protocol options one packet may hold: a driver sends a handful, and each costs more memory
/// here than on the wire.
const PARAMETERS_MAX: usize = 100;

/// The newest minor version of protocol 3 that is spoken here.
const MINOR_LATEST: u16 = 2;

/// Bytes of a cancel key: four in protocol 3.0, up to 256 since 3.2.
const CANCEL_KEY_LEN: std::ops::RangeInclusive<usize> = 4..=256;

/// What a client may open with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Packet {
    /// May we talk TLS?
    SslRequest,
    /// May we talk GSSAPI encryption?
    GssEncRequest,
    /// Cancel what another connection runs.
    Cancel(CancelRequest),
    /// Log me in.
    Startup(Startup),
}

/// A request to cancel what another connection runs.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// The process id of BackendKeyData.
    pub pid: u32,
    /// Its secret.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for CancelRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CancelRequest {{ pid: {}, secret: *** }}", self.pid)
    }
}

/// A version of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ProtocolVersion {
    /// Always 3 once accepted.
    pub major: u16,
    /// 0 or 2; 1 only if a client insists (PostgreSQL 18 takes it and treats it as 3.0).
    pub minor: u16,
}

impl ProtocolVersion {
    /// Whether cancel keys may be longer than four bytes.
    pub fn has_long_cancel_keys(self) -> bool {
        self >= ProtocolVersion { major: 3, minor: 2 }
    }
}

/// A login as the client asked for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Startup {
    /// The version both sides speak from here on: what was asked for, at most 3.2.
    pub version: ProtocolVersion,
    /// The minor version the client asked for.
    pub requested_minor: u16,
    /// Who wants in.
    pub user: Role,
    /// Where to; the user's name unless given.
    pub database: Database,
    /// Run-time parameters: those from `options` first, then the packet's own, as PostgreSQL applies them. Of a name
    /// given twice only the last is here.
    pub parameters: Vec<(String, String)>,
    /// Names of protocol options (`_pq_.…`), none of which is known here.
    pub unknown_pq_options: Vec<String>,
}

impl Startup {
    /// Whether the client must be told what it does not get (NegotiateProtocolVersion).
    pub fn needs_negotiation(&self) -> bool {
        self.requested_minor > self.version.minor || !self.unknown_pq_options.is_empty()
    }
}

/// What is wrong with a packet.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartupError {
    /// Too short or too long.
    #[error("invalid length of startup packet")]
    InvalidLength,
    /// A cancel request whose key can't be one.
    #[error("invalid length of cancel key in cancel request packet")]
    InvalidCancelKeyLength,
    /// Another protocol, or a request made twice.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    UnsupportedProtocol {
        /// Upper half of the first word.
        major: u16,
        /// Lower half.
        minor: u16,
    },
    /// The list of parameters does not end where the packet does.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    MissingTerminator,
    /// Bytes that are no text.
    #[error("invalid startup packet: names and values must be UTF-8")]
    NotUtf8,
    /// More than anybody needs.
    #[error("too many parameters in startup packet: at most {PARAMETERS_MAX} are accepted")]
    TooManyParameters,
    /// No user.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    /// A replication connection.
    #[error(
        "replication connections are not supported by pgsluice: connect to the server directly"
    )]
    Replication,
    /// Neither a boolean nor `database`.
    #[error("invalid value for parameter \"replication\"")]
    ReplicationValue,
    /// A switch that can't be passed on.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

impl ClientFacing for StartupError {
    fn fault(&self) -> Fault {
        Fault::Client
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            StartupError::InvalidLength
            | StartupError::InvalidCancelKeyLength
            | StartupError::MissingTerminator
            | StartupError::TooManyParameters
            | StartupError::NotUtf8 => SqlState::PROTOCOL_VIOLATION,
            StartupError::UnsupportedProtocol { .. } | StartupError::Replication => {
                SqlState::FEATURE_NOT_SUPPORTED
            }
            StartupError::NoUser => SqlState::INVALID_AUTHORIZATION,
            StartupError::ReplicationValue => SqlState::INVALID_PARAMETER_VALUE,
            StartupError::Options(error) => error.sqlstate(),
        }
    }

    fn client_message(&self) -> String {
        self.to_string()
    }

    fn hint(&self) -> Option<String> {
        match self {
            StartupError::Options(error) => error.hint(),
            _ => None,
        }
    }
}

/// Why no packet could be read.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The connection broke, or ended inside a packet.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The packet is wrong.
    #[error(transparent)]
    Invalid(#[from] StartupError),
}

/// Reads one packet; `None` if the client left before its first byte. `buf` keeps what was read beyond the packet.
///
/// Cancel-safe: bytes read so far stay in `buf`.
pub async fn read_packet<S: AsyncRead + Unpin>(
    stream: &mut S,
    buf: &mut BytesMut,
) -> Result<Option<Packet>, PacketError> {
    loop {
        if let Some(packet) = take_packet(buf)? {
            return Ok(Some(packet));
        }
        if stream.read_buf(buf).await? == 0 {
            return if buf.is_empty() {
                Ok(None)
            } else {
                Err(PacketError::Io(io::ErrorKind::UnexpectedEof.into()))
            };
        }
    }
}

/// Takes one packet off the front of `buf`; `None` while it is not all there.
pub fn take_packet(buf: &mut BytesMut) -> Result<Option<Packet>, StartupError> {
    let Some((len, _)) = buf.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*len) as usize;
    if !(8..=BODY_LEN_MAX + 4).contains(&len) {
        return Err(StartupError::InvalidLength);
    }
    if buf.len() < len {
        return Ok(None);
    }
    let mut body = buf.split_to(len);
    body.advance(4);
    decode(&body).map(Some)
}

/// Reads a packet's body: a code or protocol version, then what belongs to it.
fn decode(body: &[u8]) -> Result<Packet, StartupError> {
    let (major, rest) = take_u16(body)?;
    let (minor, rest) = take_u16(rest)?;
    match (major, minor) {
        (1234, 5678) => cancel_request(rest).map(Packet::Cancel),
        (1234, 5679) => Ok(Packet::SslRequest),
        (1234, 5680) => Ok(Packet::GssEncRequest),
        (3, _) => startup(minor, rest).map(Packet::Startup),
        _ => Err(StartupError::UnsupportedProtocol { major, minor }),
    }
}

fn take_u16(bytes: &[u8]) -> Result<(u16, &[u8]), StartupError> {
    let (number, rest) = bytes
        .split_first_chunk()
        .ok_or(StartupError::InvalidLength)?;
    Ok((u16::from_be_bytes(*number), rest))
}

fn cancel_request(body: &[u8]) -> Result<CancelRequest, StartupError> {
    let (pid, secret) = body
        .split_first_chunk()
        .ok_or(StartupError::InvalidLength)?;
    if !CANCEL_KEY_LEN.contains(&secret.len()) {
        return Err(StartupError::InvalidCancelKeyLength);
    }
    Ok(CancelRequest {
        pid: u32::from_be_bytes(*pid),
        secret: secret.to_vec(),
    })
}

fn startup(requested_minor: u16, body: &[u8]) -> Result<Startup, StartupError> {
    let mut user = "";
    let mut database = "";
    let mut settings = Vec::new();
    let mut own = Vec::new();
    let mut unknown_pq_options = Vec::new();
    for (name, value) in pairs(body)? {
        match name {
            "user" => user = value,
            "database" => database = value,
            "options" => settings = startup_options::parse(value)?,
            "replication" => refuse_replication(value)?,
            _ if name.starts_with("_pq_.") => unknown_pq_options.push(name.to_owned()),
            _ => own.push((name.to_owned(), value.to_owned())),
        }
    }
    if user.is_empty() {
        return Err(StartupError::NoUser);
    }
    settings.append(&mut own);
    if settings.len() + unknown_pq_options.len() > PARAMETERS_MAX {
        return Err(StartupError::TooManyParameters);
    }
    Ok(Startup {
        version: ProtocolVersion {
            major: 3,
            minor: requested_minor.min(MINOR_LATEST),
        },
        requested_minor,
        user: Role::new(clip(user)),
        database: Database::new(clip(if database.is_empty() { user } else { database })),
        parameters: last_of_each(settings),
        unknown_pq_options,
    })
}

/// Names and values, each ended by a NUL, the list ended by an empty name at the very end.
fn pairs(mut body: &[u8]) -> Result<Vec<(&str, &str)>, StartupError> {
    let mut pairs = Vec::new();
    loop {
        let name = take_text(&mut body)?;
        if name.is_empty() {
            break;
        }
        pairs.push((name, take_text(&mut body)?));
    }
    if body.is_empty() {
        Ok(pairs)
    } else {
        Err(StartupError::MissingTerminator)
    }
}

fn take_text<'a>(body: &mut &'a [u8]) -> Result<&'a str, StartupError> {
    let end = body
        .iter()
        .position(|&byte| byte == 0)
        .ok_or(StartupError::MissingTerminator)?;
    let (text, rest) = body.split_at(end);
    *body = &rest[1..];
    std::str::from_utf8(text).map_err(|_| StartupError::NotUtf8)
}

/// `false` is what a client gets anyway; `true` and `database` ask for a replication connection.
fn refuse_replication(value: &str) -> Result<(), StartupError> {
    if value == "database" {
        return Err(StartupError::Replication);
    }
    match parse_bool(value) {
        Some(false) => Ok(()),
        Some(true) => Err(StartupError::Replication),
        None => Err(StartupError::ReplicationValue),
    }
}

/// As PostgreSQL's `parse_bool`: any prefix that can only mean one thing, in any case.
fn parse_bool(value: &str) -> Option<bool> {
    let value = value.to_ascii_lowercase();
    let starts = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    if value == "1" || starts("true", 1) || starts("yes", 1) || starts("on", 2) {
        Some(true)
    } else if value == "0" || starts("false", 1) || starts("no", 1) || starts("off", 2) {
        Some(false)
    } else {
        None
    }
}

/// Keeps the last of settings with the same name (names of run-time parameters ignore case).
fn last_of_each(settings: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<_> = settings
        .into_iter()
        .rev()
        .filter(|(name, _)| seen.insert(name.to_ascii_lowercase()))
        .collect();
    kept.reverse();
    kept
}

fn clip(name: &str) -> &str {
    let end = (0..=NAME_LEN_MAX.min(name.len()))
        .rev()
        .find(|&end| name.is_char_boundary(end));
    &name[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests;
