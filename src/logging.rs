//! Where log lines go: standard error, as text or JSON. What is logged is decided where it happens; that no secret
//! is among it is the business of `redacted`.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter can't be read; `config::load` refuses such a one.
    #[error("log.level: is not a log filter; use a level such as info")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// There can be one logger in a process.
    #[error("logging was already set up")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up logging for the whole process; once.
pub fn init(log: &Log) -> Result<(), LoggingError> {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&log.level)?)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match log.format {
        LogFormat::Text => lines.finish().try_init()?,
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_and_a_second_logger_are_errors() {
        let log = |level: &str, format| Log {
            level: level.into(),
            format,
        };
        let bad = init(&log("pgsluice=loud", LogFormat::Text));
        assert!(matches!(bad, Err(LoggingError::Filter(_))), "{bad:?}");
        init(&log("off", LogFormat::Json)).unwrap();
        let second = init(&log("off", LogFormat::Text));
        assert!(matches!(second, Err(LoggingError::Twice(_))), "{second:?}");
    }
}
