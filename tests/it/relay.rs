//! The same frames come back through the proxy as without it.

mod compare;
mod copy;
mod extended;
mod simple;
mod sizes;
