//! The configuration as written: a TOML file and the environment, read key by key, so that one bad value does not
//! hide another. What was never asked for is an unknown key.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::env::{EnvValue, Overrides};
use super::faults::{ConfigFault, ConfigFaults};
use super::values::{self, Misread, Reading};

/// Nobody writes a configuration this long; a device file given by mistake is.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads the file; what stops it as a whole is the only fault told.
pub(super) fn read(path: &Path) -> Result<Table, ConfigFaults> {
    let fault = |text: String| ConfigFaults::one(path.display().to_string(), text);
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| {
            fault(format!(
                "can't be read ({error}); check the path and its permissions"
            ))
        })?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(fault(format!(
            "is longer than {FILE_BYTES_MAX} bytes; is it the configuration?"
        )));
    }
    // The error's own Display shows the line, which may hold anything; its message and place are enough.
    text.parse::<Table>().map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        fault(format!(
            "is not TOML at line {line}, column {column} ({}); correct it",
            error.message().replace('\n', ", ")
        ))
    })
}

/// What all sections share: where faults go, which keys were asked for, what file paths are relative to.
pub(super) struct Context {
    base: PathBuf,
    faults: RefCell<Vec<ConfigFault>>,
    asked: RefCell<Vec<String>>,
}

impl Context {
    pub(super) fn new(config_file: &Path, faults: Vec<ConfigFault>) -> Self {
        let base = config_file
            .parent()
            .map(Path::to_path_buf)
            .unwrap_or_default();
        Self {
            base,
            faults: RefCell::new(faults),
            asked: RefCell::default(),
        }
    }

    pub(super) fn fault(&self, key: impl Into<String>, text: impl Into<String>) {
        self.faults.borrow_mut().push(ConfigFault {
            key: key.into(),
            text: text.into(),
        });
    }

    /// Every fault so far.
    pub(super) fn into_faults(self) -> Vec<ConfigFault> {
        self.faults.into_inner()
    }

    /// Every key that was asked for, as its path.
    #[cfg(test)]
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.borrow().clone()
    }
}

/// File and environment, section by section.
pub(super) struct Document<'c> {
    context: &'c Context,
    table: Table,
    overrides: Overrides,
    sections: Vec<&'static str>,
}

impl<'c> Document<'c> {
    pub(super) fn new(context: &'c Context, table: Table, overrides: Overrides) -> Self {
        Self {
            context,
            table,
            overrides,
            sections: Vec::new(),
        }
    }

    /// Takes one section out; an absent one is empty.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'c> {
        self.sections.push(name);
        let table = match self.table.remove(name) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                self.context
                    .fault(name, Misread::Type("a section").text(&other));
                Table::new()
            }
        };
        let env = self.overrides.remove(name).unwrap_or_default();
        Section {
            context: self.context,
            path: name.into(),
            table,
            env,
            asked: Vec::new(),
        }
    }

    /// What is left was never asked for.
    pub(super) fn finish(self) {
        let known = self.sections.join(", ");
        for name in self.table.keys() {
            self.context
                .fault(name, format!("unknown section; known are: {known}"));
        }
        for value in self.overrides.values().flat_map(BTreeMap::values) {
            self.context.fault(
                &value.variable,
                format!("unknown section; known are: {known}"),
            );
        }
    }
}

/// The keys of one section.
pub(super) struct Section<'c> {
    context: &'c Context,
    path: String,
    table: Table,
    env: BTreeMap<String, EnvValue>,
    asked: Vec<&'static str>,
}

impl<'c> Section<'c> {
    /// Is the key written anywhere, well or badly?
    pub(super) fn gives(&self, key: &str) -> bool {
        self.table.contains_key(key) || self.env.contains_key(key)
    }

    /// The key's value; `None` if absent or faulty.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&Value) -> Reading<T>,
    ) -> Option<T> {
        self.asked.push(key);
        self.context.asked.borrow_mut().push(self.key_path(key));
        let written = self.table.remove(key);
        if let Some(env) = self.env.remove(key) {
            let key_path = format!("{} ({})", self.key_path(key), env.variable);
            let (value, reading) = read_text(&env.text, read);
            return self.take(&key_path, &value, reading);
        }
        let value = written?;
        let reading = read(&value);
        self.take(&self.key_path(key), &value, reading)
    }

    /// The key's value or its default; also the default if faulty, so that the walk goes on.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl Fn(&Value) -> Reading<T>,
    ) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// A path, relative to the configuration's folder.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let base = &self.context.base;
        self.optional(key, |value| values::text(value).map(|path| base.join(path)))
    }

    /// A file that must be readable.
    pub(super) fn file(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.path(key)?;
        self.require_readable(key, &path);
        Some(path)
    }

    /// A file that must be readable, with a default name beside the configuration.
    pub(super) fn file_or(&mut self, key: &'static str, default: &str) -> PathBuf {
        let given = self.gives(key);
        let path = self.path(key);
        let checked = path.is_some() || !given;
        let path = path.unwrap_or_else(|| self.context.base.join(default));
        if checked {
            self.require_readable(key, &path);
        }
        path
    }

    fn require_readable(&self, key: &str, path: &Path) {
        if let Err(error) = try_open(path) {
            let path = path.display();
            self.fault(
                key,
                format!("{path} can't be read ({error}); check the path and its permissions"),
            );
        }
    }

    /// A list of tables, each a section of its own.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Section<'c>> {
        let tables = self
            .optional(key, values::list(values::table))
            .unwrap_or_default();
        let section = |(index, table)| Section {
            context: self.context,
            path: format!("{}[{index}]", self.key_path(key)),
            table,
            env: BTreeMap::new(),
            asked: Vec::new(),
        };
        tables.into_iter().enumerate().map(section).collect()
    }

    /// A fault of one of the section's keys.
    pub(super) fn fault(&self, key: &str, text: impl Into<String>) {
        self.context.fault(self.key_path(key), text);
    }

    /// A fault of the section as a whole.
    pub(super) fn fault_of_all(&self, text: impl Into<String>) {
        self.context.fault(&self.path, text);
    }

    /// What is left was never asked for.
    pub(super) fn finish(self) {
        let known = self.asked.join(", ");
        for key in self.table.keys() {
            self.fault(
                key,
                format!("unknown key; known in {} are: {known}", self.path),
            );
        }
        for value in self.env.values() {
            self.context.fault(
                &value.variable,
                format!("unknown key; known in {} are: {known}", self.path),
            );
        }
    }

    fn key_path(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    fn take<T>(&self, key_path: &str, value: &Value, reading: Reading<T>) -> Option<T> {
        match reading {
            Ok(good) => return Some(good),
            Err(Misread::Entries(entries)) => {
                for (index, text) in entries {
                    self.context.fault(format!("{key_path}[{index}]"), text);
                }
            }
            Err(misread) => self.context.fault(key_path, misread.text(value)),
        }
        None
    }
}

/// Environment text is a TOML value if that has the type asked for (`20`, `["a"]`), else a string (`15s`, `md5`).
fn read_text<T>(text: &str, read: impl Fn(&Value) -> Reading<T>) -> (Value, Reading<T>) {
    if let Ok(value) = text.parse::<Value>() {
        let reading = read(&value);
        if !matches!(reading, Err(Misread::Type(_))) {
            return (value, reading);
        }
    }
    let value = Value::String(text.into());
    let reading = read(&value);
    (value, reading)
}

/// Only regular files: opening a pipe nobody writes to would wait for ever.
fn try_open(path: &Path) -> io::Result<()> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    File::open(path).map(|_| ())
}
