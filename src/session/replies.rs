//! What the backend still owes: one entry for every message that gets an answer, in the order sent.
//!
//! This is how pipelining stays right (any number of Syncs in flight), how a reply to a message of the proxy's own is
//! told from the client's, and how we know that a backend owes nothing any more. It models what PostgreSQL's main loop
//! does (src/backend/tcop/postgres.c, `PostgresMain` and `SocketBackend`):
//!
//! - an error in an extended-protocol message makes the server ignore everything up to the next Sync,
//!   simple queries included;
//! - while COPY FROM STDIN runs, Sync and Flush are swallowed (src/backend/commands/copyfromparse.c,
//!   `CopyGetData`). If such a COPY fails, whether a Sync in flight was swallowed can't be told from outside: then
//!   [`PendingReplies::needs_fence`] says so, and an empty query of ours settles it.
//!
//! Pure: no I/O.

mod expect;
mod front;

pub use expect::{Expect, ReplyAction};

use super::prepared::Note;
use expect::answers;
use std::collections::VecDeque;

/// The server sent something that nothing in flight explains.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unexpected reply {tag:#04x} from the server")]
pub struct UnexpectedReply {
    /// Its tag.
    pub tag: u8,
}

#[derive(Debug)]
struct Entry {
    expect: Expect,
    action: ReplyAction,
    /// What it changes in the proxy's memory when the server carries it out.
    note: Option<Box<Note>>,
}

impl Entry {
    fn ends_batch(&self) -> bool {
        matches!(
            self.expect,
            Expect::Sync
                | Expect::Query
                | Expect::FunctionCall
                | Expect::HeldQuery
                | Expect::Restore
        )
    }

    fn is_clients_query(&self) -> bool {
        matches!(self.expect, Expect::Query | Expect::HeldQuery)
            && self.action == ReplyAction::Forward
    }

    fn is_own_query(&self) -> bool {
        self.action == ReplyAction::Skip
            && matches!(
                self.expect,
                Expect::Query | Expect::Fence | Expect::Survey | Expect::Restore | Expect::Listen
            )
    }
}

/// What the backend still owes, in order.
#[derive(Debug, Default)]
pub struct PendingReplies {
    entries: VecDeque<Entry>,
    /// Extended-protocol messages were sent and no Sync yet.
    batch_open: bool,
    skipping_to_sync: bool,
    copying_in: bool,
    swallowed_syncs: bool,
    /// A query of the client's is not looked at, for an error before it: the next Sync, whose ever it is, is its end.
    query_skipped: bool,
    fence_needed: bool,
    /// By the client.
    query_sent_last: bool,
    /// Of messages that the server has not carried out, in the order sent.
    undone: Vec<Note>,
}

/// More replies in flight than this, and the client is not read until some have come. PostgreSQL sends its replies
/// whenever 8 KB have gathered, so they do come.
const IN_FLIGHT_MAX: usize = 16 * 1024;

impl PendingReplies {
    /// Nothing is owed: every ReadyForQuery has come, nothing unsynced was sent.
    pub fn is_settled(&self) -> bool {
        self.entries.is_empty() && !self.copying_in && !self.skipping_to_sync && !self.batch_open
    }

    /// Extended-protocol messages were sent and the Sync that ends them was not.
    pub fn is_batch_open(&self) -> bool {
        self.batch_open || self.skipping_to_sync
    }

    /// What comes now answers a query of the proxy's own.
    pub fn is_replaying(&self) -> bool {
        self.entries
            .front()
            .is_some_and(|front| front.is_own_query())
    }

    /// What comes now answers a query of the proxy's own about channels.
    pub fn is_listening(&self) -> bool {
        (self.entries.front()).is_some_and(|front| front.expect == Expect::Listen)
    }

    /// An Execute of the proxy's own is in flight, whose rows it reads.
    pub fn has_asked(&self) -> bool {
        self.entries.iter().any(|entry| entry.expect == Expect::Ask)
    }

    /// The server looks at nothing before the next Sync.
    pub fn is_skipping(&self) -> bool {
        self.skipping_to_sync
    }

    /// The message sent last was a query of the client's, and the server will answer it.
    pub fn sent_query_last(&self) -> bool {
        self.query_sent_last
    }

