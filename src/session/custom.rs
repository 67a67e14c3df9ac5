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
