//! One direction of a relay: bytes read from one side, examined once, written to the other.
//!
//! ```text
//!   [ ready: examined, to be written | unread: not yet examined ]
//! ```
//! Bytes go from `unread` to `ready` where they stand, without a copy. Taking a frame out of the stream or putting one
//! in moves at most what is in the buffer. The buffer is bounded: [`Flow::poll_fill`] reads nothing while it is full,
//! which is how a slow reader stops the reading on the other side.

use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};

/// Capacity of a buffer when it is first needed. Enough for ordinary requests and replies in one read.
const CAPACITY_FIRST: usize = 8 * 1024;

/// Capacity once a read has filled the first one: bulk data in fewer system calls.
const CAPACITY_BULK: usize = 64 * 1024;

/// Room for less than this is not read into: messages would come in crumbs, at a system call each.
const SPARE_LEAST: usize = 1024;

/// One direction of a relay.
#[derive(Debug, Default)]
pub struct Flow {
    buf: BytesMut,
    ready: usize,
    /// Written, but perhaps still held back by TLS.
    unflushed: bool,
}

impl Flow {
    /// Starts with bytes already read and not yet examined.
    pub fn with_unread(buf: BytesMut) -> Self {
        Self {
            buf,
            ready: 0,
            unflushed: false,
        }
    }

    /// Nothing ready, nothing unread.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Bytes examined and waiting to be written.
    pub fn ready_len(&self) -> usize {
        self.ready
    }

    /// There is something to write, or TLS holds something back.
    pub fn must_drain(&self) -> bool {
        self.ready > 0 || self.unflushed
    }

    /// Bytes not yet examined.
    pub fn unread(&self) -> &[u8] {
        &self.buf[self.ready..]
    }

    /// Marks the next `count` unread bytes as ready to be written.
    pub fn pass(&mut self, count: usize) {
        debug_assert!(self.ready + count <= self.buf.len());
        self.ready += count;
    }

    /// Takes the next `count` unread bytes out of the stream.
    pub fn remove(&mut self, count: usize) {
        debug_assert!(self.ready + count <= self.buf.len());
        if self.ready > 0 {
            // Rare: something before them still waits to be written. Close the gap from the front.
            self.buf.copy_within(..self.ready, count);
        }
        self.buf.advance(count);
    }

    /// Puts other bytes, still unread, in the place of the next `count` unread ones.
    pub fn replace(&mut self, count: usize, bytes: &[u8]) {
        debug_assert!(self.ready + count <= self.buf.len());
        let unread = self.buf.split_off(self.ready);
        self.buf.extend_from_slice(bytes);
        self.buf.extend_from_slice(&unread[count..]);
    }

    /// Puts bytes of our own into the stream, behind what is ready and before what is unread.
    pub fn insert(&mut self, bytes: &[u8]) {
        let unread = self.buf.split_off(self.ready);
        self.buf.extend_from_slice(bytes);
        self.ready = self.buf.len();
        self.buf.extend_from_slice(&unread);
    }

    /// True while there is room to read more.
    pub fn has_room(&self) -> bool {
        self.buf.len() < CAPACITY_BULK
    }

    /// Gives the memory back when nothing is held.
    pub fn shrink(&mut self) {
        if self.buf.is_empty() {
            self.buf = BytesMut::new();
        }
    }

    /// Moves all that is ready into `other`, behind what is ready there.
    pub fn move_ready_to(&mut self, other: &mut BytesMut) {
        other.extend_from_slice(&self.buf[..self.ready]);
        self.buf.advance(self.ready);
        self.ready = 0;
    }

    /// Ends the flow: the bytes nobody has examined. What was ready is dropped.
    pub fn into_unread(mut self) -> BytesMut {
        self.buf.advance(self.ready);
        self.buf
    }

    /// Reads once; `Ready(0)` is the end of the stream. Must not be called without room.
    pub fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.has_room());
        if self.buf.capacity() - self.buf.len() < SPARE_LEAST {
            self.grow();
        }
        tokio_util::io::poll_read_buf(Pin::new(stream), cx, &mut self.buf)
    }

    fn grow(&mut self) {
        let wanted = if self.buf.is_empty() {
            CAPACITY_FIRST
        } else {
            CAPACITY_BULK
        };
        self.buf
            .reserve(wanted.saturating_sub(self.buf.len()).max(CAPACITY_FIRST));
    }

    /// Writes all that is ready; `Ready` when nothing is left of it.
    pub fn poll_drain<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.ready > 0 {
            let written = ready!(Pin::new(&mut *stream).poll_write(cx, &self.buf[..self.ready]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buf.advance(written);
            self.ready -= written;
            self.unflushed = true;
        }
        // Nothing for a plain socket; TLS may have kept what the kernel did not take.
        ready!(Pin::new(stream).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(ready: &str, unread: &str) -> Flow {
        let mut flow = Flow::with_unread(BytesMut::from(format!("{ready}{unread}").as_str()));
        flow.pass(ready.len());
        flow
    }

    fn parts(flow: &Flow) -> (String, String) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (text(&flow.buf[..flow.ready]), text(flow.unread()))
    }

    #[test]
    fn remove_takes_unread_bytes_out_from_behind_what_is_ready() {
        for (ready, unread, count, expected) in [
            ("", "skipkeep", 4, ("", "keep")),
            ("ready", "skipkeep", 4, ("ready", "keep")),
            (
                "longer than what is removed",
                "xkeep",
                1,
                ("longer than what is removed", "keep"),
            ),
            ("r", "skip", 4, ("r", "")),
        ] {
            let mut flow = flow(ready, unread);
            flow.remove(count);
            assert_eq!(parts(&flow), (expected.0.into(), expected.1.into()));
        }
    }

    #[test]
    fn insert_puts_bytes_between_ready_and_unread() {
        let mut flow = flow("ready", "unread");
        flow.insert(b"-mine-");
        assert_eq!(parts(&flow), ("ready-mine-".into(), "unread".into()));
    }

    #[tokio::test]
    async fn a_full_buffer_stops_reading() {
        let mut source = std::io::Cursor::new(vec![7u8; 1_000_000]);
        let mut flow = Flow::default();
        while flow.has_room() {
            std::future::poll_fn(|cx| flow.poll_fill(&mut source, cx))
                .await
                .unwrap();
        }
        assert!(
            flow.unread().len() < 3 * CAPACITY_BULK,
            "{}",
            flow.unread().len()
        );
    }
}
