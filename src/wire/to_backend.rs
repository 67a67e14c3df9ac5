//! Messages the proxy itself sends to servers. Each function appends one message to `buf`.
//!
//! Layouts: PostgreSQL documentation, "Message Formats". Texts with a zero byte can't be sent; they end at it.

use bytes::{BufMut, BytesMut};

/// Protocol 3.0, as a StartupMessage says it.
const PROTOCOL_3_0: u32 = 3 << 16;

/// The "protocol" of an SSLRequest: 1234.5679.
const SSL_REQUEST: u32 = (1234 << 16) | 5679;

/// The "protocol" of a CancelRequest: 1234.5678.
const CANCEL_REQUEST: u32 = (1234 << 16) | 5678;

/// A message without a tag: length, then what `body` writes.
fn untagged(buf: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = buf.len();
    buf.put_u32(0);
    body(buf);
    let len = (buf.len() - start) as u32; // a few KB at most, or a query of ours
    buf[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

fn tagged(buf: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    buf.put_u8(tag);
    untagged(buf, body);
}

fn text(buf: &mut BytesMut, text: &[u8]) {
    let end = text
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(text.len());
    buf.put_slice(&text[..end]);
    buf.put_u8(0);
}

/// StartupMessage of protocol 3.0.
pub fn startup(buf: &mut BytesMut, user: &str, database: &str) {
    untagged(buf, |buf| {
        buf.put_u32(PROTOCOL_3_0);
        for (name, value) in [("user", user), ("database", database)] {
            text(buf, name.as_bytes());
            text(buf, value.as_bytes());
        }
        buf.put_u8(0);
    });
}

/// Flush
pub fn flush(buf: &mut BytesMut) {
    tagged(buf, b'H', |_| {});
}

/// A statement without parameters, carried out by the extended protocol under a name of its own: Close of what an error
/// may have left of that name, Parse, Bind, Execute, Close of the portal, Close of the statement.
pub fn own_statement(buf: &mut BytesMut, name: &str, sql: &[u8]) {
    let name = name.as_bytes();
    let close = |buf: &mut BytesMut, kind: u8| {
        tagged(buf, b'C', |buf| {
            buf.put_u8(kind);
            text(buf, name);
        });
    };
    close(buf, b'S');
    tagged(buf, b'P', |buf| {
        text(buf, name);
        text(buf, sql);
        buf.put_u16(0);
    });
    tagged(buf, b'B', |buf| {
        text(buf, name);
        text(buf, name);
        // No formats of parameters, no parameters, no formats of results.
        buf.put_bytes(0, 6);
    });
    tagged(buf, b'E', |buf| {
        text(buf, name);
        buf.put_u32(0);
    });
    close(buf, b'P');
    close(buf, b'S');
}

/// SSLRequest
pub fn ssl_request(buf: &mut BytesMut) {
    untagged(buf, |buf| buf.put_u32(SSL_REQUEST));
}

/// CancelRequest
pub fn cancel_request(buf: &mut BytesMut, pid: u32, secret: &[u8]) {
    untagged(buf, |buf| {
        buf.put_u32(CANCEL_REQUEST);
        buf.put_u32(pid);
        buf.put_slice(secret);
    });
}

/// PasswordMessage: a cleartext or md5 password.
pub fn password(buf: &mut BytesMut, password: &[u8]) {
    tagged(buf, b'p', |buf| text(buf, password));
}

/// SASLInitialResponse
pub fn sasl_initial(buf: &mut BytesMut, mechanism: &str, data: &[u8]) {
    tagged(buf, b'p', |buf| {
        text(buf, mechanism.as_bytes());
        buf.put_u32(data.len() as u32);
        buf.put_slice(data);
    });
}

/// SASLResponse
pub fn sasl_response(buf: &mut BytesMut, data: &[u8]) {
    tagged(buf, b'p', |buf| buf.put_slice(data));
}

/// Query
pub fn query(buf: &mut BytesMut, sql: &[u8]) {
    tagged(buf, b'Q', |buf| text(buf, sql));
}

/// Parse, Bind and Execute of a statement without results, and Close of both: all under one name.
pub fn run_within_batch(buf: &mut BytesMut, name: &[u8], sql: &[u8]) {
    tagged(buf, b'P', |buf| {
        text(buf, name);
        text(buf, sql);
        buf.put_u16(0);
    });
    tagged(buf, b'B', |buf| {
        text(buf, name);
        text(buf, name);
        buf.put_slice(&[0; 6]); // no formats, no parameters, no result formats
    });
    tagged(buf, b'E', |buf| {
        text(buf, name);
        buf.put_u32(0);
    });
    for kind in [b'P', b'S'] {
        tagged(buf, b'C', |buf| {
            buf.put_u8(kind);
            text(buf, name);
        });
    }
}

/// Sync
pub fn sync(buf: &mut BytesMut) {
    tagged(buf, b'S', |_| {});
}

/// Terminate
pub fn terminate(buf: &mut BytesMut) {
    tagged(buf, b'X', |_| {});
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut buf = BytesMut::new();
        write(&mut buf);
        buf.to_vec()
    }

    #[test]
    fn messages_are_laid_out_as_documented() {
        let cases: [(Vec<u8>, &[u8]); 7] = [
            (
                written(|buf| query(buf, b"select 1")),
                b"Q\0\0\0\x0dselect 1\0",
            ),
            (written(sync), b"S\0\0\0\x04"),
            (written(terminate), b"X\0\0\0\x04"),
            (written(ssl_request), b"\0\0\0\x08\x04\xd2\x16\x2f"),
            (
                written(|buf| cancel_request(buf, 7, b"abcd")),
                b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07abcd",
            ),
            (
                written(|buf| startup(buf, "u", "d")),
                b"\0\0\0\x1b\0\x03\0\0user\0u\0database\0d\0\0",
            ),
            (
                written(|buf| sasl_initial(buf, "SCRAM-SHA-256", b"n,,")),
                b"p\0\0\0\x19SCRAM-SHA-256\0\0\0\0\x03n,,",
            ),
        ];
        for (got, expected) in cases {
            assert_eq!(got, expected, "{:?}", String::from_utf8_lossy(&got));
        }
    }

    #[test]
    fn a_zero_byte_cannot_smuggle_a_second_field() {
        assert_eq!(written(|buf| query(buf, b"a\0b")), b"Q\0\0\0\x06a\0");
    }
}
