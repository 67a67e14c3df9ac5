//! Towards the client: what the server has sent is matched with what was asked.

use super::{
    BackendFault, Passing, READ_WHOLE_MAX, Relay, RelayEnd, STANDARD_CONFORMING_STRINGS, Scan,
    Sides,
};
use crate::error::SqlState;
use crate::session::close::error_message;
use crate::session::prepared::renamed_error;
use crate::session::replies::{ReplyAction, UnexpectedReply};
use crate::session::survey::Survey;
use crate::wire::error_response::Severity;
use crate::wire::frame::{HEADER_LEN, Header};
use crate::wire::from_backend::{ServerError, TxStatus, command_tag, parameter_status};
use bytes::{BufMut, BytesMut};
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
            let before = sides.up.ready_len();
            self.scan_down(sides)?;
            moved |= sides.up.ready_len() > before;
        }
        if self.down.must_drain() {
            match self.down.poll_drain(sides.client, cx) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(_)) => return Err(RelayEnd::ClientGone),
                Poll::Pending => {}
            }
        }
        Ok(self.at_ready(sides)? || moved)
    }

    /// Matches what the server has sent with what was asked.
    pub(super) fn scan_down(&mut self, sides: &mut Sides<'_>) -> Scan<()> {
        loop {
            if !self.pass_reply() {
                return Ok(());
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

    /// Passes or drops what has come of the reply in progress; true if none is left in progress.
    pub(super) fn pass_reply(&mut self) -> bool {
        if let Some(passing) = &mut self.passing {
            let count = self.down.unread().len().min(passing.remaining);
            match passing.action {
                ReplyAction::Forward => self.down.pass(count),
                ReplyAction::Skip => self.down.remove(count),
            }
            passing.remaining -= count;
            if passing.remaining > 0 {
                return false;
            }
            self.passing = None;
        }
        true
    }

    /// What to do with the reply at the front; `None` until it is there whole, where it must be read.
    fn match_reply(&mut self, header: Header, sides: &mut Sides<'_>) -> Scan<Option<ReplyAction>> {
        let fault = |error: UnexpectedReply| RelayEnd::BackendFault(error.into());
        let action = match header.tag {
            b'Z' | b'S' => return self.read_whole(header, sides),
            b'C' if header.body_len <= READ_WHOLE_MAX => return self.read_whole(header, sides),
            b't' | b'T' | b'n' if self.replies.is_shaping() => {
                return self.read_shape(header, sides);
            }
            b'D' if self.replies.is_surveying() || self.replies.is_asking() => {
                return self.read_row(header);
            }
            b'E' if self.replies.is_surveying() => {
                self.survey.iter_mut().for_each(Survey::fail);
                self.replies.on_reply(b'E').map_err(fault)?
            }
            b'E' if self.replies.is_listening() => return self.on_listening_error(header, sides),
            // The client's transaction had failed before, or fails by it.
            b'E' if self.replies.is_restoring() => {
                let action = self.replies.on_reply(b'E').map_err(fault)?;
                match sides.conn.status {
                    TxStatus::Failed => action,
                    _ => ReplyAction::Forward,
                }
            }
            b'E' if self.replies.is_replaying() => return self.read_whole(header, sides),
            // Of the proxy's own making.
            b'N' if self.replies.is_replaying() && !self.replies.is_fencing() => ReplyAction::Skip,
            b'N' => ReplyAction::Forward,
            b'A' => return self.on_notification(header, sides),
            // To a session that is at rest these are the server's last words to the backend: the pool reads them.
            b'E' if self.may_go(sides) => return Ok(None),
            b'E' => return self.on_error(header, sides),
            b'I' => {
                let action = self.replies.on_reply(b'I').map_err(fault)?;
                self.replies.on_empty_query();
                action
            }
            tag => self.replies.on_reply(tag).map_err(fault)?,
        };
        Ok(Some(action))
    }

    fn on_error(&mut self, header: Header, sides: &mut Sides<'_>) -> Scan<Option<ReplyAction>> {
        let Some(words) = self.own_words(header, sides) else {
            return Ok(None);
        };
        self.last_was_error = true;
        // Nothing asked: the server's last words before it closes the connection.
        let action = self.replies.on_reply(b'E').unwrap_or(ReplyAction::Forward);
        self.undo_changes(sides);
        self.stop_asking();
        self.stop_shaping();
        if let Some(id) = self.found_here.take()
            && !sides.conn.prepared.has_name(id)
        {
            // Nobody knows what it is: it is closed before it is prepared again.
            sides.conn.prepared.add_unused(id);
        }
        Ok(Some(match words {
            Some(words) => {
                self.down.insert(&words);
                ReplyAction::Skip
            }
            None => action,
        }))
    }

    /// The error that a client gets in the place of the server's, which speaks of a name of ours; `None` until the
    /// server's is there whole.
    fn own_words(&mut self, header: Header, sides: &mut Sides<'_>) -> Option<Option<BytesMut>> {
        let used = match self.replies.front_note() {
            Some(note) if header.body_len <= READ_WHOLE_MAX => note.used.as_ref(),
            _ => None,
        };
        let Some(used) = used else {
            return Some(None);
        };
        let body = self.down.unread().get(HEADER_LEN..header.frame_len())?;
        match ServerError::parse(body).code {
            _ if used.is_stale => return Some(Some(stale_plan())),
            // Taken away behind the proxy's back.
            SqlState::INVALID_STATEMENT_NAME => {
                sides.conn.prepared.remove(used.statement.id);
            }
            // Here, whatever the book says.
            SqlState::DUPLICATE_PREPARED_STATEMENT if used.known_as == used.statement.id => {
                self.found_here = Some(used.known_as);
            }
            _ => {}
        }
        let renamed = renamed_error(body, used.known_as, &used.name);
        if renamed == body {
            return Some(None);
        }
        let body = renamed;
        let mut message = BytesMut::with_capacity(HEADER_LEN + body.len());
        message.put_u8(b'E');
        message.put_u32(4 + body.len() as u32); // READ_WHOLE_MAX and some names
        message.put_slice(&body);
        Some(Some(message))
    }

    /// The answer to a Describe of the proxy's own.
    fn read_shape(&mut self, header: Header, sides: &mut Sides<'_>) -> Scan<Option<ReplyAction>> {
        let fault = |error: UnexpectedReply| RelayEnd::BackendFault(error.into());
        let short = header.body_len <= READ_WHOLE_MAX;
        if short && self.down.unread().len() < header.frame_len() {
            return Ok(None);
        }
        let body = self.down.unread().get(HEADER_LEN..header.frame_len());
        let body = body.filter(|_| short).map(<[u8]>::to_vec);
        self.shape_came(header.tag, body.as_deref(), sides);
        Ok(Some(self.replies.on_reply(header.tag).map_err(fault)?))
    }

    /// A row for the proxy itself.
    fn read_row(&mut self, header: Header) -> Scan<Option<ReplyAction>> {
        let fault = |error: UnexpectedReply| RelayEnd::BackendFault(error.into());
        let short = header.body_len <= READ_WHOLE_MAX;
        if short && self.down.unread().len() < header.frame_len() {
            return Ok(None);
        }
        let asking = self.replies.is_asking();
        let action = self.replies.on_reply(b'D').map_err(fault)?;
        let body = self.down.unread().get(HEADER_LEN..header.frame_len());
        match (&mut self.survey, body.filter(|_| short).map(<[u8]>::to_vec)) {
            (_, body) if asking => self.asked_row(body.as_deref()),
            (Some(survey), Some(body)) => survey.row(&body),
            (Some(survey), None) => survey.fail(),
            (None, _) => {}
        }
        Ok(Some(action))
    }

    /// ReadyForQuery has come.
    fn read_ready(&mut self, status: TxStatus, sides: &mut Sides<'_>) -> Scan<Option<ReplyAction>> {
        let fault = |error: UnexpectedReply| RelayEnd::BackendFault(error.into());
        sides.conn.status = status;
        if !self.may_be_ready(sides)? {
            return Ok(None);
        }
        let (surveyed, own) = (self.replies.is_surveying(), self.replies.is_replaying());
        self.last_was_error = false;
        self.restoring &= !own;
        if self.replies.is_restoring() {
            self.tell_restored(sides);
        }
        let mut action = self.replies.on_ready().map_err(fault)?;
        self.on_idle_after_discard(sides);
        if action == ReplyAction::Forward && self.before_ready(sides) {
            action = ReplyAction::Skip;
        }
        if surveyed {
            self.finish_survey(sides);
        }
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
                self.read_ready(status.ok_or_else(malformed)?, sides)
            }
            b'S' => {
                let Some((name, value)) = parameter_status(body) else {
                    // In another encoding: the client knows which.
                    return Ok(Some(ReplyAction::Forward));
                };
                let later = self.replies.is_ready_held();
                if later || self.replies.is_restoring() {
                    self.resets.remember(&sides.conn.parameters);
                }
                sides.conn.parameters.set(name, value);
                if name == STANDARD_CONFORMING_STRINGS {
                    self.plain_strings = value != "off";
                }
                if later {
                    return Ok(Some(ReplyAction::Skip));
                }
                if !self.replies.is_swallowing() {
                    return Ok(Some(ReplyAction::Forward));
                }
                // Set by the proxy: this is what the session starts from. Where something had been taken from it, it
                // was told so, and is told again.
                self.parameters.set(name, value);
                Ok(Some(match self.restoring {
                    true => ReplyAction::Forward,
                    false => ReplyAction::Skip,
                }))
            }
            b'E' => Err(RelayEnd::SettingsRefused(ServerError::parse(body))),
            _ => {
                let tag = command_tag(body).unwrap_or_default();
                let done = Done::of(tag);
                let (own, asking) = (self.replies.is_swallowing(), self.replies.is_asking());
                if !own {
                    self.listening.on_done(tag, sides.memory);
                }
                let last = self.replies.is_answering_last() && self.requests.at_boundary();
                let action = self.replies.on_reply(header.tag).map_err(fault)?;
                if asking {
                    self.finish_asking(sides.conn);
                } else if !own {
                    self.on_done(done, last, sides);
                }
                Ok(Some(action))
            }
        }
    }
}

