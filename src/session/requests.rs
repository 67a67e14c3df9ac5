//! Reads the frames a client sends, as far as the proxy must: which answers they will get, and what their text leaves
//! behind in the server's session. Bodies of any length are read in pieces, in constant memory. Pure: no I/O.

use super::replies::Expect;
use super::statement::{Effects, StatementReader};
use crate::backend::settings::Settings;
use crate::wire::frame::{HEADER_LEN, Header};
use bytes::BytesMut;

/// The longest unnamed Parse message kept for another backend; with a longer one the session keeps its backend.
const UNNAMED_LEN_MAX: usize = 16 * 1024;

/// How far into a Bind, Describe or Close the names are looked for. PostgreSQL cuts names at 63 bytes when it makes
/// them in SQL; in the protocol only the message's length bounds them.
pub const NAMES_LEN_MAX: usize = 8 * 1024;

/// Messages that carry little are refused when they announce much, as PostgreSQL does (`PQ_SMALL_MESSAGE_LIMIT`,
/// src/backend/tcop/postgres.c).
const SMALL_LEN_MAX: usize = 10_000;

/// The client broke the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// PostgreSQL's own words.
    #[error("invalid frontend message type {0}")]
    UnknownType(u8),
    /// Too long for its kind.
    #[error("invalid message length {len} for message type {tag:#04x}")]
    BadLength {
        /// The message's tag.
        tag: u8,
        /// Bytes of body announced.
        len: usize,
    },
    /// A name without an end.
    #[error("message type {0:#04x} names a statement or portal without an end")]
    BadName(u8),
}

/// What must happen before a message goes to the backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// It uses the unnamed statement, which this backend may not have.
    UnnamedStatement,
}

/// What the next frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Not enough has come to tell.
    Incomplete,
    /// Terminate.
    Quit,
    /// A frame to pass on: what answers it, and what it needs.
    Frame {
        /// Its header.
        header: Header,
        /// What answers it, if anything does.
        expect: Option<Expect>,
        /// What it needs.
        need: Need,
    },
}

/// The unnamed statement as the client last prepared it.
#[derive(Debug, Default)]
pub enum Unnamed {
    /// There is none: PostgreSQL drops it at every simple query.
    #[default]
    None,
    /// So that another backend can be given it.
    Kept(Kept),
    /// It was too long to keep: it lives on the backend that has it.
    TooLong,
}

/// An unnamed statement that another backend can be given.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// The whole Parse message.
    pub parse: BytesMut,
    /// What its text leaves behind when it runs.
    pub effects: Effects,
    /// The settings that its literals were read under, if it has some.
    pub reading: Option<Settings>,
}

/// What a frame passed on has told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// A query or a statement prepared without a name, and what its text leaves behind.
    Text(Effects),
    /// A statement prepared with a name.
    Named(Effects),
}

impl Told {
    /// The same, with the arguments of set_config read in a text that has come whole.
    fn read_set_config(self, text: &[u8]) -> Told {
        match self {
            Told::Text(effects) => Told::Text(effects.read_set_config(text)),
            Told::Named(effects) => Told::Named(effects.read_set_config(text)),
        }
    }
}

#[derive(Debug)]
enum Body {
    Opaque,
    Query(StatementReader),
    /// The name of a Parse: has any byte of it come?
    ParseName {
        named: bool,
        reader: StatementReader,
    },
    ParseText {
        named: bool,
        reader: StatementReader,
    },
    ParseRest {
        named: bool,
        effects: Effects,
    },
}

/// Reads one frame after the other.
#[derive(Debug)]
pub struct RequestReader {
    remaining: usize,
    body: Body,
    keeping: bool,
}

impl Default for RequestReader {
    fn default() -> Self {
        Self {
            remaining: 0,
            body: Body::Opaque,
            keeping: false,
        }
    }
}

