//! What a session does, step by step: made by the grammar, or read from a file.
//!
//! ```text
//! # why it is kept
//! session [["TimeZone","Europe/Paris"]]          its startup parameters
//! [{"Query":"SET work_mem = '3MB'"}]             a step: messages in one write
//! [{"Parse":["s1","SHOW work_mem"]},{"Bind":["","s1",[]]},{"Execute":["",0]},"Sync"]
//! ```
//! Reports are printed like this, too.

use crate::support::frames;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Stands in texts where sessions must not share a name; each run of a session has its own digits for it.
pub const TAG: &str = "{tag}";

/// A message of the protocol.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Message {
    Query(String),
    /// Statement, text.
    Parse(String, String),
    /// Portal, statement, arguments.
    Bind(String, String, Vec<String>),
    /// Portal, rows.
    Execute(String, u32),
    DescribeStatement(String),
    DescribePortal(String),
    CloseStatement(String),
    ClosePortal(String),
    CopyData(String),
    CopyDone,
    CopyFail,
    Flush,
    Sync,
}

impl Message {
    fn bytes(&self, tag: &str) -> Vec<u8> {
        let own = |text: &str| text.replace(TAG, tag);
        match self {
            Message::Query(sql) => frames::query(&own(sql)),
            Message::Parse(name, sql) => frames::parse(name, &own(sql)),
            Message::Bind(portal, statement, values) => {
                let values: Vec<String> = values.iter().map(|value| own(value)).collect();
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                frames::bind(portal, statement, &values)
            }
            Message::Execute(portal, rows) => frames::execute(portal, *rows),
            Message::DescribeStatement(name) => frames::describe_statement(name),
            Message::DescribePortal(name) => frames::describe_portal(name),
            Message::CloseStatement(name) => frames::close_statement(name),
            Message::ClosePortal(name) => frames::close_portal(name),
            Message::CopyData(data) => frames::copy_data(data.as_bytes()),
            Message::CopyDone => frames::copy_done(),
            Message::CopyFail => frames::copy_fail("no more"),
            Message::Flush => frames::flush(),
            Message::Sync => frames::sync(),
        }
    }

    /// Its text of SQL.
    pub fn text(&self) -> Option<&str> {
        match self {
            Message::Query(sql) | Message::Parse(_, sql) => Some(sql),
            _ => None,
        }
    }
}

/// Messages in one write. The last brings a ReadyForQuery.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Step(pub Vec<Message>);

impl Step {
    pub fn query(sql: &str) -> Self {
        Self(vec![Message::Query(sql.to_owned())])
    }

    pub fn bytes(&self, tag: &str) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|message| message.bytes(tag))
            .collect()
    }

    /// ReadyForQuery messages that it brings.
    pub fn answers(&self) -> usize {
        let is_answered = |message: &&Message| matches!(message, Message::Query(_) | Message::Sync);
        self.0.iter().filter(is_answered).count()
    }

    /// Its texts of SQL.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(Message::text)
    }
}

/// What one session does.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Script {
    pub startup: Vec<(String, String)>,
    pub steps: Vec<Step>,
}

impl Script {
    pub fn listens(&self) -> bool {
        let texts = || self.steps.iter().flat_map(Step::texts);
        texts().any(|text| text.contains("LISTEN"))
    }
}

/// The sessions in a file's text.
pub fn read(text: &str) -> Vec<Script> {
    let mut scripts: Vec<Script> = Vec::new();
    for line in text.lines() {
        if let Some(startup) = line.strip_prefix("session ") {
            scripts.push(Script {
                startup: serde_json::from_str(startup).unwrap(),
                steps: Vec::new(),
            });
        } else if line.starts_with('[') {
            let step = serde_json::from_str(line).unwrap_or_else(|bad| panic!("{line}: {bad}"));
            scripts.last_mut().unwrap().steps.push(Step(step));
        }
    }
    scripts
}

/// As [`read`] reads it.
pub fn written(scripts: &[Script]) -> String {
    let mut text = String::new();
    for script in scripts {
        let startup = serde_json::to_string(&script.startup).unwrap();
        writeln!(text, "session {startup}").unwrap();
        for step in &script.steps {
            writeln!(text, "{}", serde_json::to_string(&step.0).unwrap()).unwrap();
        }
    }
    text
}

#[test]
fn what_is_written_can_be_read() {
    let script = Script {
        startup: vec![("options".to_owned(), "-c app.a=\"1\"".to_owned())],
        steps: vec![
            Step::query("SELECT 'it''s \"so\"\n'"),
            Step(vec![
                Message::Bind(String::new(), "s1".to_owned(), vec!["x".to_owned()]),
                Message::Sync,
            ]),
        ],
    };
    let both = [script, Script::default()];
    assert_eq!(read(&written(&both)), both);
}
