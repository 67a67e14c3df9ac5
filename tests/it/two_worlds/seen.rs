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

/// Differences that are known:
/// - currval and lastval may have no answer where PostgreSQL has one, and then say so; another client's value they never
///   give.
/// - What is wrong with the use of a statement is not said where the backend lacks the statement and can't prepare it: its
///   transaction has failed, or a table is not found any more.
/// - Where the table of a statement has changed, its parameters are not described before the error that says so.
fn is_accepted(step: Option<&Step>, directly: &[Frame], through: &[Frame]) -> bool {
    let asks_alone = step.is_some_and(|step| {
        step.0.len() == 1
            && step.texts().all(|text| {
                text.starts_with("SELECT currval(") || text.starts_with("SELECT lastval(")
            })
    });
    let is_error = |frame: &Frame, code| frame.tag == b'E' && frame.sqlstate() == code;
    if asks_alone && through.len() == 2 {
        return is_error(&through[0], "55000") && directly.last() == through.last();
    }
    let fails = |next: Option<&Frame>| next.is_some_and(|next| next.tag == b'E');
    let described = |number: usize| directly[number].tag == b't' && fails(directly.get(number + 1));
    let directly: Vec<&Frame> = (0..directly.len())
        .filter(|number| !described(*number))
        .map(|number| &directly[number])
        .collect();
    let mut pairs = directly.iter().copied().zip(through);
    directly.len() == through.len()
        && pairs.all(|(directly, through)| {
            let unprepared = is_error(through, "25P02") || is_error(through, "42P01");
            directly == through || directly.tag == b'E' && unprepared
        })
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
