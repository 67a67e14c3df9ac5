//! Towards the client: what the server has sent is matched with what was asked.

use super::{BackendFault, Passing, READ_WHOLE_MAX, Relay, RelayEnd, Scan, Sides};
use crate::session::replies::{ReplyAction, UnexpectedReply};
use crate::wire::frame::{HEADER_LEN, Header};
use crate::wire::from_backend::{ServerError, TxStatus, command_tag, parameter_status};
use std::task::{Context, Poll};

impl Relay {
    pub(super) fn pump_down(&mut self, sides: &mut Sides<'_>, cx: &mut Context<'_>) -> Scan<bool> {
        let mut moved = false;
        if self.down.has_room() {
            match self.down.poll_fill(&mut sides.conn.stream, cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(RelayEnd::BackendGone),
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Pending => {}
            }
        }
        if !self.down.unread().is_empty() {
            self.scan_down(sides)?;
        }
        if self.down.must_drain() {
            match self.down.poll_drain(sides.client, cx) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(_)) => return Err(RelayEnd::ClientGone),
                Poll::Pending => {}
            }
        }
        self.at_ready(sides)?;
        Ok(moved)
    }
    /// Matches what the server has sent with what was asked.
    pub(super) fn scan_down(&mut self, sides: &mut Sides<'_>) -> Scan<()> {
        loop {
            if let Some(passing) = &mut self.passing {
                let count = self.down.unread().len().min(passing.remaining);
                match passing.action {
                    ReplyAction::Forward => self.down.pass(count),
                    ReplyAction::Skip => self.down.remove(count),
                }
                passing.remaining -= count;
                if passing.remaining > 0 {
                    return Ok(());
                }
                self.passing = None;
            }
            let header = match Header::parse(self.down.unread()) {
                Ok(Some(header)) => header,
                Ok(None) => return Ok(()),
                Err(bad) => return Err(RelayEnd::BackendFault(bad.into())),
            };
            let Some(action) = self.match_reply(header, sides)? else {
                return Ok(());
            };
            self.passing = Some(Passing {
                remaining: header.frame_len(),
                action,
            });
        }
    }

    /// What to do with the reply at the front; `None` until it is there whole, where it must be read.
    fn match_reply(&mut self, header: Header, sides: &mut Sides<'_>) -> Scan<Option<ReplyAction>> {
        let fault = |error: UnexpectedReply| RelayEnd::BackendFault(error.into());
        let action = match header.tag {
            b'Z' | b'S' => return self.read_whole(header, sides),
            b'C' if header.body_len <= READ_WHOLE_MAX => return self.read_whole(header, sides),
            b'E' if self.replies.is_replaying() => return self.read_whole(header, sides),
            b'N' | b'A' if self.replies.is_replaying() => ReplyAction::Skip,
            b'N' | b'A' => ReplyAction::Forward,
            b'E' => {
                self.last_was_error = true;
                // Nothing asked: the server's last words before it closes the connection.
                self.replies.on_reply(b'E').unwrap_or(ReplyAction::Forward)
            }
            b'I' => {
                let action = self.replies.on_reply(b'I').map_err(fault)?;
                self.replies.on_empty_query();
                action
            }
            tag => self.replies.on_reply(tag).map_err(fault)?,
        };
        Ok(Some(action))
    }

    /// Reads a short reply that matters to the proxy.
    fn read_whole(&mut self, header: Header, sides: &mut Sides<'_>) -> Scan<Option<ReplyAction>> {
        if header.body_len > READ_WHOLE_MAX {
            return Err(RelayEnd::BackendFault(BackendFault::Malformed(header.tag)));
        }
        let unread = self.down.unread();
        if unread.len() < header.frame_len() {
            return Ok(None);
        }
        let body = &unread[HEADER_LEN..header.frame_len()];
        let malformed = || RelayEnd::BackendFault(BackendFault::Malformed(header.tag));
        let fault = |error: UnexpectedReply| RelayEnd::BackendFault(error.into());
        match header.tag {
            b'Z' => {
                let status = body.first().and_then(|&byte| TxStatus::from_byte(byte));
                sides.conn.status = status.ok_or_else(malformed)?;
                self.last_was_error = false;
                self.replies.on_ready().map(Some).map_err(fault)
            }
            b'S' => {
                let (name, value) = parameter_status(body).ok_or_else(malformed)?;
                sides.conn.parameters.set(name, value);
                if self.replies.is_replaying() {
                    // Set by the proxy: this is what the session starts from.
                    self.parameters.set(name, value);
                    return Ok(Some(ReplyAction::Skip));
                }
                Ok(Some(ReplyAction::Forward))
            }
            b'E' => Err(RelayEnd::SettingsRefused(ServerError::parse(body))),
            _ => {
                let all_gone = command_tag(body) == Some("DISCARD ALL");
                let action = self.replies.on_reply(header.tag).map_err(fault)?;
                if all_gone && self.replies.outstanding() <= 1 {
                    self.forget_state(sides);
                }
                Ok(Some(action))
            }
        }
    }

    /// DISCARD ALL has left nothing behind but loaded libraries, not even what the client asked for at login: that is set again with the
    /// next lease.
    fn forget_state(&mut self, sides: &mut Sides<'_>) {
        self.pins.keep_only_lasting();
        self.told_pins.keep_only_lasting();
        self.parameters = sides.conn.parameters.clone();
        sides.conn.was_discarded();
    }
}
