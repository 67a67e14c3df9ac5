//! SCRAM-SHA-256(-PLUS) towards clients and backends.

pub mod client;