/// Looks at the frame at the front of `bytes`.
pub fn look(bytes: &[u8]) -> Result<Next, Violation> {
    let header = match Header::parse(bytes) {
        Ok(Some(header)) => header,
        Ok(None) => return Ok(Next::Incomplete),
        Err(bad) => {
            return Err(Violation::BadLength {
                tag: bad.tag,
                len: bad.len as usize,
            });
        }
    };
    let (expect, small) = match header.tag {
        b'Q' => (Some(Expect::Query), false),
        b'P' => (Some(Expect::Parse), false),
        b'B' => (Some(Expect::Bind), false),
        b'F' => (Some(Expect::FunctionCall), false),
        b'd' => (None, false),
        b'E' => (Some(Expect::Execute), true),
        b'D' => (Some(Expect::Describe), true),
        b'C' => (Some(Expect::Close), true),
        b'S' => (Some(Expect::Sync), true),
        b'c' | b'f' => (Some(Expect::CopyEnd), true),
        // A Flush that is not empty is an error to the server, which then skips up to Sync.
        b'H' => ((header.body_len > 0).then_some(Expect::BadFlush), true),
        b'X' => return Ok(Next::Quit),
        other => return Err(Violation::UnknownType(other)),
    };
    if small && header.body_len > SMALL_LEN_MAX {
        return Err(Violation::BadLength {
            tag: header.tag,
            len: header.body_len,
        });
    }
    match uses_unnamed(header, &bytes[HEADER_LEN..])? {
        None => Ok(Next::Incomplete),
        Some(true) => Ok(Next::Frame {
            header,
            expect,
            need: Need::UnnamedStatement,
        }),
        Some(false) => Ok(Next::Frame {
            header,
            expect,
            need: Need::Nothing,
        }),
    }
}

/// Whether a Bind or Describe means the unnamed statement; `None` while its names have not all come.
fn uses_unnamed(header: Header, body: &[u8]) -> Result<Option<bool>, Violation> {
    let body = &body[..body.len().min(header.body_len)];
    let name = match header.tag {
        b'B' => match body.iter().position(|&byte| byte == 0) {
            Some(end) => &body[end + 1..],
            None => return missing(header, body),
        },
        b'D' => match body {
            [b'S', name @ ..] => name,
            [] => return missing(header, body),
            _ => return Ok(Some(false)),
        },
        // Whether a Parse has a name must show in its first piece, and which function is called.
        b'P' if body.is_empty() => return missing(header, body),
        b'F' if body.len() < 4 && body.len() < header.body_len => return Ok(None),
        _ => return Ok(Some(false)),
    };
    match name.first() {
        Some(first) => Ok(Some(*first == 0)),
        None => missing(header, body),
    }
}

fn missing(header: Header, body: &[u8]) -> Result<Option<bool>, Violation> {
    let all_there = body.len() == header.body_len;
    if all_there || body.len() > NAMES_LEN_MAX {
        return Err(Violation::BadName(header.tag));
    }
    Ok(None)
}

impl RequestReader {
    /// Between two frames.
    pub fn at_boundary(&self) -> bool {
        self.remaining == 0
    }

    /// Bytes of the current frame still to come.
    pub fn remaining(&self) -> usize {
        self.remaining
    }

    /// A frame begins; its header is the first thing [`Self::read`] gets. `reader` reads its text, if it has one.
    pub fn begin(&mut self, header: Header, reader: StatementReader, unnamed: &mut Unnamed) {
        self.remaining = header.frame_len();
        self.keeping = false;
        self.body = match header.tag {
            b'Q' => {
                *unnamed = Unnamed::None;
                Body::Query(reader)
            }
            b'P' => Body::ParseName {
                named: false,
                reader,
            },
            _ => Body::Opaque,
        };
    }

    /// A frame whose front is on its way already: the rest follows as it comes.
    pub fn begin_rest(&mut self, len: usize) {
        self.remaining = len;
        self.keeping = false;
        self.body = Body::Opaque;
    }

