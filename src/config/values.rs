//! One TOML value → one typed value, or what is wrong with it. Values are never shown unless they are one word
//! of a fixed choice, an address or a duration: a password pasted under the wrong key must not reach the screen.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Value;

/// Why a value can't be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misread {
    /// Not of the type asked for; the text says what to write.
    Type(&'static str),
    /// The right type, but not a value that can be used.
    Value(String),
    /// A list with bad entries: index and text.
    Entries(Vec<(usize, String)>),
}

pub(super) type Reading<T> = Result<T, Misread>;

/// Longest text a key may hold; only `init_query` comes near.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Any text but the empty one.
pub(super) fn text(value: &Value) -> Reading<String> {
    let text = value.as_str().ok_or(Misread::Type("a string in quotes"))?;
    if text.trim().is_empty() {
        return Err(bad("is empty; give a value or leave the key out"));
    }
    if text.contains('\0') {
        return Err(bad("holds a NUL byte; remove it"));
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(bad(format!(
            "is longer than {TEXT_BYTES_MAX} bytes; shorten it"
        )));
    }
    Ok(text.into())
}

/// The name of a role, for lists in which a wildcard would be dangerous.
pub(super) fn role_by_name(value: &Value) -> Reading<String> {
    let name = text(value)?;
    if name.contains('*') {
        return Err(bad("holds a wildcard; name each role"));
    }
    Ok(name)
}

/// A name that goes into logs and metric labels.
pub(super) fn label(value: &Value) -> Reading<String> {
    const BYTES_MAX: usize = 63;
    let name = text(value)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if name.len() > BYTES_MAX || !name.bytes().all(plain) {
        return Err(bad("is not a plain name; use 1 to 63 of A-Z a-z 0-9 _ - ."));
    }
    Ok(name)
}

/// `true` or `false`.
pub(super) fn flag(value: &Value) -> Reading<bool> {
    value.as_bool().ok_or(Misread::Type("true or false"))
}

/// A whole number within limits.
pub(super) fn whole<T: TryFrom<i64>>(range: RangeInclusive<i64>) -> impl Fn(&Value) -> Reading<T> {
    move |value| {
        let number = value.as_integer().ok_or(Misread::Type("a whole number"))?;
        range
            .contains(&number)
            .then(|| T::try_from(number).ok())
            .flatten()
            .ok_or_else(|| {
                bad(format!(
                    "is {number}; use {} to {}",
                    range.start(),
                    range.end()
                ))
            })
    }
}

/// A whole number is seconds; a string has a unit.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value) -> Reading<Duration> {
    const WRITE: &str =
        r#"seconds as a whole number, or a string with a unit (ms, s, m, h, d) such as "15s""#;
    move |value| {
        let length = match value {
            Value::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
            Value::String(text) => Some(parse_duration(text).ok_or(Misread::Type(WRITE))?),
            _ => return Err(Misread::Type(WRITE)),
        };
        length
            .filter(|length| range.contains(length))
            .ok_or_else(|| {
                let (least, most) = (human(*range.start()), human(*range.end()));
                bad(format!("is out of range; use {least} to {most}"))
            })
    }
}

/// A duration within limits, or zero for none.
pub(super) fn duration_or_off(
    range: RangeInclusive<Duration>,
) -> impl Fn(&Value) -> Reading<Duration> {
    let read = duration(Duration::ZERO..=Duration::MAX);
    move |value| {
        let length = read(value)?;
        if length.is_zero() || range.contains(&length) {
            return Ok(length);
        }
        let (least, most) = (human(*range.start()), human(*range.end()));
        Err(bad(format!(
            "is out of range; use {least} to {most}, or 0 for none"
        )))
    }
}

/// `15s`, `500ms`, `24h`.
fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let seconds = match unit.trim_start() {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// A duration as an operator would write it.
pub(super) fn human(length: Duration) -> String {
    let seconds = length.as_secs();
    match length.subsec_millis() {
        0 if seconds >= 3600 && seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        0 => format!("{seconds}s"),
        _ => format!("{}ms", length.as_millis()),
    }
}

/// One word of a fixed choice.
pub(super) fn one_of<T: Copy>(
    choice: &'static [(&'static str, T)],
) -> impl Fn(&Value) -> Reading<T> {
    move |value| {
        let word = value.as_str().ok_or(Misread::Type("a string in quotes"))?;
        choice
            .iter()
            .find(|(name, _)| *name == word)
            .map(|(_, meaning)| *meaning)
            .ok_or_else(|| {
                let names: Vec<_> = choice.iter().map(|(name, _)| *name).collect();
                bad(format!(
                    "is none of the choices; use one of: {}",
                    names.join(", ")
                ))
            })
    }
}

