//! What an operator sees: numbers, readiness, log lines; and what nobody may see.

mod log;
mod numbers;
mod secrecy;
