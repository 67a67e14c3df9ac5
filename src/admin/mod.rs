//! The operator's window.

pub mod http;
mod pins;