    /// The ReadyForQuery of the query sent last waits for a `Restore`, to be sent now.
    pub fn hold_ready(&mut self) {
        if let Some(last) = self.entries.back_mut() {
            last.expect = Expect::HeldQuery;
        }
    }

    /// The message being answered is the client's last, or has only its own Sync behind it.
    pub fn is_answering_last(&self) -> bool {
        let behind = self.entries.iter().skip(1);
        let mut clients = behind.filter(|entry| entry.action != ReplyAction::Skip);
        match (clients.next(), clients.next()) {
            (None, _) => true,
            (Some(next), None) => next.expect == Expect::Sync,
            _ => false,
        }
    }

    /// Notes of messages not yet answered, in the order sent.
    pub fn notes(&self) -> impl Iterator<Item = &Note> {
        self.entries
            .iter()
            .filter_map(|entry| entry.note.as_deref())
    }

    /// The note of the next message in flight that takes the unnamed statement's place.
    pub fn next_replacing_unnamed(&mut self) -> Option<&mut Note> {
        let notes = self.entries.iter_mut();
        let mut notes = notes.filter_map(|entry| entry.note.as_deref_mut());
        notes.find(|note| note.replaced_unnamed.is_some())
    }

    /// A message of an earlier batch in flight concerns something.
    pub fn has_earlier(&self, concerns: impl Fn(&Note) -> bool) -> bool {
        let last_end = self.entries.iter().rposition(Entry::ends_batch);
        let earlier = self.entries.iter().take(last_end.unwrap_or(0));
        earlier
            .filter_map(|entry| entry.note.as_deref())
            .any(concerns)
    }

    /// A batch of the client's before the one that is open, or that comes next, is in flight.
    pub fn has_earlier_batch(&self) -> bool {
        let mut all = self.entries.iter();
        all.any(|entry| entry.ends_batch() && entry.action == ReplyAction::Forward)
    }

    /// The last message in flight that concerns something belongs to an earlier batch: if that batch fails, the message
    /// is skipped, and what comes now must not count on it.
    pub fn is_uncertain(&self, concerns: impl Fn(&Note) -> bool) -> bool {
        let concerned = |entry: &Entry| entry.note.as_deref().is_some_and(&concerns);
        let last = self.entries.iter().rposition(concerned);
        last.is_some_and(|last| self.entries.iter().skip(last + 1).any(Entry::ends_batch))
    }

    /// The server owes nothing now: what comes next is the client's.
    pub fn awaits_client(&self) -> bool {
        self.entries.is_empty()
    }