    /// Reads the next piece of the frame. Returns what the frame has told when it is whole.
    ///
    /// `piece` must not reach beyond the frame, and the first piece must hold the whole header.
    pub fn read(&mut self, piece: &[u8], first: bool, unnamed: &mut Unnamed) -> Option<Told> {
        self.remaining -= piece.len();
        let body = if first { &piece[HEADER_LEN..] } else { piece };
        if matches!(self.body, Body::Opaque) {
            return None;
        }
        if first {
            self.start_keeping(piece, body, unnamed);
        } else if self.keeping
            && let Unnamed::Kept(kept) = unnamed
        {
            kept.parse.extend_from_slice(piece);
        }
        self.read_body(body);
        if self.remaining > 0 {
            return None;
        }
        let told = self.finish().map(|told| match first {
            true => told.read_set_config(body),
            false => told,
        });
        if self.keeping
            && let (Unnamed::Kept(kept), Some(Told::Text(told))) = (unnamed, told)
        {
            kept.effects = told;
        }
        told
    }

    /// A Parse without a name replaces the unnamed statement.
    fn start_keeping(&mut self, piece: &[u8], body: &[u8], unnamed: &mut Unnamed) {
        let is_unnamed = matches!(self.body, Body::ParseName { .. }) && body.first() == Some(&0);
        if !is_unnamed {
            return;
        }
        if piece.len() + self.remaining > UNNAMED_LEN_MAX {
            *unnamed = Unnamed::TooLong;
            return;
        }
        self.keeping = true;
        *unnamed = Unnamed::Kept(Kept {
            parse: BytesMut::from(piece),
            ..Kept::default()
        });
    }

    fn read_body(&mut self, mut body: &[u8]) {
        loop {
            match &mut self.body {
                Body::Opaque | Body::ParseRest { .. } => return,
                Body::Query(reader) => {
                    // The text's end is a zero byte, which no statement contains.
                    reader.feed(body);
                    return;
                }
                Body::ParseName { named, reader } => {
                    let end = body.iter().position(|&byte| byte == 0);
                    let named = *named || end.unwrap_or(body.len()) > 0;
                    let Some(end) = end else {
                        let reader = std::mem::take(reader);
                        self.body = Body::ParseName { named, reader };
                        return;
                    };
                    body = &body[end + 1..];
                    let reader = std::mem::take(reader);
                    self.body = Body::ParseText { named, reader };
                }
                Body::ParseText { named, reader } => {
                    let end = body.iter().position(|&byte| byte == 0);
                    reader.feed(&body[..end.unwrap_or(body.len())]);
                    if end.is_some() {
                        let effects = std::mem::take(reader).finish();
                        self.body = Body::ParseRest {
                            named: *named,
                            effects,
                        };
                    }
                    return;
                }
            }
        }
    }

    fn finish(&mut self) -> Option<Told> {
        match std::mem::replace(&mut self.body, Body::Opaque) {
            Body::Query(reader) => Some(Told::Text(reader.finish())),
            Body::ParseRest {
                named: true,
                effects,
            } => Some(Told::Named(effects)),
            Body::ParseRest {
                named: false,
                effects,
            } => Some(Told::Text(effects)),
            // A Parse without an end: the server will refuse it.
            Body::Opaque | Body::ParseName { .. } | Body::ParseText { .. } => None,
        }
    }
}

