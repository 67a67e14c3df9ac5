//! Whether the meaning of a text depends on when, or under which settings, it is prepared: the server reads literals once,
//! at Parse. Pure: no I/O.

/// Words that become a date or a time when the text is prepared, and stay that.
const MOMENTS: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];

/// There may be a literal: settings decide how it is read.
pub fn has_literal(text: &[u8]) -> bool {
    quotes(text).next().is_some()
}

/// A literal may name the moment at which the text is prepared.
pub fn names_a_moment(text: &[u8]) -> bool {
    quotes(text).any(|literal| {
        let literal = literal.trim_ascii_start();
        MOMENTS.iter().any(|moment| {
            let Some((word, rest)) = literal.split_at_checked(moment.len()) else {
                return false;
            };
            let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
            word.eq_ignore_ascii_case(moment) && !rest.first().is_some_and(goes_on)
        })
    })
}

/// What follows each quote, single or of dollars. Quotes that end a literal are among them: they do no harm.
fn quotes(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    memchr::memchr2_iter(b'\'', b'$', text).filter_map(|at| {
        let rest = &text[at + 1..];
        match (text[at], rest.first()) {
            (b'$', Some(b'0'..=b'9')) => None, // a parameter
            _ => Some(rest),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_moments_are_found() {
        for (text, literal, moment) in [
            ("select $1, a.b", false, false),
            ("select 'x'", true, false),
            ("select $$x$$", true, false),
            ("select 'now'::timestamp", true, true),
            ("select ' Today 10:00'::timestamp", true, true),
            ("select $$now$$::timestamp", true, true),
            ("select 'nowhere', 'today_', 'tomorrows'", true, false),
            ("select now()", false, false),
        ] {
            assert_eq!(has_literal(text.as_bytes()), literal, "{text}");
            assert_eq!(names_a_moment(text.as_bytes()), moment, "{text}");
        }
    }
}