    /// True when so much is in flight that the client must wait.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= IN_FLIGHT_MAX
    }

    /// The server reads COPY data from the client.
    pub fn is_copying_in(&self) -> bool {
        self.copying_in
    }

    /// ReadyForQuery messages still to come.
    pub fn outstanding(&self) -> usize {
        let ends = |entry: &&Entry| {
            matches!(
                entry.expect,
                Expect::Sync
                    | Expect::Query
                    | Expect::FunctionCall
                    | Expect::Fence
                    | Expect::Survey
                    | Expect::Listen
                    | Expect::HeldQuery
                    | Expect::Restore
            )
        };
        self.entries.iter().filter(ends).count()
    }

    /// A failed COPY left open whether a Sync was swallowed: send an empty query, and `push(Fence, Skip)`.
    pub fn needs_fence(&self) -> bool {
        self.fence_needed && self.entries.is_empty() && !self.is_batch_open()
    }

    /// A message goes to the backend.
    pub fn push(&mut self, expect: Expect, action: ReplyAction) {
        self.push_noted(expect, action, None);
    }

    /// [`Self::push`] of a message that changes the proxy's memory.
    pub fn push_noted(&mut self, expect: Expect, action: ReplyAction, note: Option<Box<Note>>) {
        let entry = Entry {
            expect,
            action,
            note,
        };
        self.query_sent_last = false;
        match expect {
            Expect::CopyEnd if self.copying_in => self.copying_in = false,
            Expect::Sync if self.copying_in => self.swallowed_syncs = true,
            Expect::Sync => {
                self.skipping_to_sync = false;
                self.batch_open = false;
                let action = match std::mem::take(&mut self.query_skipped) {
                    true => ReplyAction::Forward,
                    false => entry.action,
                };
                self.entries.push_back(Entry { action, ..entry });
            }
            _ if self.skipping_to_sync => self.undo(entry),
            // Not what a COPY is fed with: the server takes it for the COPY's end, an error, and for nothing else
            // (src/backend/commands/copyfromparse.c, `CopyGetData`).
            _ if self.copying_in => {
                self.copying_in = false;
                self.undo(entry);
            }
            // Before any Query or Execute is answered a CopyEnd can belong to its COPY; alone it means nothing.
            Expect::CopyEnd if self.entries.is_empty() => {}
            Expect::Fence => {
                self.fence_needed = false;
                self.entries.push_back(entry);
            }
            _ => {
                // A simple query or function call ends the implicit transaction as a Sync does.
                let simple = matches!(
                    expect,
                    Expect::Query
                        | Expect::FunctionCall
                        | Expect::Survey
                        | Expect::Restore
                        | Expect::Listen
                );
                self.batch_open = !simple && (self.batch_open || expect != Expect::CopyEnd);
                self.query_sent_last =
                    expect == Expect::Query && entry.action == ReplyAction::Forward;
                self.entries.push_back(entry);
            }
        }
    }

    fn undo(&mut self, entry: Entry) {
        self.query_skipped |= entry.is_clients_query();
        self.undone.extend(entry.note.map(|note| *note));
    }

    /// There are some for [`Self::take_undone`].
    pub fn has_undone(&self) -> bool {
        !self.undone.is_empty()
    }

    /// Notes of messages that the server has not carried out, the last sent first.
    pub fn take_undone(&mut self) -> impl Iterator<Item = Note> + use<> {
        std::mem::take(&mut self.undone).into_iter().rev()
    }

    /// The note of the message that is being answered.
    pub fn front_note(&self) -> Option<&Note> {
        self.entries.front()?.note.as_deref()
    }

    /// A reply other than ReadyForQuery came. Asynchronous messages (ParameterStatus, NoticeResponse,
    /// NotificationResponse) answer nothing and do not come here.
    pub fn on_reply(&mut self, tag: u8) -> Result<ReplyAction, UnexpectedReply> {
        let Some(front) = self.entries.front_mut() else {
            return Err(UnexpectedReply { tag });
        };
        let (fits, ends) = answers(front.expect, tag);
        if !fits {
            return Err(UnexpectedReply { tag });
        }
        let action = front.action;
        match tag {
            b'E' => return Ok(self.on_error()),
            b'G' => self.on_copy_in(),
            _ if ends => {
                self.swallowed_syncs &= tag != b'C';
                self.pop();
            }
            // A statement of a simple query is done: what the query was to change has changed.
            b'C' => {
                front.note = None;
                self.swallowed_syncs = false;
            }
            _ => {}
        }
        Ok(action)
    }

    /// ReadyForQuery came.
    pub fn on_ready(&mut self) -> Result<ReplyAction, UnexpectedReply> {
        let Some(front) = self.entries.front() else {
            // The answer to a Sync that a failed COPY did not swallow after all.
            let ambiguous = self.fence_needed;
            return if ambiguous {
                Ok(ReplyAction::Forward)
            } else {
                Err(UnexpectedReply { tag: b'Z' })
            };
        };
        match front.expect {
            Expect::Sync
            | Expect::Query
            | Expect::FunctionCall
            | Expect::Survey
            | Expect::Listen => {
                let action = front.action;
                self.pop();
                Ok(action)
            }
            Expect::HeldQuery => {
                self.pop();
                Ok(ReplyAction::Skip)
            }
            Expect::Restore => {
                self.pop();
                Ok(ReplyAction::Forward)
            }
            // The fence has not answered yet (it turns into a Query when it does): an extra Sync's answer.
            Expect::Fence => Ok(ReplyAction::Forward),
            _ => Err(UnexpectedReply { tag: b'Z' }),
        }
    }

    fn pop(&mut self) {
        self.entries.pop_front();
        self.pass_copy_marks();
    }

    fn pass_copy_marks(&mut self) {
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.expect == Expect::CopyEnd)
        {
            self.entries.pop_front();
        }
    }

    /// The client gets an error also for a Parse of ours: it is its own statement's.
    fn on_error(&mut self) -> ReplyAction {
        let Some(front) = self.entries.front_mut() else {
            return ReplyAction::Forward;
        };
        let (expect, own) = (front.expect, front.is_own_query());
        self.undone.extend(front.note.take().map(|note| Note {
            failed: true,
            ..*note
        }));
        if self.swallowed_syncs {
            self.fence_needed = true;
            self.swallowed_syncs = false;
        }
        self.copying_in = false;
        match expect {
            Expect::Sync
            | Expect::Query
            | Expect::FunctionCall
            | Expect::Fence
            | Expect::Survey
            | Expect::HeldQuery
            | Expect::Restore
            | Expect::Listen => {}
            _ => {
                let next_sync = self
                    .entries
                    .iter()
                    .position(|entry| entry.expect == Expect::Sync);
                self.skipping_to_sync = next_sync.is_none();
                let ignored = self
                    .entries
                    .drain(..next_sync.unwrap_or(self.entries.len()));
                let mut query_skipped = false;
                let notes = ignored.filter_map(|entry| {
                    query_skipped |= entry.is_clients_query();
                    entry.note
                });
                self.undone.extend(notes.map(|note| *note));
                match self.entries.front_mut() {
                    Some(sync) if query_skipped => sync.action = ReplyAction::Forward,
                    Some(_) => {}
                    None => self.query_skipped = query_skipped,
                }
                self.pass_copy_marks();
            }
        }
        if own {
            ReplyAction::Skip
        } else {
            ReplyAction::Forward
        }
    }

    /// CopyInResponse: Syncs sent behind the COPY and before the end of its data are swallowed by the server.
    fn on_copy_in(&mut self) {
        let end = self
            .entries
            .iter()
            .position(|entry| entry.expect == Expect::CopyEnd);
        self.copying_in = end.is_none();
        let until = end.unwrap_or(self.entries.len());
        let mut index = 0;
        let mut swallowed = false;
        self.entries.retain(|entry| {
            let inside = (1..=until).contains(&index);
            index += 1;
            let drop = inside && matches!(entry.expect, Expect::Sync | Expect::CopyEnd);
            swallowed |= drop && entry.expect == Expect::Sync;
            !drop
        });
        self.swallowed_syncs |= swallowed;
    }
}

