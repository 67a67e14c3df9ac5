//! What a client sees of a session, and when that counts as the same.

use super::script::{Script, Step, TAG};
use crate::support::Frame;
use bytes::{Bytes, BytesMut};

/// What a client has seen.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Seen {
    /// The welcome, then what each step was answered, as long as the connection lasts. Frames in order.
    pub steps: Vec<Vec<Frame>>,
    /// Notifications in order. When they come, relative to answers, is nobody's promise.
    pub notifications: Vec<Frame>,
}

/// Where two sessions differ: in the answer to this step; 0 is the welcome, and the one after the last the notifications.
#[derive(Clone, Debug)]
pub struct Difference {
    pub session: usize,
    pub step: usize,
    pub directly: Vec<Frame>,
    pub through: Vec<Frame>,
}

impl Seen {
    /// Takes what came in answer to a step, each frame without what can't be the same twice.
    pub fn take(&mut self, frames: Vec<Frame>, tag: &str) {
        let frames = frames.into_iter().map(|frame| masked(frame, tag));
        let (notifications, frames) = frames.partition(|frame| frame.tag == b'A');
        self.notifications.extend::<Vec<Frame>>(notifications);
        self.steps.push(frames);
    }

    /// The first difference.
    pub fn difference(
        &self,
        through: &Seen,
        session: usize,
        script: &Script,
    ) -> Option<Difference> {
        let found = |step, directly: &[Frame], through: &[Frame]| Difference {
            session,
            step,
            directly: directly.to_vec(),
            through: through.to_vec(),
        };
        let steps = self.steps.iter().zip(&through.steps).enumerate();
        for (number, (directly, through)) in steps {
            let step = number.checked_sub(1).map(|before| &script.steps[before]);
            if directly != through && !is_accepted(step, directly, through) {
                return Some(found(number, directly, through));
            }
        }
        (self.notifications != through.notifications).then(|| {
            let end = script.steps.len() + 1;
            found(end, &self.notifications, &through.notifications)
        })
    }
}

/// currval and lastval may have no answer where PostgreSQL has one, and then say so; another client's value they never give.
fn is_accepted(step: Option<&Step>, directly: &[Frame], through: &[Frame]) -> bool {
    let asks_alone = step.is_some_and(|step| {
        step.0.len() == 1
            && step.texts().all(|text| {
                text.starts_with("SELECT currval(") || text.starts_with("SELECT lastval(")
            })
    });
    if asks_alone && through.len() == 2 {
        return is_error(&through[0], &["55000"]) && directly.last() == through.last();
    }
    let (directly, through) = (batches(directly), batches(through));
    directly.len() == through.len()
        && (directly.into_iter().zip(through))
            .all(|(directly, through)| directly == through || cannot_be_prepared(directly, through))
}

/// Up to each ReadyForQuery.
fn batches(frames: &[Frame]) -> Vec<&[Frame]> {
    frames.split_inclusive(|frame| frame.tag == b'Z').collect()
}

fn is_error(frame: &Frame, codes: &[&str]) -> bool {
    frame.tag == b'E' && codes.contains(&frame.sqlstate().as_str())
}

/// A statement that the backend lacks is used where it can't be prepared: its transaction has failed, or its table has gone or
/// changed. That is said at once, and not what is wrong with its arguments, or which parameters it has.
fn cannot_be_prepared(directly: &[Frame], through: &[Frame]) -> bool {
    let ([before @ .., error, ready], Some(end)) = (through, directly.last()) else {
        return false;
    };
    let in_failed = ready.body == b"E"[..] && is_error(error, &["25P02"]);
    let fails_too = directly.iter().any(|frame| frame.tag == b'E');
    let of_table = fails_too && is_error(error, &["42P01", "42703", "0A000"]);
    directly.starts_with(before) && ready == end && (in_failed || of_table)
}

/// Without what can't be the same twice.
fn masked(mut frame: Frame, tag: &str) -> Frame {
    frame.body = match frame.tag {
        // The process that was told.
        b'A' => frame.body.slice(4..),
        // The place in the server's source that speaks: file, line, routine.
        b'E' | b'N' => {
            let fields = frame.body.split(|&byte| byte == 0);
            let kept = fields.filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')));
            kept.collect::<Vec<_>>().join(&0).into()
        }
        b'T' => without_table_oids(&frame.body),
        _ => frame.body,
    };
    frame.body = replaced(&frame.body, tag);
    frame
}

/// Tables of the session's own have other numbers each time: int32 after each column's name.
fn without_table_oids(body: &[u8]) -> Bytes {
    let mut masked = BytesMut::from(&body[..2]);
    let mut rest = &body[2..];
    while let Some(end) = rest.iter().position(|&byte| byte == 0) {
        // Name, zero byte; table's OID, column's number; type's OID, length, modifier, format.
        let (name, after) = rest.split_at(end + 1);
        masked.extend_from_slice(name);
        masked.extend_from_slice(&[0; 4]);
        masked.extend_from_slice(&after[4..18]);
        rest = &after[18..];
    }
    masked.freeze()
}

/// Names of the session's own have other digits each time.
fn replaced(body: &[u8], tag: &str) -> Bytes {
    let mut replaced = BytesMut::new();
    let mut rest = body;
    while let Some(at) = (rest.windows(tag.len())).position(|window| window == tag.as_bytes()) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(TAG.as_bytes());
        rest = &rest[at + tag.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced.freeze()
}
