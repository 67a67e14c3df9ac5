//! What the proxy remembers for a session while it has no backend.

use super::prepared::{Names, StatementStore};
use super::requests::Unnamed;
use super::sql_statements::SqlStatements;
use crate::backend::settings::Settings;
use std::sync::Arc;

/// One session's memory.
#[derive(Debug)]
pub(super) struct Memory {
    /// Its unnamed statement.
    pub(super) unnamed: Unnamed,
    /// Its names for prepared statements; boxed, as most sessions at rest have few or none.
    pub(super) names: Box<Names>,
    /// Its statements prepared by SQL.
    pub(super) sql: Box<SqlStatements>,
    /// Where statements are shared.
    pub(super) statements: Arc<StatementStore>,
    /// It asks for sequence values by currval or lastval.
    pub(super) reads_sequences: bool,
    /// Its run-time parameters.
    pub(super) settings: Settings,
    /// Those it asked for at login: what RESET goes back to.
    pub(super) startup: Settings,
}

impl Memory {
    /// A session right after its login.
    pub(super) fn new(settings: Settings, statements: Arc<StatementStore>) -> Self {
        Self {
            unnamed: Unnamed::None,
            reads_sequences: false,
            names: Box::default(),
            sql: Box::default(),
            statements,
            startup: settings.clone(),
            settings,
        }
    }
}
