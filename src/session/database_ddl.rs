//! CREATE, ALTER and DROP DATABASE. PostgreSQL refuses most of them while somebody is connected to the database, and a
//! client that has left is connected no more: the pool must not be, either. The server waits five seconds for
//! connections to end (`CountOtherDBBackends`), so to close them in the same moment is early enough.

use crate::wire::frame::{HEADER_LEN, Header};

/// What has come of a Query or Parse, if its text begins so. A session that holds a backend already is not looked at.
pub(super) fn begins(unread: &[u8]) -> Option<&[u8]> {
    let header = Header::parse(unread).ok()??;
    let frame = &unread[..unread.len().min(header.frame_len())];
    let body = frame.get(HEADER_LEN..)?;
    let text = match header.tag {
        b'Q' => body,
        b'P' => &body[body.iter().position(|&byte| byte == 0)? + 1..],
        _ => return None,
    };
    let (verb, rest) = word(text);
    if !is_one_of(verb, &["create", "alter", "drop"]) {
        return None;
    }
    is_one_of(word(rest).0, &["database"]).then_some(frame)
}

fn is_one_of(word: &[u8], keywords: &[&str]) -> bool {
    keywords
        .iter()
        .any(|keyword| word.eq_ignore_ascii_case(keyword.as_bytes()))
}

/// The first word, behind blanks and comments, and what follows it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = skip_blanks(text);
    let end = text.iter().take_while(|byte| byte.is_ascii_alphabetic());
    text.split_at(end.count())
}

fn skip_blanks(mut text: &[u8]) -> &[u8] {
    loop {
        text = text.trim_ascii_start();
        let end: &[u8] = match text {
            [b'-', b'-', ..] => b"\n",
            [b'/', b'*', ..] => b"*/",
            _ => return text,
        };
        match text.windows(end.len()).position(|found| found == end) {
            Some(at) => text = &text[at + end.len()..],
            None => return b"",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::begins;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    #[test]
    fn the_first_two_words_tell() {
        for text in [
            "DROP DATABASE x\0",
            " drop\n\tdatabase if exists x\0",
            "/* why */ -- who\nALTER DATABASE x RENAME TO y\0",
            "create/**/database y template x\0",
        ] {
            let query = message(b'Q', text.as_bytes());
            assert_eq!(begins(&query), Some(&query[..]), "{text}");
            let parse = message(b'P', format!("name\0{text}\0\0").as_bytes());
            assert_eq!(begins(&parse), Some(&parse[..]), "{text}");
        }
    }

    #[test]
    fn other_texts_are_none() {
        for text in [
            "SELECT 1",
            "DROP TABLE database",
            "-- DROP DATABASE x",
            "dropdatabase x",
            "/*",
            "",
        ] {
            assert_eq!(begins(&message(b'Q', text.as_bytes())), None, "{text}");
        }
        assert_eq!(begins(&message(b'B', b"drop database x\0")), None);
        assert_eq!(begins(b"Q\0"), None);
    }

    #[test]
    fn what_follows_the_message_is_not_read() {
        let mut two = message(b'Q', b"drop database x\0");
        let first = two.len();
        two.extend(message(b'Q', b"select 'y'\0"));
        assert_eq!(begins(&two), Some(&two[..first]));
    }
}