/// A message longer, or in another shape, than it can be.
pub(super) fn malformed(header: Header) -> RelayEnd {
    RelayEnd::BackendFault(BackendFault::Malformed(header.tag))
}

/// PostgreSQL's error for a statement whose rows are not what they were (src/backend/utils/cache/plancache.c,
/// `RevalidateCachedQuery`).
fn stale_plan() -> BytesMut {
    let mut message = BytesMut::new();
    error_message(
        Severity::Error,
        SqlState::FEATURE_NOT_SUPPORTED,
        "cached plan must not change result type",
    )
    .encode(&mut message);
    message
}

/// What a command tag says about state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    /// DISCARD ALL: everything is gone.
    DiscardAll,
    /// DEALLOCATE ALL: every statement is gone.
    DeallocateAll,
    /// Something that pins may be gone.
    MayRelease,
    /// DISCARD PLANS: what has been prepared is read anew.
    DiscardPlans,
    /// DISCARD SEQUENCES
    DiscardSequences,
    /// Nothing.
    Other,
}

impl Done {
    fn of(tag: &str) -> Self {
        match tag {
            "DISCARD ALL" => Done::DiscardAll,
            "DEALLOCATE ALL" => Done::DeallocateAll,
            "DISCARD PLANS" => Done::DiscardPlans,
            "DISCARD SEQUENCES" => Done::DiscardSequences,
            "DEALLOCATE" | "CLOSE CURSOR" | "CLOSE CURSOR ALL" | "UNLISTEN" | "ROLLBACK" => {
                Done::MayRelease
            }
            tag if tag.starts_with("DROP ") || tag.starts_with("DISCARD ") => Done::MayRelease,
            _ => Done::Other,
        }
    }
}