/// An IP address with a port.
pub(super) fn socket_address(value: &Value) -> Reading<SocketAddr> {
    let text = value.as_str().ok_or(Misread::Type("a string in quotes"))?;
    text.trim().parse().map_err(|_| {
        bad("is not an address with a port; write \"127.0.0.1:6432\" or \"[::1]:6432\" (names are not looked up)")
    })
}

/// An IP address with a port, or nothing (`""` or `"off"`).
pub(super) fn socket_address_or_off(value: &Value) -> Reading<Option<SocketAddr>> {
    match value.as_str().map(str::trim) {
        Some("" | "off") => Ok(None),
        _ => socket_address(value).map(Some),
    }
}

/// Permission bits as octal digits in a string: TOML's bare 777 would be decimal.
pub(super) fn permission_bits(value: &Value) -> Reading<u32> {
    const WRITE: &str = r#"octal digits in quotes, such as "0770""#;
    let text = value.as_str().ok_or(Misread::Type(WRITE))?;
    let octal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let bits = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    bits.filter(|bits| *bits <= 0o777)
        .ok_or_else(|| bad(format!("is not a file mode; write {WRITE}")))
}

/// Each entry by the reader given; every bad entry is told.
pub(super) fn list<T>(read: impl Fn(&Value) -> Reading<T>) -> impl Fn(&Value) -> Reading<Vec<T>> {
    move |value| {
        let entries = value
            .as_array()
            .ok_or(Misread::Type("a list in brackets"))?;
        let (mut good, mut faults) = (Vec::new(), Vec::new());
        for (index, entry) in entries.iter().enumerate() {
            match read(entry) {
                Ok(entry) => good.push(entry),
                Err(misread) => faults.push((index, misread.text(entry))),
            }
        }
        if faults.is_empty() {
            Ok(good)
        } else {
            Err(Misread::Entries(faults))
        }
    }
}

/// A table, read later key by key.
pub(super) fn table(value: &Value) -> Reading<toml::Table> {
    value.as_table().cloned().ok_or(Misread::Type("a table"))
}

fn bad(text: impl Into<String>) -> Misread {
    Misread::Value(text.into())
}

impl Misread {
    /// The fault's text for a value that is not a list.
    pub(super) fn text(self, value: &Value) -> String {
        match self {
            Misread::Type(write) if value.is_str() && write.contains("string") => {
                format!("can't be read; write {write}")
            }
            Misread::Type(write) => format!("is {}; write {write}", kind(value)),
            Misread::Value(text) => text,
            Misread::Entries(entries) => entries
                .into_iter()
                .map(|(_, text)| text)
                .collect::<Vec<_>>()
                .join(" / "),
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("15", Some(Duration::from_secs(15))),
            ("0", Some(Duration::ZERO)),
            ("'500ms'", Some(Duration::from_millis(500))),
            ("'15 s'", Some(Duration::from_secs(15))),
            ("'5m'", Some(Duration::from_secs(300))),
            ("'24h'", Some(Duration::from_secs(86_400))),
            ("'1d'", Some(Duration::from_secs(86_400))),
            ("'2d'", None),
            ("86401", None),
            ("-1", None),
            ("1.5", None),
            ("'15'", None),
            ("'s'", None),
            ("'1h30m'", None),
            ("'ä'", None),
            ("'99999999999999999999s'", None),
            ("'18446744073709551615d'", None),
            ("true", None),
        ];
        let read = duration(Duration::ZERO..=Duration::from_secs(86_400));
        for (written, expected) in cases {
            assert_eq!(read(&written.parse().unwrap()).ok(), expected, "{written}");
        }
    }

    #[test]
    fn a_duration_that_may_be_off() {
        let second = Duration::from_secs(1);
        let read = duration_or_off(second..=second * 9);
        for (written, expected) in [
            ("0", Some(Duration::ZERO)),
            ("'999ms'", None),
            ("1", Some(second)),
            ("'9s'", Some(second * 9)),
            ("10", None),
        ] {
            assert_eq!(read(&written.parse().unwrap()).ok(), expected, "{written}");
        }
    }

    #[test]
    fn permission_bits_are_octal() {
        let cases = [
            ("'0777'", Some(0o777)),
            ("'660'", Some(0o660)),
            ("'1777'", None),
            ("'08'", None),
            ("'+7'", None),
            ("777", None),
        ];
        for (written, expected) in cases {
            assert_eq!(
                permission_bits(&written.parse().unwrap()).ok(),
                expected,
                "{written}"
            );
        }
    }

    #[test]
    fn whole_numbers_keep_their_limits() {
        let read = whole::<u8>(0..=300);
        for (written, expected) in [
            ("0", Some(0)),
            ("255", Some(255)),
            ("256", None),
            ("-1", None),
            ("'1'", None),
        ] {
            assert_eq!(read(&written.parse().unwrap()).ok(), expected, "{written}");
        }
    }
}
