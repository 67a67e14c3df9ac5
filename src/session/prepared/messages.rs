//! Messages that name prepared statements: finding the name in a client's, and making those for backends.

use super::super::requests::NAMES_LEN_MAX;
use crate::backend::prepared::StatementId;
use crate::wire::frame::{HEADER_LEN, Header};
use bytes::{BufMut, BytesMut};

/// A message that names a statement, as far as it has been read.
#[derive(Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// Names no statement, or the unnamed one.
    No,
    /// Its name has not all come.
    Incomplete,
    /// Its name has no end within [`NAMES_LEN_MAX`].
    Endless,
    /// Parse: it must come whole.
    Parse {
        /// The statement's name.
        name: &'a [u8],
        /// What follows it.
        body: &'a [u8],
    },
    /// Bind, Describe or Close.
    Use {
        /// What stands before the name, header not included.
        before: &'a [u8],
        /// The statement's name.
        name: &'a [u8],
    },
}

/// Looks for a statement's name in the frame at the front of `bytes`.
pub fn named<'a>(header: Header, bytes: &'a [u8]) -> Named<'a> {
    let body = bytes.get(HEADER_LEN..).unwrap_or_default();
    let body = &body[..body.len().min(header.body_len)];
    let all_there = body.len() == header.body_len;
    let before_len = match (header.tag, body.first()) {
        (b'P', Some(first)) if *first != 0 => 0,
        (b'D' | b'C', Some(b'S')) => 1,
        (b'B', _) => match body.iter().position(|&byte| byte == 0) {
            Some(end) => end + 1,
            None => return Named::No, // the server's to refuse
        },
        _ => return Named::No,
    };
    let (before, rest) = body.split_at(before_len);
    let Some(end) = rest.iter().position(|&byte| byte == 0) else {
        return match all_there {
            true => Named::No,
            false if rest.len() > NAMES_LEN_MAX => Named::Endless,
            false => Named::Incomplete,
        };
    };
    let name = &rest[..end];
    match header.tag {
        _ if name.is_empty() => Named::No,
        b'P' if !all_there => Named::Incomplete,
        b'P' => Named::Parse {
            name,
            body: &rest[end + 1..],
        },
        _ => Named::Use { before, name },
    }
}

/// The Parse that prepares a statement on a backend.
pub fn parse_message(id: StatementId, body: &[u8]) -> BytesMut {
    parse_named(id.name().as_bytes(), body)
}

/// The Parse of a statement of that name.
pub fn parse_named(name: &[u8], body: &[u8]) -> BytesMut {
    let len = 4 + name.len() + 1 + body.len();
    let mut message = BytesMut::with_capacity(1 + len);
    message.put_u8(b'P');
    message.put_u32(len as u32); // at most PARSE_LEN_MAX, a name and types
    message.put_slice(name);
    message.put_u8(0);
    message.put_slice(body);
    message
}

/// The Close that takes a statement off a backend.
pub fn close_message(id: StatementId) -> BytesMut {
    close_named(id.name().as_bytes())
}

/// The Close of the statement of that name.
pub fn close_named(name: &[u8]) -> BytesMut {
    let mut message = BytesMut::with_capacity(HEADER_LEN + 2 + name.len());
    message.put_u8(b'C');
    message.put_u32(4 + 2 + name.len() as u32); // a name is short
    message.put_u8(b'S');
    message.put_slice(name);
    message.put_u8(0);
    message
}

/// The Describe of a statement on a backend.
pub fn describe_message(id: StatementId) -> BytesMut {
    let mut message = close_message(id);
    message[0] = b'D';
    message
}

/// The front of a Bind or Describe, up to the statement's name, with the name a backend knows it by.
pub fn renamed_front(header: Header, before: &[u8], name: &[u8], id: StatementId) -> BytesMut {
    let ours = id.name();
    let body_len = header.body_len - name.len() + ours.len();
    let mut message = BytesMut::with_capacity(HEADER_LEN + before.len() + ours.len() + 1);
    message.put_u8(header.tag);
    message.put_u32(body_len as u32 + 4); // its length was a u32, and a name of ours is short
    message.put_slice(before);
    message.put_slice(ours.as_bytes());
    message.put_u8(0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> (Header, Vec<u8>) {
        let mut frame = vec![tag];
        frame.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        frame.extend_from_slice(body);
        let header = Header::parse(&frame).unwrap().unwrap();
        (header, frame)
    }

    #[test]
    fn names_are_found_in_every_message_that_has_one() {
        let (header, parse) = frame(b'P', b"s1\0select 1\0\0\0");
        assert_eq!(
            named(header, &parse),
            Named::Parse {
                name: b"s1",
                body: b"select 1\0\0\0"
            }
        );
        assert_eq!(named(header, &parse[..12]), Named::Incomplete);
        let endless = [b"\0", &[b'x'; 20_000][..]].concat();
        let (header, endless) = frame(b'B', &endless);
        assert_eq!(named(header, &endless[..8000]), Named::Incomplete);
        assert_eq!(named(header, &endless[..9000]), Named::Endless);
        let (header, bind) = frame(b'B', b"portal\0s1\0\0\0\0\0\0\0");
        let used = Named::Use {
            before: b"portal\0",
            name: b"s1",
        };
        assert_eq!(named(header, &bind), used);
        assert_eq!(named(header, &bind[..15]), used);
        assert_eq!(named(header, &bind[..14]), Named::Incomplete);
        for (tag, body) in [
            (b'P', &b"\0select 1\0\0\0"[..]),
            (b'B', b"\0\0\0\0\0\0\0\0"),
            (b'D', b"Pportal\0"),
            (b'C', b"S\0"),
            (b'C', b"Sno end"),
            (b'S', b""),
            (b'Q', b"s1\0"),
        ] {
            let (header, bytes) = frame(tag, body);
            assert_eq!(named(header, &bytes), Named::No, "{body:?}");
        }
    }

    #[test]
    fn messages_for_backends_have_true_lengths() {
        let id = StatementId(7);
        let parse = parse_message(id, b"select 1\0\0\0");
        assert_eq!(
            Header::parse(&parse).unwrap().unwrap().frame_len(),
            parse.len()
        );
        let close = describe_message(id);
        assert_eq!(
            Header::parse(&close).unwrap().unwrap().frame_len(),
            close.len()
        );
        let (header, bind) = frame(b'B', b"p\0name\0rest");
        let mut renamed = renamed_front(header, b"p\0", b"name", id);
        renamed.put_slice(&bind[HEADER_LEN + 7..]);
        assert_eq!(
            Header::parse(&renamed).unwrap().unwrap().frame_len(),
            renamed.len()
        );
        assert!(renamed.ends_with(b"\0rest"));
    }
}
