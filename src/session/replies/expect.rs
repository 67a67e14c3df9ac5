//! Messages that get an answer, and which replies answer them.

/// A message that gets an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// Parse: ParseComplete.
    Parse,
    /// Bind: BindComplete.
    Bind,
    /// Describe: (ParameterDescription,) RowDescription or NoData.
    Describe,
    /// Execute: rows, then CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// Close: CloseComplete.
    Close,
    /// Sync: ReadyForQuery.
    Sync,
    /// Query: anything, then ReadyForQuery.
    Query,
    /// FunctionCall: FunctionCallResponse, then ReadyForQuery.
    FunctionCall,
    /// CopyDone or CopyFail: no answer of its own; marks where the client's COPY data ended.
    CopyEnd,
    /// An empty query of the proxy's own behind a COPY that failed.
    Fence,
    /// A Flush that is not empty: an error, and nothing else.
    BadFlush,
    /// A query of the proxy's own that asks what the session has left.
    Survey,
    /// A query of the proxy's own about the session's channels.
    Listen,
    /// An Execute of the proxy's own, whose rows it reads.
    Ask,
    /// A Describe of the proxy's own, whose answer it reads.
    Shape,
    /// Query, whose ReadyForQuery is that of the `Restore` behind it.
    HeldQuery,
    /// A query of the proxy's own that belongs to the client's before it: what follows is the client's.
    Restore,
}

/// What to do with a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyAction {
    /// The client asked: it gets the reply.
    Forward,
    /// The proxy asked: the reply is swallowed.
    Skip,
}

/// Whether a reply can answer a message, and whether it is the last of the answer.
pub(super) fn answers(expect: Expect, tag: u8) -> (bool, bool) {
    match expect {
        Expect::Parse => (matches!(tag, b'1' | b'E'), true),
        Expect::Bind => (matches!(tag, b'2' | b'E'), true),
        Expect::Close => (matches!(tag, b'3' | b'E'), true),
        Expect::Describe => (matches!(tag, b't' | b'T' | b'n' | b'E'), tag != b't'),
        Expect::Execute => (
            matches!(
                tag,
                b'D' | b'C' | b'I' | b's' | b'G' | b'H' | b'd' | b'c' | b'E'
            ),
            matches!(tag, b'C' | b'I' | b's'),
        ),
        Expect::Query | Expect::HeldQuery => (
            matches!(
                tag,
                b'T' | b'D' | b'C' | b'I' | b'G' | b'H' | b'd' | b'c' | b'E'
            ),
            false,
        ),
        Expect::FunctionCall => (matches!(tag, b'V' | b'E'), false),
        Expect::Survey | Expect::Restore => (matches!(tag, b'T' | b'D' | b'C' | b'E'), false),
        Expect::Shape => (matches!(tag, b't' | b'T' | b'n' | b'E'), tag != b't'),
        Expect::Ask => (matches!(tag, b'D' | b'C' | b'E'), tag == b'C'),
        Expect::Listen => (matches!(tag, b'C' | b'E'), false),
        Expect::Sync => (tag == b'E', false),
        Expect::Fence => (matches!(tag, b'I' | b'E'), false),
        Expect::BadFlush => (tag == b'E', false),
        Expect::CopyEnd => (false, false),
    }
}
