//! Towards the backend: what the client has sent is examined and passed on.

use super::{Relay, RelayEnd, Scan, Sides};
use crate::session::pin::PinReason;
use crate::session::replies::{Expect, ReplyAction};
use crate::session::requests::{CLOSE_UNNAMED, Need, Next, RequestReader, Told, Unnamed, look};
use crate::session::statement::Effects;
use crate::wire::frame::{HEADER_LEN, Header};
use std::task::{Context, Poll};

impl Relay {
    pub(super) fn pump_up(&mut self, sides: &mut Sides<'_>, cx: &mut Context<'_>) -> Scan<bool> {
        self.scan_up(sides)?;
        let mut moved = false;
        if sides.up.must_drain() {
            match sides.up.poll_drain(&mut sides.conn.stream, cx) {
                Poll::Ready(Ok(())) => moved = true,
                // The server has closed its end. Its last words may be there to read: the read finds the end.
                Poll::Ready(Err(_)) => {
                    if let Some(end) = self.read_last_words(sides, cx)? {
                        return Err(end);
                    }
                }
                Poll::Pending => {}
            }
        }
        let wants_more = !self.quit && !self.replies.is_full();
        if wants_more && sides.up.has_room() {
            match sides.up.poll_fill(sides.client, cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(RelayEnd::ClientGone),
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    /// A write failed: everything the server still said goes to the client.
    fn read_last_words(
        &mut self,
        sides: &mut Sides<'_>,
        cx: &mut Context<'_>,
    ) -> Scan<Option<RelayEnd>> {
        while self.down.has_room() {
            match self.down.poll_fill(&mut sides.conn.stream, cx) {
                Poll::Ready(Ok(count)) if count > 0 => self.scan_down(sides)?,
                Poll::Ready(_) | Poll::Pending => return Ok(Some(RelayEnd::BackendGone)),
            }
        }
        Ok(Some(RelayEnd::BackendGone))
    }

    /// Examines what the client has sent.
    fn scan_up(&mut self, sides: &mut Sides<'_>) -> Scan<()> {
        while !self.quit && !sides.up.unread().is_empty() && !self.replies.is_full() {
            let first = self.requests.at_boundary();
            if first {
                match look(sides.up.unread()).map_err(RelayEnd::ClientFault)? {
                    Next::Incomplete => break,
                    Next::Quit => {
                        self.quit = true;
                        break;
                    }
                    Next::Frame {
                        header,
                        expect,
                        need,
                    } => {
                        self.begin_request(header, expect, need, sides);
                    }
                }
            }
            let unread = sides.up.unread();
            let count = unread.len().min(self.requests.remaining());
            let told = self.requests.read(&unread[..count], first, sides.unnamed);
            if let Some(told) = told {
                self.on_told(told);
            }
            sides.up.pass(count);
        }
        Ok(())
    }

    fn begin_request(
        &mut self,
        header: Header,
        expect: Option<Expect>,
        need: Need,
        sides: &mut Sides<'_>,
    ) {
        if need == Need::UnnamedStatement && !self.unnamed_here {
            self.bring_unnamed(sides);
        }
        // A Parse without a name, or a simple query, makes the backend's unnamed statement this session's.
        self.unnamed_here |= header.tag == b'Q' || is_unnamed_parse(header, sides.up.unread());
        if self.pins.contains(PinReason::UnnamedStatement) && self.replaces_unnamed(header, sides) {
            self.pins.remove(PinReason::UnnamedStatement);
        }
        self.queries += u32::from(matches!(header.tag, b'Q' | b'E' | b'F'));
        self.requests.begin(header, sides.unnamed);
        if let Some(expect) = expect {
            self.replies.push(expect, ReplyAction::Forward);
        }
    }

    fn replaces_unnamed(&self, header: Header, sides: &Sides<'_>) -> bool {
        header.tag == b'Q' || is_unnamed_parse(header, sides.up.unread())
    }

    /// The unnamed statement was prepared on another backend, or never: prepare it here, or make sure that nobody
    /// else's is used.
    fn bring_unnamed(&mut self, sides: &mut Sides<'_>) {
        self.unnamed_here = true;
        if let Unnamed::Kept(parse) = sides.unnamed {
            sides.up.insert(parse);
            self.replies.push(Expect::Parse, ReplyAction::Skip);
        } else {
            sides.up.insert(CLOSE_UNNAMED);
            self.replies.push(Expect::Close, ReplyAction::Skip);
        }
    }

    fn on_told(&mut self, told: Told) {
        let effects = match told {
            Told::Text(effects) => effects,
            Told::Named(effects) => {
                self.pins.insert(PinReason::NamedStatement);
                effects
            }
        };
        self.pins.insert_effects(effects);
    }
}

fn is_unnamed_parse(header: Header, frame: &[u8]) -> bool {
    header.tag == b'P' && frame.get(HEADER_LEN) == Some(&0)
}

/// What a request's text says about statement mode: true if it opens a transaction block.
pub(in crate::session) fn opens_transaction(frame: &[u8]) -> bool {
    let Ok(Some(header)) = Header::parse(frame) else {
        return false;
    };
    if frame.len() < header.frame_len() || !matches!(header.tag, b'Q' | b'P') {
        return false;
    }
    let (mut reader, mut unnamed) = (RequestReader::default(), Unnamed::default());
    reader.begin(header, &mut unnamed);
    match reader.read(&frame[..header.frame_len()], true, &mut unnamed) {
        Some(Told::Text(effects) | Told::Named(effects)) => effects.contains(Effects::TRANSACTION),
        None => false,
    }
}
