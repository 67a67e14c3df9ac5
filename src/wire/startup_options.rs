//! The `options` parameter of a startup packet: command-line switches for the backend process, of which only those
//! that set a run-time parameter mean anything through a pooler.

use crate::error::{ClientFacing, Fault, SqlState};

/// What is wrong with an `options` parameter.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OptionsError {
    /// A switch that is not a setting.
    #[error(
        "command-line argument \"{0}\" in startup parameter \"options\" is not supported by pgsluice"
    )]
    Unsupported(String),
    /// A setting without `=value`, or `-c` without a setting.
    #[error("command-line argument \"{0}\" in startup parameter \"options\" requires a value")]
    NoValue(String),
}

impl ClientFacing for OptionsError {
    fn fault(&self) -> Fault {
        Fault::Client
    }

    fn sqlstate(&self) -> SqlState {
        match self {
            OptionsError::Unsupported(_) => SqlState::FEATURE_NOT_SUPPORTED,
            OptionsError::NoValue(_) => SqlState::SYNTAX_ERROR,
        }
    }

    fn client_message(&self) -> String {
        self.to_string()
    }

    fn hint(&self) -> Option<String> {
        Some("Only -c name=value and --name=value can be passed on.".into())
    }
}

/// The settings in `options`, in order.
pub fn parse(options: &str) -> Result<Vec<(String, String)>, OptionsError> {
    let mut settings = Vec::new();
    let mut arguments = split(options).into_iter();
    while let Some(argument) = arguments.next() {
        let setting = match (argument.strip_prefix("--"), argument.strip_prefix("-c")) {
            (Some(setting), _) if !setting.is_empty() => setting.to_owned(),
            (_, Some("")) => arguments.next().ok_or(OptionsError::NoValue(argument))?,
            (_, Some(setting)) => setting.to_owned(),
            _ => return Err(OptionsError::Unsupported(clip(&argument))),
        };
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| OptionsError::NoValue(clip(&setting)))?;
        // As PostgreSQL's ParseLongOption: dashes in the name stand for underscores.
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

/// Splits at white space; a backslash takes the next character literally (PostgreSQL's `pg_split_opts`).
fn split(options: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut current: Option<String> = None;
    let mut escaped = false;
    for c in options.chars() {
        if escaped {
            current.get_or_insert_default().push(c);
            escaped = false;
        } else if c == '\\' {
            current.get_or_insert_default();
            escaped = true;
        } else if matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c') {
            arguments.extend(current.take());
        } else {
            current.get_or_insert_default().push(c);
        }
    }
    arguments.extend(current);
    arguments
}

/// Enough of what a client sent to recognise it in an error.
fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_postgresql_reads_them() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("", &[]),
            ("  \t", &[]),
            ("-c geqo=off", &[("geqo", "off")]),
            ("-cgeqo=off", &[("geqo", "off")]),
            ("--geqo=off", &[("geqo", "off")]),
            (
                "  -c  a.b=1   --statement-timeout=5s ",
                &[("a.b", "1"), ("statement_timeout", "5s")],
            ),
            (r"-c search_path=a,\ b", &[("search_path", "a, b")]),
            (r"-c x=\\\\ -c y=\a", &[("x", r"\\"), ("y", "a")]),
            (r"-c x=1\", &[("x", "1")]),
            ("-c x=a=b -c y=", &[("x", "a=b"), ("y", "")]),
            ("-c a=1 -c a=2", &[("a", "1"), ("a", "2")]),
        ];
        for (text, expected) in cases {
            let settings = parse(text).unwrap();
            let settings: Vec<_> = settings.iter().map(|(n, v)| (&n[..], &v[..])).collect();
            assert_eq!(&settings[..], *expected, "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        let unsupported = |s: &str| OptionsError::Unsupported(s.into());
        let no_value = |s: &str| OptionsError::NoValue(s.into());
        let cases = [
            ("-F", unsupported("-F")),
            ("-c a=1 -d 5", unsupported("-d")),
            ("--", unsupported("--")),
            ("-", unsupported("-")),
            ("geqo=off", unsupported("geqo=off")),
            (r"\", unsupported("")),
            ("-c", no_value("-c")),
            ("-c geqo", no_value("geqo")),
            ("--geqo", no_value("geqo")),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), Err(expected), "{text:?}");
        }
        assert!(unsupported("-F").client_message().contains("\"-F\""));
    }

    #[test]
    fn an_error_quotes_a_bounded_part() {
        let error = parse(&"é".repeat(4000)).unwrap_err();
        assert!(error.to_string().len() < 300);
    }
}
