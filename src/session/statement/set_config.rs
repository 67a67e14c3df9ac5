//! Reads the arguments of set_config in a text, as far as they can be read without a grammar.

const SET_CONFIG: &[u8] = b"set_config";

/// Every call sets for its transaction alone: its third argument is `true`, and its other two are literals, parameters or
/// names, so that the third is surely found.
pub(super) fn is_local(text: &[u8]) -> bool {
    memchr::memchr2_iter(b's', b'S', text).all(|at| {
        let word = text.get(at..at + SET_CONFIG.len());
        let named = word.is_some_and(|word| word.eq_ignore_ascii_case(SET_CONFIG));
        !named || has_local_arguments(&text[at + SET_CONFIG.len()..])
    })
}

fn has_local_arguments(rest: &[u8]) -> bool {
    let arguments = symbol(rest, b'(')
        .and_then(argument)
        .and_then(|rest| symbol(rest, b','))
        .and_then(argument)
        .and_then(|rest| symbol(rest, b','));
    let Some((last, rest)) = arguments.and_then(|rest| rest.trim_ascii_start().split_at_checked(4))
    else {
        return false;
    };
    last.eq_ignore_ascii_case(b"true") && symbol(rest, b')').is_some()
}

fn symbol(rest: &[u8], symbol: u8) -> Option<&[u8]> {
    rest.trim_ascii_start().strip_prefix(&[symbol])
}

/// A literal without escapes, a parameter or a name; then perhaps `::type`.
fn argument(rest: &[u8]) -> Option<&[u8]> {
    let rest = rest.trim_ascii_start();
    let rest = match rest.first()? {
        b'\'' => literal(&rest[1..])?,
        _ => some_word(rest)?,
    };
    match rest.trim_ascii_start().strip_prefix(b"::") {
        Some(typed) => some_word(typed.trim_ascii_start()),
        None => Some(rest),
    }
}

/// Up to the closing quote; one with a backslash may end elsewhere.
fn literal(text: &[u8]) -> Option<&[u8]> {
    let end = memchr::memchr2(b'\'', b'\\', text)?;
    let rest = text.get(end + 1..)?;
    match text[end] {
        b'\'' if rest.first() == Some(&b'\'') => literal(&rest[1..]),
        b'\'' => Some(rest),
        _ => None,
    }
}

fn some_word(text: &[u8]) -> Option<&[u8]> {
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.');
    let len = text.iter().take_while(|byte| part(byte)).count();
    (len > 0).then(|| &text[len..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_for_a_transaction_is_told_from_what_may_last_longer() {
        for (text, local) in [
            ("select set_config('a.b', 'x', true)", true),
            ("SELECT SET_CONFIG ( 'a.b' , $1::text , TRUE )", true),
            (
                "select pg_catalog.set_config('search_path', $1, true), set_config('role', $2, true)",
                true,
            ),
            ("select set_config('a', 'it''s', true)", true),
            ("select set_config('a', 'b', false)", false),
            ("select set_config('a', 'b', $1)", false),
            (
                "select set_config('a', 'b', true), set_config('a', 'b', false)",
                false,
            ),
            ("select set_config('a', 'b\\', true)", false),
            ("select set_config('a', f('b'), true)", false),
            ("select set_config('a', 'b', true and false)", false),
            ("select set_config('a', 'b', trueish)", false),
            ("select set_config", false),
            ("select 1", true),
        ] {
            assert_eq!(is_local(text.as_bytes()), local, "{text}");
        }
    }
}
