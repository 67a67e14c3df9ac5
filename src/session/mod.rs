//! One authenticated client until it leaves.

pub mod pin;
pub mod replies;
pub mod statement;
