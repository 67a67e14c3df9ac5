//! A client that sends any bytes and sees every frame.

use super::frames::{self, Frame};
use super::wait::in_time;
use bytes::{Buf, BytesMut};
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What BackendKeyData told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CancelKey {
    /// The process id, as told.
    pub pid: u32,
    /// The secret, as told.
    pub secret: Vec<u8>,
}

/// A client, frame by frame.
pub struct RawClient {
    /// The connection.
    pub stream: TcpStream,
    /// Where it goes.
    pub address: SocketAddr,
    /// How to cancel what it runs, once logged in.
    pub key: CancelKey,
    /// What the login was answered, without authentication.
    pub welcome: Vec<Frame>,
    read: BytesMut,
}

impl RawClient {
    /// A connection without a login.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = in_time("connecting", TcpStream::connect(address))
            .await
            .unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            address,
            key: CancelKey::default(),
            welcome: Vec::new(),
            read: BytesMut::new(),
        }
    }

    /// A connection whose login succeeds.
    pub async fn login(
        address: SocketAddr,
        database: &str,
        role: &str,
        password: &str,
        parameters: &[(&str, &str)],
    ) -> Self {
        let mut client = Self::connect(address).await;
        let who = [("user", role), ("database", database)];
        client
            .send(&frames::startup(&[&who, parameters].concat()))
            .await;
        let refusal = client.finish_login(password).await;
        assert_eq!(refusal, None, "login refused");
        client
    }

    /// Everything after the startup message, up to ReadyForQuery or the error that refuses the login.
    pub async fn finish_login(&mut self, password: &str) -> Option<Frame> {
        let mut scram = None;
        loop {
            let frame = self.frame().await;
            let authentication = (frame.tag == b'R').then(|| frame.body.clone().get_u32());
            match (frame.tag, authentication) {
                (b'R', Some(0 | 12)) => {}
                (b'R', Some(10)) => {
                    let new = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                    let first = [SCRAM_SHA_256.as_bytes(), &[0]].concat();
                    let len = u32::try_from(new.message().len()).unwrap().to_be_bytes();
                    let body = [&first[..], &len, new.message()].concat();
                    self.send(&frames::message(b'p', &body)).await;
                    scram = Some(new);
                }
                (b'R', Some(11)) => {
                    let scram = scram.as_mut().unwrap();
                    scram.update(&frame.body[4..]).unwrap();
                    let answer = frames::message(b'p', scram.message());
                    self.send(&answer).await;
                }
                (b'E', _) => return Some(frame),
                (b'R', _) => panic!("another authentication: {frame:?}"),
                (tag, _) => {
                    if tag == b'K' {
                        self.key.pid = frame.body.clone().get_u32();
                        self.key.secret = frame.body[4..].to_vec();
                    }
                    self.welcome.push(frame);
                    if tag == b'Z' {
                        return None;
                    }
                }
            }
        }
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.unwrap();
    }

    /// Sends bytes, unless the other side has gone.
    pub async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        in_time("sending", self.stream.write_all(bytes)).await
    }

    /// The next frame; `None` at the end of the stream, an error where the stream ends inside a frame.
    pub async fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = take_frame(&mut self.read) {
                return Ok(Some(frame));
            }
            let reading = self.stream.read_buf(&mut self.read);
            if in_time("a frame", reading).await? == 0 {
                if self.read.is_empty() {
                    return Ok(None);
                }
                // A server that is told to die while its client reads slowly leaves half a message behind.
                let half = format!("half a frame: {:?}", self.read);
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, half));
            }
        }
    }

    /// The next frame, which must come.
    pub async fn frame(&mut self) -> Frame {
        match self.next_frame().await {
            Ok(Some(frame)) => frame,
            end => panic!("the connection has ended: {end:?}"),
        }
    }

    /// Frames up to and with the first of that kind.
    pub async fn until(&mut self, tag: u8) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            frames.push(self.frame().await);
            if frames.last().is_some_and(|frame| frame.tag == tag) {
                return frames;
            }
        }
    }

    /// Frames up to and with ReadyForQuery.
    pub async fn ready(&mut self) -> Vec<Frame> {
        self.until(b'Z').await
    }

    /// Sends, and reads up to ReadyForQuery.
    pub async fn ask(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.send(bytes).await;
        self.ready().await
    }

    /// A simple query, up to ReadyForQuery.
    pub async fn query(&mut self, sql: &str) -> Vec<Frame> {
        self.ask(&frames::query(sql)).await
    }

    /// The first value of a simple query's first row.
    pub async fn value(&mut self, sql: &str) -> String {
        let answer = self.query(sql).await;
        let column = frames::column(&answer);
        column
            .into_iter()
            .next()
            .unwrap_or_else(|| panic!("{sql}: {answer:?}"))
    }

    /// Frames up to the end of the connection, however it ends.
    pub async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = self.next_frame().await {
            frames.push(frame);
        }
        frames
    }

    /// True if nothing comes for this long.
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        if !self.read.is_empty() {
            return false;
        }
        let waiting = self.stream.read_buf(&mut self.read);
        tokio::time::timeout(time, waiting).await.is_err()
    }

    /// Asks for what this client runs to be cancelled; returns when the other side has closed that connection.
    pub async fn cancel(&self) {
        cancel(self.address, &self.key).await;
    }

    /// Ends the connection by a reset, as a crashed machine's does.
    pub fn reset(self) {
        let linger = Some(Duration::ZERO);
        socket2::SockRef::from(&self.stream)
            .set_linger(linger)
            .unwrap();
    }
}

/// A CancelRequest; returns when the other side has closed the connection.
pub async fn cancel(address: SocketAddr, key: &CancelKey) {
    let mut client = RawClient::connect(address).await;
    client
        .send(&frames::cancel_request(key.pid, &key.secret))
        .await;
    assert_eq!(client.rest().await, []);
}

fn take_frame(read: &mut BytesMut) -> Option<Frame> {
    let header = read.first_chunk::<5>()?;
    let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if read.len() < len + 1 {
        read.reserve(len + 1 - read.len());
        return None;
    }
    let mut frame = read.split_to(len + 1);
    let tag = frame.get_u8();
    frame.advance(4);
    Some(Frame {
        tag,
        body: frame.freeze(),
    })
}
