//! `/metrics`, `/pins`, `/healthz` and `/readyz` over HTTP/1.1. hyper stays behind this file.
//!
//! Strangers may come here too: connections are few, headers have a deadline, bodies are not read.

use super::pins;
use crate::metrics::Metrics;
use crate::session::pin_book::PinBook;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// Connections at once; scrapers and probes need few.
const CONNECTIONS_MAX: usize = 64;

/// How long a request's headers may take.
const HEADER_DEADLINE: Duration = Duration::from_secs(2);

/// How long one connection may last: a request, its answer. Whoever does not read must not keep others from `/healthz`.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(5);

/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a load balancer should send clients here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// Not listening yet.
    Starting,
    /// Listening.
    Ready,
    /// Stopping: no new clients.
    Draining,
}

/// What there is to see.
#[derive(Clone)]
pub struct Window {
    /// `/metrics`
    pub metrics: Arc<Metrics>,
    /// `/pins`
    pub pins: Arc<PinBook>,
    /// `/readyz`
    pub readiness: watch::Receiver<Readiness>,
}

/// Answers until the task is dropped.
pub async fn serve(listener: TcpListener, window: Window) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // A place first: beyond them the kernel's queue waits.
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, _)) => {
                let window = window.clone();
                tokio::spawn(async move {
                    serve_one(socket, window).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin endpoint could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_one(socket: TcpStream, window: Window) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&request, &window);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service);
    // Whoever breaks off or dawdles only hurts itself.
    let _ = tokio::time::timeout(CONNECTION_DEADLINE, connection).await;
}

fn answer(request: &Request<Incoming>, window: &Window) -> Response<Full<Bytes>> {
    let method = request.method();
    let (status, kind, body) = match request.uri().path() {
        _ if method != Method::GET && method != Method::HEAD => (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "only GET\n".to_owned(),
        ),
        "/metrics" => (StatusCode::OK, METRICS_TYPE, window.metrics.render()),
        "/pins" if wants_json(request) => {
            let body = pins::json(&window.pins.records());
            (StatusCode::OK, "application/json", body)
        }
        "/pins" => {
            let body = pins::text(&window.pins.records());
            (StatusCode::OK, "text/plain; charset=utf-8", body)
        }
        "/healthz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readyz" => match *window.readiness.borrow() {
            Readiness::Ready => (StatusCode::OK, "text/plain", "ready\n".to_owned()),
            Readiness::Starting => unavailable("starting\n"),
            Readiness::Draining => unavailable("draining\n"),
        },
        _ => {
            let text = "not found; there are /metrics, /pins, /healthz and /readyz\n";
            (StatusCode::NOT_FOUND, "text/plain", text.to_owned())
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// `?format=json`, or an Accept that names it.
fn wants_json(request: &Request<Incoming>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let accept = request.headers().get(ACCEPT);
    let accept = accept.map_or(&b""[..], |accept| accept.as_bytes());
    query.split('&').any(|pair| pair == "format=json")
        || accept
            .split(|&byte| byte == b',')
            .any(|kind| kind.trim_ascii().starts_with(b"application/json"))
}

fn unavailable(text: &str) -> (StatusCode, &'static str, String) {
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "text/plain",
        text.to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn window(readiness: Readiness) -> (watch::Sender<Readiness>, Window) {
        let (ready, readiness) = watch::channel(readiness);
        let window = Window {
            metrics: Metrics::new(),
            pins: Arc::default(),
            readiness,
        };
        (ready, window)
    }

    async fn request(address: std::net::SocketAddr, line: &str) -> String {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn connections_that_are_not_read_block_nobody_for_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_ready, window) = window(Readiness::Ready);
        let server = tokio::spawn(serve(listener, window));
        let mut idlers = Vec::new();
        for number in 0..CONNECTIONS_MAX {
            let mut idler = TcpStream::connect(address).await.unwrap();
            if number % 2 == 0 {
                // Kept alive, it would be good for many more.
                let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
                idler.write_all(request).await.unwrap();
            }
            idlers.push(idler);
        }
        let answered = tokio::time::timeout(CONNECTION_DEADLINE, request(address, "GET /healthz"));
        assert!(answered.await.unwrap().starts_with("HTTP/1.1 200"));
        server.abort();
    }

    #[tokio::test]
    async fn pins_as_whoever_asks_accepts_them() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_ready, window) = window(Readiness::Ready);
        let server = tokio::spawn(serve(listener, window));
        for (accept, kind) in [
            ("*/*", "text/plain; charset=utf-8"),
            ("application/json", "application/json"),
            ("text/html, application/json;q=0.9", "application/json"),
        ] {
            let line = format!("GET /pins HTTP/1.1\r\nAccept: {accept}\r\nX-Rest:");
            let answer = request(address, &line).await;
            assert!(
                answer.contains(&format!("content-type: {kind}\r\n")),
                "{answer}"
            );
        }
        server.abort();
    }

    #[tokio::test]
    async fn paths_and_readiness() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ready, window) = window(Readiness::Starting);
        let server = tokio::spawn(serve(listener, window));
        for (line, status, text) in [
            ("GET /healthz", "200", "ok"),
            ("GET /readyz", "503", "starting"),
            ("GET /metrics", "200", "pgsluice_build_info"),
            ("GET /pins", "200", "no session has been pinned"),
            ("GET /pins?format=json", "200", "\"pins\":[]"),
            ("GET /", "404", "/pins"),
            ("POST /metrics", "405", "only GET"),
        ] {
            let answer = request(address, line).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{line}: {answer}"
            );
            assert!(answer.contains(text), "{line}: {answer}");
        }
        ready.send_replace(Readiness::Ready);
        assert!(
            request(address, "GET /readyz")
                .await
                .starts_with("HTTP/1.1 200")
        );
        ready.send_replace(Readiness::Draining);
        assert!(request(address, "GET /readyz").await.contains("draining"));
        server.abort();
    }
}