/// The Close message that makes sure a backend has no unnamed statement of somebody else's.
pub const CLOSE_UNNAMED: &[u8] = b"C\0\0\0\x06S\0";

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![tag];
        frame.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        frame.extend_from_slice(body);
        frame
    }

    #[test]
    fn what_the_next_frame_is() {
        let bind = frame(b'B', b"portal\0\0\0\0\0\0\0\0");
        assert!(matches!(
            look(&bind),
            Ok(Next::Frame {
                expect: Some(Expect::Bind),
                need: Need::UnnamedStatement,
                ..
            })
        ));
        let named = frame(b'B', b"\0s1\0\0\0\0\0\0\0");
        assert!(matches!(
            look(&named),
            Ok(Next::Frame {
                need: Need::Nothing,
                ..
            })
        ));
        let describe = frame(b'D', b"S\0");
        assert!(matches!(
            look(&describe),
            Ok(Next::Frame {
                need: Need::UnnamedStatement,
                ..
            })
        ));
        let portal = frame(b'D', b"P\0");
        assert!(matches!(
            look(&portal),
            Ok(Next::Frame {
                need: Need::Nothing,
                ..
            })
        ));
        assert_eq!(look(b"X\0\0\0\x04"), Ok(Next::Quit));
        assert_eq!(look(b"Q\0\0"), Ok(Next::Incomplete));
    }

    #[test]
    fn names_are_waited_for_but_not_for_ever() {
        let bind = frame(b'B', b"portal\0\0rest");
        for cut in HEADER_LEN..HEADER_LEN + 7 {
            assert_eq!(look(&bind[..cut]), Ok(Next::Incomplete), "{cut}");
        }
        assert!(matches!(
            look(&bind[..HEADER_LEN + 8]),
            Ok(Next::Frame { .. })
        ));
        assert_eq!(look(&frame(b'B', b"no end")), Err(Violation::BadName(b'B')));
        let endless = frame(b'B', &vec![b'x'; 20_000]);
        assert_eq!(
            look(&endless[..NAMES_LEN_MAX + 10]),
            Err(Violation::BadName(b'B'))
        );
    }

    #[test]
    fn impossible_frames_are_refused() {
        assert_eq!(look(b"?\0\0\0\x04"), Err(Violation::UnknownType(b'?')));
        assert!(matches!(
            look(b"S\0\x10\0\0"),
            Err(Violation::BadLength { .. })
        ));
        assert!(matches!(
            look(b"Q\0\0\0\x01"),
            Err(Violation::BadLength { .. })
        ));
        assert!(matches!(
            look(b"Q\x7f\xff\xff\xff"),
            Err(Violation::BadLength { .. })
        ));
    }

    fn read(frame: &[u8], piece: usize) -> (Option<Told>, Unnamed) {
        let mut reader = RequestReader::default();
        let mut unnamed = Unnamed::None;
        let header = Header::parse(frame).unwrap().unwrap();
        reader.begin(header, StatementReader::default(), &mut unnamed);
        let first = HEADER_LEN + 1.min(header.body_len);
        let mut told = reader.read(&frame[..first], true, &mut unnamed);
        for piece in frame[first..].chunks(piece) {
            told = reader.read(piece, false, &mut unnamed);
        }
        assert!(reader.at_boundary());
        (told, unnamed)
    }

    #[test]
    fn what_a_frame_tells_does_not_depend_on_how_it_is_split() {
        for piece in [1, 3, 100] {
            let (told, _) = read(&frame(b'Q', b"listen a\0"), piece);
            assert_eq!(told, Some(Told::Text(Effects::LISTEN)));
            let (told, unnamed) = read(&frame(b'P', b"s1\0load 'x'\0\0\0"), piece);
            assert_eq!(told, Some(Told::Named(Effects::LOAD)));
            assert!(matches!(unnamed, Unnamed::None));
            let parse = frame(b'P', b"\0select 1\0\0\0");
            let (told, unnamed) = read(&parse, piece);
            assert_eq!(told, Some(Told::Text(Effects::default())));
            assert!(matches!(unnamed, Unnamed::Kept(kept) if kept.parse == parse));
        }
    }

    #[test]
    fn a_long_unnamed_statement_is_not_kept() {
        let mut body = vec![0];
        body.extend(std::iter::repeat_n(b' ', UNNAMED_LEN_MAX));
        body.extend_from_slice(b"\0\0\0");
        assert!(matches!(
            read(&frame(b'P', &body), 1000).1,
            Unnamed::TooLong
        ));
    }
}
