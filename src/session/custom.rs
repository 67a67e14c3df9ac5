//! Names of custom run-time parameters (`app.tenant`): no view of the server lists them (they are GUC_NO_SHOW_ALL,
//! src/backend/utils/misc/guc.c, `add_placeholder_variable`), so a survey must ask for each by its name. Names are taken
//! from the bytes of messages that change parameters: any dotted word may be one, and asking for one that is none costs
//! little. Pure: no I/O.

/// Names kept of one message; more dotted words than this are not parameters.
const NAMES_MAX: usize = 32;

/// The longest name looked at.
const NAME_LEN_MAX: usize = 128;

/// Dotted words in a message's bytes, in lower case, each once.
pub fn dotted_names(bytes: &[u8]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for word in bytes.split(|&byte| !is_word(byte)) {
        let dotted = word.len() <= NAME_LEN_MAX && word.split(|&byte| byte == b'.').count() > 1;
        if names.len() >= NAMES_MAX || !dotted || !word.split(|&byte| byte == b'.').all(is_part) {
            continue;
        }
        if let Ok(name) = std::str::from_utf8(word) {
            let name = name.to_ascii_lowercase();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// Every name that the text sets by set_config stands in it: as a literal, or as a parameter, whose value comes by a Bind
/// that is looked at, too. `calls`: it may be a CALL, whose procedure nobody has read.
pub fn is_sure(text: &[u8], calls: bool) -> bool {
    if calls && words(text).any(|word| word.eq_ignore_ascii_case(b"call")) {
        return false;
    }
    let found = memchr::memchr2_iter(b's', b'S', text).filter(|&at| {
        let word = text.get(at..at + SET_CONFIG.len());
        word.is_some_and(|word| word.eq_ignore_ascii_case(SET_CONFIG))
    });
    found
        .into_iter()
        .all(|at| has_plain_argument(&text[at + SET_CONFIG.len()..]))
}

const SET_CONFIG: &[u8] = b"set_config";

/// The word stands in the text, in any case.
pub fn has_word(text: &[u8], wanted: &[u8]) -> bool {
    words(text).any(|word| word.eq_ignore_ascii_case(wanted))
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| !is_word(byte))
}

/// `( 'literal',` or `( $1,`
fn has_plain_argument(rest: &[u8]) -> bool {
    let rest = rest
        .trim_ascii_start()
        .strip_prefix(b"(")
        .unwrap_or_default();
    let rest = rest.trim_ascii_start();
    let after = match rest.split_first() {
        Some((b'\'', literal)) => memchr::memchr(b'\'', literal).map(|end| &literal[end + 1..]),
        Some((b'$', number)) => {
            let digits = number
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count();
            (digits > 0).then(|| &number[digits..])
        }
        _ => None,
    };
    // A parameter may have its type written behind it.
    let after = after.map(|after| match after.strip_prefix(b"::") {
        Some(typed) => {
            let len = typed.iter().take_while(|&&byte| is_word(byte)).count();
            &typed[len..]
        }
        None => after,
    });
    after.is_some_and(|after| after.trim_ascii_start().first() == Some(&b','))
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.') || byte >= 0x80
}

fn is_part(part: &[u8]) -> bool {
    part.first()
        .is_some_and(|first| !first.is_ascii_digit() && *first != b'$')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_made_up_on_the_way_are_not_sure() {
        for (text, calls, sure) in [
            ("select set_config('a.b', 'x', false)", false, true),
            ("select SET_CONFIG( $1, $2, true)", false, true),
            ("select set_config($1::text, $2, true)", false, true),
            ("select set_config('a.'||'b', 'x', false)", false, false),
            ("select set_config(name, 'x', false) from t", false, false),
            ("set a.b = 1", false, true),
            ("call tenant('x')", true, false),
            (
                "do $$ begin perform set_config('a.b', 'x', false); end $$",
                true,
                true,
            ),
            ("set search_path = callcenter", true, true),
        ] {
            assert_eq!(is_sure(text.as_bytes(), calls), sure, "{text}");
        }
    }

    #[test]
    fn dotted_words_are_found_wherever_they_stand() {
        for (bytes, expected) in [
            (&b"set App.Tenant = 'x'"[..], &["app.tenant"][..]),
            (b"select set_config('a.b', '1.5', false)", &["a.b"]),
            (b"\0\0\0\x03a.b\0\0\0\x011", &["a.b"]),
            (b"set a.b=1; set a.b=2; set c.d.e=3", &["a.b", "c.d.e"]),
            (b"set work_mem = 1; select .5, 1.5, a., .b", &[]),
        ] {
            assert_eq!(
                dotted_names(bytes),
                expected,
                "{:?}",
                bytes.escape_ascii().to_string()
            );
        }
    }
}
