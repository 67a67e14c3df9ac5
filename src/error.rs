//! What every error of the proxy can say: whose fault it was, and what a client may read of it.

use std::fmt;

/// Whose fault an error was: the metric label and the log level follow from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// The client broke the protocol, gave a wrong password, or left.
    Client,
    /// The proxy itself: a limit reached, a bug.
    Proxy,
    /// The database, or the way to it.
    Backend,
    /// The operator's configuration or secrets.
    Configuration,
}

impl Fault {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Fault::Client => "client",
            Fault::Proxy => "proxy",
            Fault::Backend => "backend",
            Fault::Configuration => "configuration",
        }
    }
}

/// A five-character SQLSTATE (PostgreSQL documentation, appendix A).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// 08000 connection_exception
    pub const CONNECTION_EXCEPTION: Self = Self(*b"08000");
    /// 08004 sqlserver_rejected_establishment_of_sqlconnection
    pub const CONNECTION_REJECTED: Self = Self(*b"08004");
    /// 08006 connection_failure
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    /// 08P01 protocol_violation
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    /// 0A000 feature_not_supported
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    /// 22023 invalid_parameter_value
    pub const INVALID_PARAMETER_VALUE: Self = Self(*b"22023");
    /// 25P03 idle_in_transaction_session_timeout
    pub const IDLE_IN_TRANSACTION_TIMEOUT: Self = Self(*b"25P03");
    /// 26000 invalid_sql_statement_name
    pub const INVALID_STATEMENT_NAME: Self = Self(*b"26000");
    /// 28000 invalid_authorization_specification
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    /// 28P01 invalid_password
    pub const INVALID_PASSWORD: Self = Self(*b"28P01");
    /// 42P05 duplicate_prepared_statement
    pub const DUPLICATE_PREPARED_STATEMENT: Self = Self(*b"42P05");
    /// 42601 syntax_error
    pub const SYNTAX_ERROR: Self = Self(*b"42601");
    /// 53300 too_many_connections
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    /// 54000 program_limit_exceeded
    pub const PROGRAM_LIMIT_EXCEEDED: Self = Self(*b"54000");
    /// 57014 query_canceled
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    /// 57P01 admin_shutdown
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    /// 57P03 cannot_connect_now
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    /// 57P05 idle_session_timeout
    pub const IDLE_SESSION_TIMEOUT: Self = Self(*b"57P05");
    /// XX000 internal_error
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");

    /// Reads a SQLSTATE; `None` unless it is five ASCII letters or digits.
    pub fn parse(code: &[u8]) -> Option<Self> {
        let code: [u8; 5] = code.try_into().ok()?;
        code.iter()
            .all(u8::is_ascii_alphanumeric)
            .then_some(Self(code))
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        // Invariant of the constructor: ASCII letters and digits only.
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error whose text a client may read: no secrets, no internals, and what to do about it.
pub trait ClientFacing {
    /// Whose fault it was.
    fn fault(&self) -> Fault;
    /// The SQLSTATE the client gets.
    fn sqlstate(&self) -> SqlState;
    /// The text the client gets.
    fn client_message(&self) -> String;
    /// What the client's owner can do about it.
    fn hint(&self) -> Option<String> {
        None
    }
}
