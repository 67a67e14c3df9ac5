//! SQL's `DEALLOCATE [PREPARE] name`, alone in its message: which name it means, and the message that means ours. Pure: no
//! I/O.

use super::prepared::Name;
use crate::backend::prepared::StatementId;
use bytes::{BufMut, BytesMut};

const DEALLOCATE: &[u8] = b"deallocate";

/// The text may be one: not all of it may have come.
pub fn begins_deallocate(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let come = text.len().min(DEALLOCATE.len());
    come > 0 && text[..come].eq_ignore_ascii_case(&DEALLOCATE[..come])
}

/// The name that a text deallocates, if it does that and nothing else. `ALL` is no name; comments are not looked through.
pub fn deallocated(text: &[u8]) -> Option<Name> {
    let rest = word(text, DEALLOCATE)?;
    let rest = word(rest, b"prepare").unwrap_or(rest).trim_ascii();
    let rest = rest.strip_suffix(b";").unwrap_or(rest).trim_ascii();
    match rest.strip_prefix(b"\"") {
        Some(quoted) => {
            let inner = quoted.strip_suffix(b"\"")?;
            let name = inner.split(|&byte| byte == b'"').collect::<Vec<_>>();
            // A quote inside is doubled: every second part between quotes is empty.
            let doubled = name.iter().skip(1).step_by(2).all(|part| part.is_empty());
            let odd = name.len() % 2 == 1;
            (doubled && odd).then(|| unquoted(inner))
        }
        None => {
            let letter = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_' || *byte >= 0x80;
            let is_name = rest.first().is_some_and(letter)
                && rest
                    .iter()
                    .all(|byte| letter(byte) || byte.is_ascii_digit() || *byte == b'$');
            let name = rest.to_ascii_lowercase();
            (is_name && name != b"all").then(|| name.into())
        }
    }
}

fn unquoted(inner: &[u8]) -> Name {
    let mut name = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        name.push(byte);
        if byte == b'"' {
            bytes.next();
        }
    }
    name.into()
}

/// What follows a keyword, which ends with white space or a quote.
fn word<'a>(text: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (first, rest) = text.trim_ascii_start().split_at_checked(keyword.len())?;
    let ends = rest
        .first()
        .is_some_and(|byte| byte.is_ascii_whitespace() || *byte == b'"');
    (ends && first.eq_ignore_ascii_case(keyword)).then_some(rest)
}

/// The Query, or the Parse without a name, that deallocates a shared statement.
pub fn deallocate_message(tag: u8, id: StatementId) -> BytesMut {
    let text = format!("DEALLOCATE {id}");
    let (front, rest): (&[u8], &[u8]) = match tag {
        b'P' => (b"\0", b"\0\0\0"),
        _ => (b"", b"\0"),
    };
    let body_len = front.len() + text.len() + rest.len();
    let mut message = BytesMut::with_capacity(5 + body_len);
    message.put_u8(tag);
    message.put_u32(4 + body_len as u32); // a few dozen bytes
    message.put_slice(front);
    message.put_slice(text.as_bytes());
    message.put_slice(rest);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_read_as_postgresql_reads_it() {
        for (text, name) in [
            ("DEALLOCATE s1", Some("s1")),
            ("deallocate prepare S_1 ;", Some("s_1")),
            (" DEALLOCATE \"_pg3_0\"", Some("_pg3_0")),
            ("deallocate\"X\"", Some("X")),
            ("deallocate \"a\"\"b\"", Some("a\"b")),
            ("deallocate prepare", Some("prepare")),
            ("DEALLOCATE ALL", None),
            ("DEALLOCATE PREPARE ALL", None),
            ("deallocate \"a\"b\"", None),
            ("deallocate a b", None),
            ("deallocate a; select 1", None),
            ("deallocates a", None),
            ("select 1", None),
            ("", None),
        ] {
            let found = deallocated(text.as_bytes());
            assert_eq!(found.as_deref(), name.map(str::as_bytes), "{text}");
        }
    }

    #[test]
    fn it_shows_in_its_first_bytes() {
        for (text, begins) in [
            ("dea", true),
            ("\n DEALLOCATE x", true),
            ("", false),
            ("del", false),
        ] {
            assert_eq!(begins_deallocate(text.as_bytes()), begins, "{text}");
        }
    }
}
