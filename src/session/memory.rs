//! What the proxy remembers for a session while it has no backend.

use super::listen::{Listeners, Membership};
use super::prepared::{Names, StatementStore};
use super::requests::Unnamed;
use super::sql_statements::SqlStatements;
use crate::backend::settings::Settings;
use crate::pool::Pool;
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
    /// The pool of its backends.
    pub(super) pool: Arc<Pool>,
    /// Who listens for sessions without a backend.
    pub(super) listeners: Arc<Listeners>,
    /// What it listens to without one; boxed, as few sessions do.
    pub(super) subscription: Option<Box<Membership>>,
    /// It asks for sequence values by currval or lastval.
    pub(super) reads_sequences: bool,
    /// Its run-time parameters.
    pub(super) settings: Settings,
    /// Those it asked for at login: what RESET goes back to.
    pub(super) startup: Settings,
}

impl Memory {
    /// A session right after its login.
    pub(super) fn new(
        settings: Settings,
        statements: Arc<StatementStore>,
        pool: Arc<Pool>,
        listeners: Arc<Listeners>,
    ) -> Self {
        Self {
            unnamed: Unnamed::None,
            reads_sequences: false,
            names: Box::default(),
            sql: Box::default(),
            statements,
            pool,
            listeners,
            subscription: None,
            startup: settings.clone(),
            settings,
        }
    }
}