impl PendingReplies {
    /// The fence's EmptyQueryResponse has come: everything before it is answered.
    pub fn on_empty_query(&mut self) {
        if let Some(front) = self.entries.front_mut()
            && front.expect == Expect::Fence
        {
            front.expect = Expect::Query;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Expect::*;

    /// Runs a script: `>X` pushes the message with that tag, `<X` is a reply. The result: the reply tags forwarded, and
    /// whether all was settled at the end.
    fn run(script: &str) -> Result<(String, PendingReplies), UnexpectedReply> {
        let mut replies = PendingReplies::default();
        let mut forwarded = String::new();
        for step in script.split_whitespace() {
            let (direction, tag) = step.split_at(1);
            let tag = tag.as_bytes()[0];
            if direction == ">" {
                replies.push(expect_of(tag), ReplyAction::Forward);
            } else if direction == "!" {
                replies.push(expect_of(tag), ReplyAction::Skip);
            } else {
                let action = if tag == b'Z' {
                    replies.on_ready()?
                } else {
                    replies.on_reply(tag)?
                };
                if tag == b'I' {
                    replies.on_empty_query();
                }
                if action == ReplyAction::Forward {
                    forwarded.push(tag as char);
                }
            }
        }
        Ok((forwarded, replies))
    }

    fn expect_of(tag: u8) -> Expect {
        match tag {
            b'P' => Parse,
            b'B' => Bind,
            b'D' => Describe,
            b'E' => Execute,
            b'C' => Close,
            b'S' => Sync,
            b'Q' => Query,
            b'F' => FunctionCall,
            b'c' | b'f' => CopyEnd,
            b'0' => Fence,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn each_reply_answers_the_message_it_belongs_to() {
        for (script, forwarded, settled) in [
            (">Q <T <D <D <C <Z", "TDDCZ", true),
            (">Q <T <D <C", "TDC", false),
            (">P >B >D >E >S <1 <2 <T <D <C <Z", "12TDCZ", true),
            (">P >D <1 <t <n", "1tn", false), // flushed, not synced
            (">P <1 >S <Z", "1Z", true),
            (">P <1 >Q <C <Z", "1CZ", true),
            (">P >B >E", "", false),
            (">S >S >S <Z <Z", "ZZ", false),
            (">E >S <D <s <Z", "DsZ", true),
            (">F <V <Z", "VZ", true),
            // the proxy's own query before the client's
            ("!Q >Q <T <D <C <Z <T <C <Z", "TCZ", true),
            // an error ends a simple query only at its ReadyForQuery
            (">Q >Q <E <Z <C <Z", "EZCZ", true),
            // an error in a batch: all is ignored up to Sync, sent before or after
            (">P >B >E >S <E <Z", "EZ", true),
            (">P >B <E >E >S <Z", "EZ", true),
            (">P <E", "E", false),
            (">P <E >Q >B >S <Z", "EZ", true),
            // an error of the commit at Sync
            (">E >S <C <E <Z", "CEZ", true),
            // two batches in flight, the first fails
            (">P >S >P >S <E <Z <1 <Z", "EZ1Z", true),
        ] {
            let (got, replies) = run(script).unwrap_or_else(|error| panic!("{script}: {error}"));
            assert_eq!(
                (got.as_str(), replies.is_settled()),
                (forwarded, settled),
                "{script}"
            );
            assert!(!replies.needs_fence(), "{script}");
        }
    }

    #[test]
    fn syncs_inside_copy_in_are_swallowed() {
        for (script, forwarded, settled, fence) in [
            (">Q <G >c <C <Z", "GCZ", true, false),
            (">Q <G", "G", false, false),
            // libpq: Execute and Sync together, then data, CopyDone and another Sync
            (">E >S <G >c >S <C <Z", "GCZ", true, false),
            // all of it at once
            (">E >c >S <G <C <Z", "GCZ", true, false),
            // the COPY never starts: both Syncs are answered
            (">E >S <E >c >S <Z <Z", "EZZ", true, false),
            // it fails half-way: the first Sync may or may not have been swallowed
            (">E >S <G <E >c >S <Z", "GEZ", true, true),
            (">E >S <G <E >c >S <Z <Z", "GEZZ", true, true),
            // no Sync in doubt, no fence
            (">Q <G <E >c <Z", "GEZ", true, false),
        ] {
            let (got, replies) = run(script).unwrap_or_else(|error| panic!("{script}: {error}"));
            assert_eq!(
                (got.as_str(), replies.is_settled(), replies.needs_fence()),
                (forwarded, settled, fence),
                "{script}"
            );
        }
    }

    #[test]
    fn a_fence_settles_how_many_ready_for_query_were_owed() {
        for script in [
            ">E >S <G <E >c >S <Z !0 <I <Z",
            ">E >S <G <E >c >S <Z !0 <Z <I <Z",
            ">E >S <G <E >c >S !0 <Z <Z <I <Z",
        ] {
            let (got, replies) = run(script).unwrap_or_else(|error| panic!("{script}: {error}"));
            assert!(
                got.starts_with("GEZ") && !got.contains('I'),
                "{script}: {got}"
            );
            assert!(replies.is_settled() && !replies.needs_fence(), "{script}");
        }
    }

    #[test]
    fn a_reply_nobody_asked_for_is_an_error() {
        for script in [
            "<Z",
            "<D",
            ">P <2",
            ">Q <1",
            ">S <C",
            ">Q <C <Z <Z",
            ">B <T",
        ] {
            assert!(run(script).is_err(), "{script}");
        }
    }

    #[test]
    fn outstanding_counts_the_ready_for_query_to_come() {
        let (_, replies) = run(">P >B >E >S >Q >Q <1 <2").unwrap();
        assert_eq!(replies.outstanding(), 3);
    }
}
