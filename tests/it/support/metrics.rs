//! What `/metrics` says, read from its text format.

use super::wait::in_time;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One scrape.
#[derive(Debug)]
pub struct Metrics {
    /// The text as it came.
    pub text: String,
}

/// An HTTP GET: status and body.
pub async fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    in_time(path, stream.read_to_string(&mut answer)).await?;
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned());
    match (status, body) {
        (Some(status), Some(body)) => Ok((status, body)),
        _ => Err(std::io::Error::other(format!("not HTTP: {answer:?}"))),
    }
}

impl Metrics {
    /// The sum of all samples of that name with these labels among theirs; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matching = self.text.lines().filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) && labels.iter().all(|label| has(line, label))
        });
        matching.map(value).sum()
    }
}

fn has(line: &str, (label, value): &(&str, &str)) -> bool {
    let (middle, first) = (
        format!(",{label}=\"{value}\""),
        format!("{{{label}=\"{value}\""),
    );
    line.contains(&middle) || line.contains(&first)
}

fn value(line: &str) -> f64 {
    let value = line.rsplit(' ').next().unwrap_or_default();
    value
        .parse()
        .unwrap_or_else(|_| panic!("not a sample: {line}"))
}
