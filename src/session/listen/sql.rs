//! What is said to servers about channels, and what they tell. Names are bytes in the server's encoding.

use bytes::Bytes;
use std::sync::Arc;

/// A channel's name.
pub type Channel = Arc<[u8]>;

/// The channel of the proxy's own markers. Every listener hears it.
pub const MARKER_CHANNEL: &[u8] = b"pgsluice marker";

/// One place in the server's queue of notifications: a payload that nobody else sends.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Marker(Arc<str>);

impl Marker {
    /// `process` tells proxies apart, `number` the markers of one.
    pub(super) fn new(process: u128, number: u64) -> Self {
        Self(format!("{process:x}.{number}").into())
    }

    pub(super) fn payload(&self) -> Bytes {
        Bytes::copy_from_slice(self.0.as_bytes())
    }

    /// The payload is this marker's.
    pub fn is(&self, payload: &[u8]) -> bool {
        self.0.as_bytes() == payload
    }
}

/// A NotificationResponse: channel and payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notification<'a> {
    /// Where it was sent to.
    pub channel: &'a [u8],
    /// What was sent.
    pub payload: &'a [u8],
}

impl<'a> Notification<'a> {
    /// Reads its body: the sender's process id, channel, payload.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        let (_, rest) = body.split_first_chunk::<4>()?;
        let mut parts = rest.split(|&byte| byte == 0);
        let (channel, payload, end) = (parts.next()?, parts.next()?, parts.next()?);
        (end.is_empty() && parts.next().is_none()).then_some(Self { channel, payload })
    }
}

/// `LISTEN "channel"`
pub fn listen(channel: &[u8]) -> Vec<u8> {
    statement(b"LISTEN ", channel)
}

/// `UNLISTEN "channel"`
pub fn unlisten(channel: &[u8]) -> Vec<u8> {
    statement(b"UNLISTEN ", channel)
}

/// `NOTIFY "pgsluice marker", 'marker'`
pub fn notify(marker: &Marker) -> Vec<u8> {
    let mut sql = statement(b"NOTIFY ", MARKER_CHANNEL);
    sql.extend_from_slice(format!(", '{}'", marker.0).as_bytes());
    sql
}

fn statement(command: &[u8], channel: &[u8]) -> Vec<u8> {
    let mut sql = command.to_vec();
    sql.push(b'"');
    for &byte in channel {
        // The encodings servers can have never use a quote's byte inside a character.
        if byte == b'"' {
            sql.push(b'"');
        }
        sql.push(byte);
    }
    sql.push(b'"');
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        assert_eq!(listen(b"a\"; DROP x"), b"LISTEN \"a\"\"; DROP x\"");
        assert_eq!(unlisten("Ä b".as_bytes()), "UNLISTEN \"Ä b\"".as_bytes());
        let marker = Marker::new(255, 7);
        assert_eq!(notify(&marker), b"NOTIFY \"pgsluice marker\", 'ff.7'");
        assert!(marker.is(b"ff.7") && !marker.is(b"ff.70"));
    }

    #[test]
    fn notifications_are_read_and_garbage_is_survived() {
        let read = Notification::parse(b"\0\0\0\x07jobs\0id 5\0").unwrap();
        assert_eq!((read.channel, read.payload), (&b"jobs"[..], &b"id 5"[..]));
        for bad in [
            &b""[..],
            b"\0\0\0\x07",
            b"\0\0\0\x07jobs\0",
            b"\0\0\0\x07a\0b\0c\0",
            b"\0\0\0\x07a\0b\0c",
        ] {
            assert_eq!(Notification::parse(bad), None, "{bad:?}");
        }
    }
}
