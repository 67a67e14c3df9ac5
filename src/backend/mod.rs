//! One connection to a PostgreSQL server: made, used, cancelled, closed.

mod auth;
pub mod cancel;
pub mod connect;
pub mod connection;
pub mod exchange;
pub mod prepared;
pub mod settings;
