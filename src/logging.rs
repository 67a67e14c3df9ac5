//! Where log lines go: standard error, as text or JSON. What is logged is decided where it happens; that no secret
//! is among it is the business of `redacted`.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
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
        // It would complain on standard error, and panic where that is closed.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    match log.format {
        LogFormat::Text => {
            let fields = debug_fn(write_field).delimited(" ");
            lines.fmt_fields(fields).finish().try_init()?;
        }
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}

/// `name=value`, on one line whatever is in it: names and texts of clients and servers must not look like lines of ours.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    write!(OneLine(writer), "{value:?}")
}

/// Writes control characters as their escapes.
struct OneLine<'a, W>(&'a mut W);

impl<W: fmt::Write> fmt::Write for OneLine<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| {
            if c.is_control() {
                write!(self.0, "{}", c.escape_default())
            } else {
                self.0.write_char(c)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_can_forge_a_line() {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt()
            .with_ansi(false)
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(lines, || {
            let name = "a\n2026 INFO all\u{1b}[1m is well";
            tracing::info!(user = name, error = %name, number = 5, "client {}", name);
        });
        let bytes = written.0.lock().unwrap();
        let line = String::from_utf8_lossy(&bytes);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        let escaped = r"a\n2026 INFO all\u{1b}[1m is well";
        assert!(
            line.contains(&format!("client {escaped} user=\"{escaped}\"")),
            "{line}"
        );
        assert!(
            line.contains(&format!("error={escaped} number=5")),
            "{line}"
        );
    }

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
