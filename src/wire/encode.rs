//! Messages the proxy itself sends to clients, each appended to a buffer.
//!
//! Written byte by byte: pgwire's types own their strings and hold values as UTF-8, while a server's parameter values
//! are bytes in whatever encoding the client chose.

use super::startup::ProtocolVersion;
use bytes::{BufMut, BytesMut};

/// The client is in.
pub fn authentication_ok(out: &mut BytesMut) {
    message(out, b'R', |out| out.put_u32(0));
}

/// Asks for the password as it is.
pub fn authentication_cleartext(out: &mut BytesMut) {
    message(out, b'R', |out| out.put_u32(3));
}

/// Asks for the password hashed with `salt`.
pub fn authentication_md5(out: &mut BytesMut, salt: [u8; 4]) {
    message(out, b'R', |out| {
        out.put_u32(5);
        out.put_slice(&salt);
    });
}

/// Offers SASL mechanisms, the best first.
pub fn authentication_sasl(out: &mut BytesMut, mechanisms: &[&str]) {
    message(out, b'R', |out| {
        out.put_u32(10);
        mechanisms
            .iter()
            .for_each(|mechanism| text(out, mechanism.as_bytes()));
        out.put_u8(0);
    });
}

/// The next data of a SASL exchange.
pub fn sasl_continue(out: &mut BytesMut, data: &[u8]) {
    message(out, b'R', |out| {
        out.put_u32(11);
        out.put_slice(data);
    });
}

/// The last data of a SASL exchange.
pub fn sasl_final(out: &mut BytesMut, data: &[u8]) {
    message(out, b'R', |out| {
        out.put_u32(12);
        out.put_slice(data);
    });
}

/// A run-time parameter's value.
pub fn parameter_status(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    message(out, b'S', |out| {
        text(out, name);
        text(out, value);
    });
}

/// What the client needs to cancel its queries. The secret is four bytes, or up to 256 where
/// [`ProtocolVersion::has_long_cancel_keys`].
pub fn backend_key_data(out: &mut BytesMut, pid: u32, secret: &[u8]) {
    message(out, b'K', |out| {
        out.put_u32(pid);
        out.put_slice(secret);
    });
}

/// The server waits for the next query; `status` is `I`, `T` or `E`.
pub fn ready_for_query(out: &mut BytesMut, status: u8) {
    message(out, b'Z', |out| out.put_u8(status));
}

/// What the client asked for and does not get. The version is sent whole, as PostgreSQL does, not as its minor alone.
pub fn negotiate_protocol_version(
    out: &mut BytesMut,
    version: ProtocolVersion,
    unknown_options: &[String],
) {
    message(out, b'v', |out| {
        out.put_u16(version.major);
        out.put_u16(version.minor);
        out.put_u32(unknown_options.len() as u32);
        unknown_options
            .iter()
            .for_each(|name| text(out, name.as_bytes()));
    });
}

/// Appends a whole message: the tag, the length once the body is known, the body.
pub(super) fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let start = out.len();
    out.put_u32(0);
    body(out);
    let len = (out.len() - start) as u32;
    // In range: the four bytes were put above.
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

/// Appends a text ended by NUL. A NUL inside would end it early and shift what follows, so it is left out.
pub(super) fn text(out: &mut BytesMut, text: &[u8]) {
    out.extend(text.iter().filter(|&&byte| byte != 0));
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_documented_bytes() {
        let mut out = BytesMut::new();
        authentication_ok(&mut out);
        authentication_cleartext(&mut out);
        authentication_md5(&mut out, [1, 2, 3, 4]);
        authentication_sasl(&mut out, &["A", "B-C"]);
        sasl_continue(&mut out, b"r=x");
        sasl_final(&mut out, b"v=y");
        parameter_status(&mut out, b"TimeZone", b"\xe9\0!");
        backend_key_data(&mut out, 258, b"\0\0\0\x07");
        ready_for_query(&mut out, b'I');
        let version = ProtocolVersion { major: 3, minor: 2 };
        negotiate_protocol_version(&mut out, version, &["_pq_.a".into(), "_pq_.b".into()]);
        let expected: &[&[u8]] = &[
            b"R\0\0\0\x08\0\0\0\0",
            b"R\0\0\0\x08\0\0\0\x03",
            b"R\0\0\0\x0c\0\0\0\x05\x01\x02\x03\x04",
            b"R\0\0\0\x0f\0\0\0\x0aA\0B-C\0\0",
            b"R\0\0\0\x0b\0\0\0\x0br=x",
            b"R\0\0\0\x0b\0\0\0\x0cv=y",
            b"S\0\0\0\x10TimeZone\0\xe9!\0",
            b"K\0\0\0\x0c\0\0\x01\x02\0\0\0\x07",
            b"Z\0\0\0\x05I",
            b"v\0\0\0\x1a\0\x03\0\x02\0\0\0\x02_pq_.a\0_pq_.b\0",
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn lengths_add_up_when_appended_to_something() {
        let mut out = BytesMut::from(&b"before"[..]);
        backend_key_data(&mut out, 1, &[9; 256]);
        assert_eq!(out.len(), 6 + 5 + 4 + 256);
        assert_eq!(out[7..11], 264u32.to_be_bytes());
    }
}
