//! Why sessions end, and what their clients are told: enums and words, no I/O.

use super::listen::Fault as ListenFault;
use super::relay::RelayEnd;
use super::requests::Violation;
use super::roster::{Order, Phase};
use crate::error::{ClientFacing, Fault, SqlState};
use crate::wire::error_response::{ErrorMessage, Severity};

/// Why a session ended. Log text and metric label come from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// It said goodbye.
    ClientQuit,
    /// It vanished.
    ClientGone,
    /// It broke the protocol.
    ProtocolViolation,
    /// `idle_client_timeout`
    IdleTimeout,
    /// `idle_in_transaction_timeout`
    IdleInTransactionTimeout,
    /// Its database connection was lost.
    BackendLost,
    /// What it asked for at login was refused later.
    SettingsRefused,
    /// It opened a transaction in statement mode.
    StatementMode,
    /// The database connection that listened for it was lost.
    ListenerLost,
    /// More notifications waited for it than it may have.
    NotificationsOverflow,
    /// What it listens to could not be told.
    ListeningUnknown,
    /// The proxy is stopping.
    Shutdown,
}

impl CloseReason {
    /// The log text and metric label.
    pub fn label(self) -> &'static str {
        match self {
            CloseReason::ClientQuit => "client_quit",
            CloseReason::ClientGone => "client_gone",
            CloseReason::ProtocolViolation => "protocol_violation",
            CloseReason::IdleTimeout => "idle_client_timeout",
            CloseReason::IdleInTransactionTimeout => "idle_in_transaction_timeout",
            CloseReason::BackendLost => "backend_lost",
            CloseReason::SettingsRefused => "settings_refused",
            CloseReason::StatementMode => "statement_mode",
            CloseReason::ListenerLost => "listener_lost",
            CloseReason::NotificationsOverflow => "notifications_overflow",
            CloseReason::ListeningUnknown => "listening_unknown",
            CloseReason::Shutdown => "shutdown",
        }
    }
}

/// What an order means for a session without a backend.
pub(super) fn obey_idle(order: Order) -> Option<(CloseReason, ErrorMessage)> {
    match order {
        Order::Shutdown | Order::Abort => Some((CloseReason::Shutdown, stopping())),
        Order::TimedOut(Phase::Idle) => Some((CloseReason::IdleTimeout, idle_timeout())),
        Order::TimedOut(_) => None,
    }
}

/// The reason a relay's end gives, and what the client is told unless it knows already.
pub(super) fn describe(end: &RelayEnd, client_knows: bool) -> (CloseReason, Option<ErrorMessage>) {
    let fatal = |code, text: &str| Some(error_message(Severity::Fatal, code, text));
    match end {
        RelayEnd::Released | RelayEnd::Founds(_) | RelayEnd::ClientQuit => {
            (CloseReason::ClientQuit, None)
        }
        RelayEnd::ClientGone => (CloseReason::ClientGone, None),
        RelayEnd::ClientFault(fault) => violation(*fault),
        RelayEnd::BackendGone if client_knows => (CloseReason::BackendLost, None),
        RelayEnd::BackendGone => {
            let text = "the database connection was lost while it was in use; \
                        whether the last statement took effect is not known";
            (
                CloseReason::BackendLost,
                fatal(SqlState::CONNECTION_FAILURE, text),
            )
        }
        RelayEnd::BackendFault(fault) => {
            let text = format!("the database server broke the protocol: {fault}");
            (
                CloseReason::BackendLost,
                fatal(SqlState::PROTOCOL_VIOLATION, &text),
            )
        }
        RelayEnd::SettingsRefused(error) => {
            let text = format!(
                "the session's settings could not be applied: {}",
                error.message
            );
            (CloseReason::SettingsRefused, fatal(error.code, &text))
        }
        RelayEnd::Unheard(fault) => {
            let (reason, words) = unheard(fault);
            (reason, Some(words))
        }
        RelayEnd::ListeningUnknown => {
            let text = "terminating connection: it listens through pgsluice's shared listener, and \
                        what it should hear can't be told any more";
            (
                CloseReason::ListeningUnknown,
                fatal(SqlState::FEATURE_NOT_SUPPORTED, text),
            )
        }
        RelayEnd::ChannelsRefused(error) => {
            let text = format!(
                "terminating connection: its channels could not be brought to its database \
                 connection: {}",
                error.message
            );
            (CloseReason::ListeningUnknown, fatal(error.code, &text))
        }
        RelayEnd::TransactionInStatementMode => (
            CloseReason::StatementMode,
            Some(statement_mode_error(Severity::Fatal)),
        ),
    }
}

pub(super) fn error_message(severity: Severity, code: SqlState, message: &str) -> ErrorMessage {
    ErrorMessage {
        severity,
        code,
        message: message.into(),
        detail: None,
        hint: None,
    }
}

pub(super) fn violation(violation: Violation) -> (CloseReason, Option<ErrorMessage>) {
    let words = error_message(
        Severity::Fatal,
        SqlState::PROTOCOL_VIOLATION,
        &violation.to_string(),
    );
    (CloseReason::ProtocolViolation, Some(words))
}

/// A session that can't be told all it should hear is told that.
pub(super) fn unheard(fault: &ListenFault) -> (CloseReason, ErrorMessage) {
    match fault {
        ListenFault::Overflow => {
            let text = "terminating connection: more notifications wait for it than pgsluice keeps";
            let words = ErrorMessage {
                hint: Some("Read notifications as they come.".into()),
                ..error_message(Severity::Fatal, SqlState::PROGRAM_LIMIT_EXCEEDED, text)
            };
            (CloseReason::NotificationsOverflow, words)
        }
        ListenFault::Lost(cause) => {
            let text = format!(
                "terminating connection: the database connection that listened for it was lost: {cause}"
            );
            let words = error_message(Severity::Fatal, SqlState::CONNECTION_FAILURE, &text);
            (CloseReason::ListenerLost, words)
        }
    }
}

pub(super) fn stopping() -> ErrorMessage {
    let text = "terminating connection due to administrator command";
    error_message(Severity::Fatal, SqlState::ADMIN_SHUTDOWN, text)
}

pub(super) fn idle_timeout() -> ErrorMessage {
    let text = "terminating connection due to idle-session timeout";
    error_message(Severity::Fatal, SqlState::IDLE_SESSION_TIMEOUT, text)
}

pub(super) fn statement_mode_error(severity: Severity) -> ErrorMessage {
    ErrorMessage {
        hint: Some("Set the pool's mode to \"transaction\", or send single statements.".into()),
        ..error_message(
            severity,
            SqlState::FEATURE_NOT_SUPPORTED,
            "transaction blocks are not allowed: the pool's mode is \"statement\"",
        )
    }
}

impl ClientFacing for Violation {
    fn fault(&self) -> Fault {
        Fault::Client
    }

    fn sqlstate(&self) -> SqlState {
        SqlState::PROTOCOL_VIOLATION
    }

    fn client_message(&self) -> String {
        self.to_string()
    }
}
