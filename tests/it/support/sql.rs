//! tokio-postgres, shortened.

use super::wait::in_time;
use std::net::SocketAddr;
use tokio_postgres::{Client, Config, Error, NoTls, SimpleQueryMessage};

/// A client; its connection's task ends with it.
pub async fn connect_as(address: SocketAddr, database: &str, role: &str, password: &str) -> Client {
    let mut config = Config::new();
    config
        .host(address.ip().to_string())
        .port(address.port())
        .dbname(database)
        .user(role)
        .password(password);
    let connecting = in_time("connecting", config.connect(NoTls)).await;
    let (client, connection) = connecting.unwrap();
    tokio::spawn(connection);
    client
}

/// The first value of a simple query's first row, "" if NULL.
pub async fn text(client: &Client, sql: &str) -> String {
    let messages = in_time(sql, client.simple_query(sql)).await;
    let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            return row.get(0).unwrap_or_default().into();
        }
    }
    panic!("no row: {sql}");
}

/// The process id of the backend the client uses now.
pub async fn pid_of(client: &Client) -> i32 {
    text(client, "SELECT pg_backend_pid()")
        .await
        .parse()
        .unwrap()
}

/// The error's SQLSTATE.
pub fn code_of(error: &Error) -> &str {
    match error.code() {
        Some(code) => code.code(),
        None => panic!("not an answer of the server: {error:?}"),
    }
}

/// The error's text as the server wrote it.
pub fn message_of(error: &Error) -> String {
    match error.as_db_error() {
        Some(error) => error.message().into(),
        None => panic!("not an answer of the server: {error:?}"),
    }
}
