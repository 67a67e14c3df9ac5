//! SQL's DEALLOCATE of a statement that the protocol has prepared.

use super::names::Translated;
use super::{Relay, Sides};
use crate::backend::prepared::StatementId;
use crate::session::deallocate::{begins_deallocate, deallocate_message, deallocated};
use crate::session::prepared::{EMPTY, Note, PARSE_LEN_MAX, parse_message};
use crate::session::replies::{Expect, ReplyAction};
use crate::wire::frame::{HEADER_LEN, Header};

impl Relay {
    /// SQL's DEALLOCATE of a name of the protocol's, as some drivers send it: it is carried out on a statement made for it.
    /// The shared one stays for others.
    pub(super) fn deallocate(
        &mut self,
        header: Header,
        sides: &mut Sides<'_>,
    ) -> Option<Translated> {
        let front_len = match (header.tag, sides.up.unread().get(HEADER_LEN)) {
            (b'Q', _) => HEADER_LEN,
            (b'P', Some(0)) => HEADER_LEN + 1,
            _ => return None,
        };
        if header.frame_len() > PARSE_LEN_MAX {
            return None;
        }
        let text = sides.up.unread().get(front_len..)?;
        if !begins_deallocate(text) {
            return None;
        }
        let Some(text) = sides.up.unread().get(front_len..header.frame_len()) else {
            return Some(Translated::Incomplete);
        };
        let name = deallocated(text.split(|&byte| byte == 0).next().unwrap_or_default())?;
        if self.must_wait() {
            self.held = true;
            return Some(Translated::Incomplete);
        }
        let statement = sides.memory.names.take(&name)?;
        let id = StatementId(sides.memory.statements.next_id());
        // It may never be carried out: then it is there until room is needed.
        if let Some((least_used, known_as)) = sides.conn.prepared.insert_unused(id) {
            self.close_here(least_used, known_as, sides.up);
        }
        // An empty text is never refused: a query behind a Parse that fails is skipped.
        sides.up.insert(&parse_message(id, EMPTY));
        self.replies.push(Expect::Parse, ReplyAction::Skip);
        let before = std::mem::take(&mut sides.memory.unnamed);
        let was_here = std::mem::replace(&mut self.unnamed_here, true);
        sides.up.remove(header.frame_len());
        sides.up.insert(&deallocate_message(header.tag, id));
        let note = Note {
            unnamed: Some((name, statement)),
            replaced_unnamed: Some(before),
            unnamed_was_here: was_here,
            ..Note::default()
        };
        let expect = match header.tag {
            b'Q' => Expect::Query,
            _ => Expect::Parse,
        };
        self.send_noted(expect, ReplyAction::Forward, note);
        Some(Translated::Whole)
    }
}
