//! A connection on its way to being a session.

pub mod auth;
pub mod credentials;
pub mod handshake;
pub mod limits;
pub mod listener;
pub mod serve;
pub mod strangers;
mod welcome;
