//! Frames: a tag byte, a four-byte length that counts itself, a body (PostgreSQL documentation, "Message Formats").
//! Only the header is read here; bodies stay opaque bytes.

use bytes::{Buf, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of tag and length.
pub const HEADER_LEN: usize = 5;

/// The longest frame PostgreSQL itself takes (`PQ_LARGE_MESSAGE_LIMIT`, src/include/libpq/libpq.h: MaxAllocSize).
pub const FRAME_LEN_MAX: u32 = 0x3fff_ffff;

/// A frame's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the message is.
    pub tag: u8,
    /// Bytes of body after the header.
    pub body_len: usize,
}

/// A length field that no message can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid message length {len} (message type {tag:#04x})")]
pub struct BadLength {
    /// The tag that came with it.
    pub tag: u8,
    /// The length field as sent.
    pub len: u32,
}

impl Header {
    /// Reads a header from the front of `bytes`; `None` while it is not all there.
    pub fn parse(bytes: &[u8]) -> Result<Option<Header>, BadLength> {
        let [tag, a, b, c, d, ..] = *bytes else {
            return Ok(None);
        };
        let len = u32::from_be_bytes([a, b, c, d]);
        if !(4..=FRAME_LEN_MAX).contains(&len) {
            return Err(BadLength { tag, len });
        }
        Ok(Some(Header {
            tag,
            body_len: len as usize - 4,
        }))
    }

    /// Header and body together.
    pub fn frame_len(&self) -> usize {
        HEADER_LEN + self.body_len
    }
}

/// A whole frame, for the few messages the proxy itself must read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What the message is.
    pub tag: u8,
    /// Its body, without tag and length.
    pub body: Bytes,
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The other side closed the connection, between frames or in one.
    #[error("the connection was closed")]
    Closed,
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A length that cannot be.
    #[error(transparent)]
    BadLength(#[from] BadLength),
    /// Longer than this moment of the protocol allows.
    #[error("message type {tag:#04x} of {len} bytes is longer than the {max} allowed here")]
    TooLong {
        /// The tag.
        tag: u8,
        /// Bytes of body announced.
        len: usize,
        /// Bytes of body allowed.
        max: usize,
    },
}

/// Reads one frame whose body is at most `body_max` bytes. `buf` keeps what was read beyond it.
///
/// Cancel-safe: bytes read so far stay in `buf`. The buffer grows with what has arrived, never with what a header
/// announces.
pub async fn read_frame<S: AsyncRead + Unpin>(
    stream: &mut S,
    buf: &mut BytesMut,
    body_max: usize,
) -> Result<Frame, ReadError> {
    loop {
        if let Some(frame) = take_frame(buf, body_max)? {
            return Ok(frame);
        }
        if stream.read_buf(buf).await? == 0 {
            return Err(ReadError::Closed);
        }
    }
}

/// Takes one whole frame off the front of `buf`; `None` while it is not all there.
pub fn take_frame(buf: &mut BytesMut, body_max: usize) -> Result<Option<Frame>, ReadError> {
    let Some(header) = Header::parse(buf)? else {
        return Ok(None);
    };
    if header.body_len > body_max {
        return Err(ReadError::TooLong {
            tag: header.tag,
            len: header.body_len,
            max: body_max,
        });
    }
    if buf.len() < header.frame_len() {
        return Ok(None);
    }
    buf.advance(HEADER_LEN);
    Ok(Some(Frame {
        tag: header.tag,
        body: buf.split_to(header.body_len).freeze(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_read_only_when_whole_and_possible() {
        type Case = (&'static [u8], Result<Option<Header>, BadLength>);
        let cases: &[Case] = &[
            (b"", Ok(None)),
            (b"Z\0\0\0", Ok(None)),
            (
                b"Z\0\0\0\x05I",
                Ok(Some(Header {
                    tag: b'Z',
                    body_len: 1,
                })),
            ),
            (
                b"S\0\0\0\x04",
                Ok(Some(Header {
                    tag: b'S',
                    body_len: 0,
                })),
            ),
            (b"Q\0\0\0\x03", Err(BadLength { tag: b'Q', len: 3 })),
            (
                b"Q\xff\xff\xff\xff",
                Err(BadLength {
                    tag: b'Q',
                    len: u32::MAX,
                }),
            ),
            (
                b"Q\x40\0\0\0",
                Err(BadLength {
                    tag: b'Q',
                    len: 0x4000_0000,
                }),
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(&Header::parse(bytes), expected, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn frames_split_anywhere_are_read_whole() {
        let bytes = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
        for split in 1..bytes.len() {
            let mut stream = AsyncReadExt::chain(&bytes[..split], &bytes[split..]);
            let mut buf = BytesMut::new();
            let first = read_frame(&mut stream, &mut buf, 100).await.unwrap();
            let second = read_frame(&mut stream, &mut buf, 100).await.unwrap();
            assert_eq!((first.tag, &first.body[..]), (b'R', &b"\0\0\0\0"[..]));
            assert_eq!((second.tag, &second.body[..]), (b'Z', &b"I"[..]));
            let end = read_frame(&mut stream, &mut buf, 100).await;
            assert!(matches!(end, Err(ReadError::Closed)));
        }
    }

    #[tokio::test]
    async fn a_frame_longer_than_allowed_is_refused_before_it_is_buffered() {
        let mut buf = BytesMut::new();
        let result = read_frame(&mut &b"p\0\x10\0\0xx"[..], &mut buf, 1000).await;
        assert!(matches!(
            result,
            Err(ReadError::TooLong { len: 1_048_572, .. })
        ));
        assert!(buf.capacity() < 10_000);
    }
}
