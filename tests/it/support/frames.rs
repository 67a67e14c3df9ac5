//! Messages of the protocol: those clients send, made; those servers send, read.
//! (PostgreSQL documentation, "Message Formats".)

use bytes::Bytes;
use std::fmt;

/// One message.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub tag: u8,
    /// What follows its length.
    pub body: Bytes,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.body.escape_ascii().to_string();
        let cut: String = shown.chars().take(200).collect();
        write!(f, "{} {cut}", self.tag.escape_ascii())?;
        if cut.len() < shown.len() {
            write!(f, "… ({} bytes)", self.body.len())?;
        }
        Ok(())
    }
}

impl Frame {
    /// A field of an error or notice: `b'C'` is the SQLSTATE, `b'M'` the text.
    pub fn field(&self, code: u8) -> Option<String> {
        assert!(matches!(self.tag, b'E' | b'N'), "{self:?}");
        let fields = self.body.split(|&byte| byte == 0);
        let field = fields
            .into_iter()
            .find(|field| field.first() == Some(&code))?;
        Some(String::from_utf8_lossy(&field[1..]).into_owned())
    }

    /// An error's SQLSTATE.
    pub fn sqlstate(&self) -> String {
        self.field(b'C').unwrap_or_else(|| panic!("{self:?}"))
    }

    /// A row's values.
    pub fn values(&self) -> Vec<Option<String>> {
        assert_eq!(self.tag, b'D', "{self:?}");
        let mut rest = &self.body[2..];
        let mut values = Vec::new();
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let value = usize::try_from(i32::from_be_bytes(*len))
                .ok()
                .map(|len| &after[..len]);
            rest = &after[value.map_or(0, <[u8]>::len)..];
            values.push(value.map(|value| String::from_utf8_lossy(value).into_owned()));
        }
        values
    }
}

/// The tags of some frames, in order.
pub fn tags(frames: &[Frame]) -> String {
    frames.iter().map(|frame| char::from(frame.tag)).collect()
}

/// The first value of every row.
pub fn column(frames: &[Frame]) -> Vec<String> {
    let rows = frames.iter().filter(|frame| frame.tag == b'D');
    rows.map(|row| row.values()[0].clone().unwrap_or_default())
        .collect()
}

/// The SQLSTATEs of the errors among them.
pub fn errors(frames: &[Frame]) -> Vec<String> {
    let errors = frames.iter().filter(|frame| frame.tag == b'E');
    errors.map(Frame::sqlstate).collect()
}

/// Any message.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    message.extend_from_slice(body);
    message
}

fn with_zero(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn count(count: usize) -> [u8; 2] {
    u16::try_from(count).unwrap().to_be_bytes()
}

/// Values with their lengths, NULL as -1.
fn with_lengths(values: &[Option<&[u8]>]) -> Vec<u8> {
    let mut all = count(values.len()).to_vec();
    for value in values {
        let len = value.map_or(-1, |value| i32::try_from(value.len()).unwrap());
        all.extend_from_slice(&len.to_be_bytes());
        all.extend_from_slice(value.unwrap_or_default());
    }
    all
}

/// StartupMessage of protocol 3.0.
pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = 196_608u32.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend(with_zero(name));
        body.extend(with_zero(value));
    }
    body.push(0);
    // Untagged.
    message(0, &body).split_off(1)
}

/// CancelRequest.
pub fn cancel_request(pid: u32, secret: &[u8]) -> Vec<u8> {
    let body = [&80_877_102u32.to_be_bytes()[..], &pid.to_be_bytes(), secret].concat();
    message(0, &body).split_off(1)
}

/// Query.
pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &with_zero(sql))
}

/// Parse, without parameter types.
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(
        b'P',
        &[with_zero(name), with_zero(sql), vec![0, 0]].concat(),
    )
}

/// Bind, parameters as text, results as text.
pub fn bind(portal: &str, statement: &str, values: &[&str]) -> Vec<u8> {
    let values: Vec<_> = values.iter().map(|value| Some(value.as_bytes())).collect();
    let names = [with_zero(portal), with_zero(statement)].concat();
    message(
        b'B',
        &[names, vec![0, 0], with_lengths(&values), vec![0, 0]].concat(),
    )
}

/// Describe a statement.
pub fn describe_statement(name: &str) -> Vec<u8> {
    message(b'D', &[vec![b'S'], with_zero(name)].concat())
}

/// Describe a portal.
pub fn describe_portal(name: &str) -> Vec<u8> {
    message(b'D', &[vec![b'P'], with_zero(name)].concat())
}

/// Execute; 0 rows means all.
pub fn execute(portal: &str, rows_max: u32) -> Vec<u8> {
    message(
        b'E',
        &[with_zero(portal), rows_max.to_be_bytes().to_vec()].concat(),
    )
}

/// Close a statement.
pub fn close_statement(name: &str) -> Vec<u8> {
    message(b'C', &[vec![b'S'], with_zero(name)].concat())
}

/// Close a portal.
pub fn close_portal(name: &str) -> Vec<u8> {
    message(b'C', &[vec![b'P'], with_zero(name)].concat())
}

/// Sync.
pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

/// Flush.
pub fn flush() -> Vec<u8> {
    message(b'H', b"")
}

/// CopyData.
pub fn copy_data(data: &[u8]) -> Vec<u8> {
    message(b'd', data)
}

/// CopyDone.
pub fn copy_done() -> Vec<u8> {
    message(b'c', b"")
}

/// CopyFail.
pub fn copy_fail(why: &str) -> Vec<u8> {
    message(b'f', &with_zero(why))
}

/// Terminate.
pub fn terminate() -> Vec<u8> {
    message(b'X', b"")
}

/// FunctionCall, arguments and result as text.
pub fn function_call(oid: u32, arguments: &[&str]) -> Vec<u8> {
    let arguments: Vec<_> = arguments
        .iter()
        .map(|value| Some(value.as_bytes()))
        .collect();
    let oid = oid.to_be_bytes().to_vec();
    message(
        b'F',
        &[oid, vec![0, 0], with_lengths(&arguments), vec![0, 0]].concat(),
    )
}

/// The unnamed statement and portal, once: Parse, Bind, Execute.
pub fn extended(sql: &str, values: &[&str]) -> Vec<u8> {
    [parse("", sql), bind("", "", values), execute("", 0)].concat()
}
