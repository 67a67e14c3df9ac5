//! What is fuzzed: everything that reads bytes from somebody else, one function a parser. Each takes any bytes, and
//! panics if the parser does, or if it tells something else when the same bytes come in other pieces.
//!
//! Used twice: by the fuzz targets beside this file (`make fuzz`), and for a short while by `cargo test`
//! (`tests/fuzz_bounded.rs`).

use bytes::{Bytes, BytesMut};
use pgsluice::backend::settings::Settings;
use pgsluice::redacted::Redacted;
use pgsluice::scram::verifier::Verifier;
use pgsluice::scram::{Mechanism, Server, client};
use pgsluice::secrets::SecretStore;
use pgsluice::session::digest::Digest;
use pgsluice::session::replies::{Expect, PendingReplies, ReplyAction};
use pgsluice::session::requests::{Next, RequestReader, Unnamed, look};
use pgsluice::session::statement::StatementReader;
use pgsluice::wire::error_response::ServerMessage;
use pgsluice::wire::frame::{Header, take_frame};
use pgsluice::wire::from_backend::{
    AuthRequest, ServerError, backend_key_data, command_tag, first_column, parameter_status,
};
use pgsluice::wire::password::{self, SaslInitialResponse};
use pgsluice::wire::startup::{Packet, take_packet};
use pgsluice::wire::startup_options;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

/// Names in the protocol are looked for this far; beyond it pieces may tell more than the whole.
const SPLIT_LEN_MAX: usize = 8 * 1024;

/// The packet that opens a connection, in two pieces: nothing is told before it is whole.
pub fn startup(data: &[u8]) {
    let (cut, data) = take_cut(data);
    let mut whole = BytesMut::from(data);
    let expected = take_packet(&mut whole);
    let mut pieces = BytesMut::from(&data[..cut]);
    let early = take_packet(&mut pieces);
    if matches!(early, Ok(None)) {
        pieces.extend_from_slice(&data[cut..]);
        assert_eq!(take_packet(&mut pieces), expected);
    } else {
        assert_eq!(early, expected);
    }
    if let Ok(Some(Packet::Startup(startup))) = expected {
        assert!(startup.user.as_str().len() <= 63 && startup.database.as_str().len() <= 63);
        assert!(startup.version.minor <= 2);
        let _ = startup.needs_negotiation();
        // What a session would be given as its settings.
        let _ = Settings::from_pairs(startup.parameters).iter().count();
    }
}

/// The startup packet's `options`.
pub fn options(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(settings) = startup_options::parse(&text) {
        let _ = Settings::from_pairs(settings).iter().count();
    }
}

/// What answers an authentication request, and a whole SCRAM exchange of it.
pub fn login(data: &[u8]) {
    let _ = password::password(data);
    if let Ok(initial) = SaslInitialResponse::parse(data) {
        let _ = Server::new(None).choose(initial.mechanism);
    }
    let (cut, data) = take_cut(data);
    let (first, last) = data.split_at(cut);
    for mechanism in [Mechanism::Sha256, Mechanism::Sha256Plus] {
        if let Ok((_, exchange)) = Server::new(None).begin(mechanism, first, verifier()) {
            assert!(
                exchange.finish(last).is_err(),
                "a proof of nothing was taken"
            );
        }
    }
}

/// Frames of a client after its login, in two pieces.
pub fn client_frames(data: &[u8]) {
    let (cut, data) = take_cut(data);
    let whole = read_requests(&[data]);
    if data.len() <= SPLIT_LEN_MAX {
        let split = read_requests(&[&data[..cut], &data[cut..]]);
        assert_eq!(split, whole, "in pieces it reads otherwise, cut at {cut}");
        let bytes: Vec<&[u8]> = data.chunks(1).collect();
        assert_eq!(
            read_requests(&bytes),
            whole,
            "byte by byte it reads otherwise"
        );
    }
}

/// SQL text, in two pieces.
pub fn statement(data: &[u8]) {
    let (cut, text) = take_cut(data);
    let effects = |pieces: &[&[u8]]| {
        let mut reader = StatementReader::default();
        pieces.iter().for_each(|piece| reader.feed(piece));
        reader.finish()
    };
    assert_eq!(effects(&[&text[..cut], &text[cut..]]), effects(&[text]));
}

/// SQL text as it is shown: no string and no number is left, and what is shown reads as itself.
pub fn digest(data: &[u8]) {
    let (cut, text) = take_cut(data);
    let digest = Digest::of(text, true);
    let beginning = Digest::of(&text[..cut], false);
    for shown in [digest.text(), beginning.text()] {
        assert!(shown.chars().count() <= 301, "{shown}");
        assert!(!shown.contains(char::is_control), "{shown:?}");
        assert!(!shows_a_literal(shown), "{shown:?}");
    }
    if !digest.text().ends_with('…') {
        assert_eq!(Digest::of(digest.text().as_bytes(), true), digest);
    }
}

/// Outside quoted names: a quote, or a digit that is no part of a word or of `$1`.
fn shows_a_literal(shown: &str) -> bool {
    let (mut quoted, mut before) = (false, ' ');
    for c in shown.chars() {
        quoted ^= c == '"';
        let in_word = before.is_alphanumeric() || !before.is_ascii() || "_$".contains(before);
        if !quoted && (c == '\'' || (c.is_ascii_digit() && !in_word)) {
            return true;
        }
        before = c;
    }
    false
}

/// Any order of requests and replies: an error at worst.
pub fn replies(data: &[u8]) {
    const EXPECTS: [Expect; 10] = [
        Expect::Parse,
        Expect::Bind,
        Expect::Describe,
        Expect::Execute,
        Expect::Close,
        Expect::Sync,
        Expect::Query,
        Expect::FunctionCall,
        Expect::CopyEnd,
        Expect::Fence,
    ];
    const TAGS: &[u8] = b"123tTnDCIsGHdcVE";
    let mut pending = PendingReplies::default();
    for &byte in data {
        let index = usize::from(byte & 0x3f);
        let told = match byte >> 6 {
            0 => {
                pending.push(EXPECTS[index % EXPECTS.len()], ReplyAction::Forward);
                Ok(ReplyAction::Forward)
            }
            1 => {
                pending.push(EXPECTS[index % EXPECTS.len()], ReplyAction::Skip);
                Ok(ReplyAction::Skip)
            }
            2 if index < 16 => pending.on_ready(),
            _ => {
                let tag = TAGS[index % TAGS.len()];
                let told = pending.on_reply(tag);
                if tag == b'I' {
                    pending.on_empty_query();
                }
                told
            }
        };
        if pending.is_settled() {
            assert_eq!(pending.outstanding(), 0);
            assert!(!pending.is_replaying() && !pending.is_copying_in());
        }
        if told.is_err() {
            return;
        }
    }
}

/// What a server sends.
pub fn server_frames(data: &[u8]) {
    let mut buf = BytesMut::from(data);
    while let Ok(Some(frame)) = take_frame(&mut buf, 64 * 1024) {
        server_body(&frame.body);
    }
    server_body(&Bytes::copy_from_slice(data));
    let password = Redacted::new("secret".to_owned());
    let mut exchange = client::Exchange::new(&password, client::Binding::Unsupported);
    if exchange.on_challenge(data).is_ok() {
        assert!(
            exchange.on_outcome(data).is_err(),
            "a server proved nothing"
        );
    }
}

/// A verifier as PostgreSQL stores it.
pub fn stored_verifier(data: &[u8]) {
    let _ = Verifier::parse(&String::from_utf8_lossy(data));
}

/// The secrets file. No error shows a password.
pub fn secrets(data: &[u8]) {
    let file = scratch_file("secrets.json", data);
    match SecretStore::load(&file) {
        Ok(store) => {
            assert!(!store.is_empty());
            let _ = (store.server(), store.roles(), store.find("app", "shop"));
            assert!(!format!("{store:?}").contains("hunter2"));
        }
        Err(error) => {
            let _ = error.to_string();
        }
    }
}

/// The configuration file, and the same text as values of the environment.
pub fn configuration(data: &[u8]) {
    let file = scratch_file("pgsluice.toml", data);
    if let Err(faults) = pgsluice::config::load(&file, std::iter::empty()) {
        assert!(faults.iter().next().is_some());
        let _ = faults.to_string();
    }
    let empty = scratch_file("empty.toml", b"");
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().take(32);
    let environment = lines.filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        Some((format!("PGSLUICE__{}", key.trim()), value.trim().to_owned()))
    });
    let _ = pgsluice::config::load(&empty, environment);
}

/// The first two bytes say where the rest is cut.
fn take_cut(data: &[u8]) -> (usize, &[u8]) {
    let Some((cut, rest)) = data.split_first_chunk::<2>() else {
        return (0, data);
    };
    (
        usize::from(u16::from_be_bytes(*cut)) % (rest.len() + 1),
        rest,
    )
}

fn verifier() -> &'static Verifier {
    static VERIFIER: OnceLock<Verifier> = OnceLock::new();
    VERIFIER.get_or_init(|| Verifier::derive(&Redacted::new("secret".to_owned()), [7; 16]))
}

/// Reads requests as a session does that gets them in these pieces; everything told, as text.
fn read_requests(pieces: &[&[u8]]) -> Vec<String> {
    let (mut reader, mut unnamed) = (RequestReader::default(), Unnamed::default());
    let (mut unread, mut told) = (Vec::new(), Vec::new());
    for piece in pieces {
        unread.extend_from_slice(piece);
        let mut at = 0;
        while at < unread.len() {
            let first = reader.at_boundary();
            if first {
                match look(&unread[at..]) {
                    Ok(Next::Incomplete) => break,
                    Ok(Next::Frame {
                        header,
                        expect,
                        need,
                    }) => {
                        told.push(format!("{header:?} {expect:?} {need:?}"));
                        reader.begin(header, StatementReader::default(), &mut unnamed);
                    }
                    end @ (Ok(Next::Quit) | Err(_)) => {
                        told.push(format!("{end:?}"));
                        return told;
                    }
                }
            }
            let count = reader.remaining().min(unread.len() - at);
            if let Some(effects) = reader.read(&unread[at..at + count], first, &mut unnamed) {
                told.push(format!("{effects:?} {unnamed:?}"));
            }
            at += count;
        }
        unread.drain(..at);
    }
    told.push(format!("{} left, {unnamed:?}", reader.remaining()));
    told
}

fn server_body(body: &Bytes) {
    let _ = Header::parse(body);
    let _ = AuthRequest::parse(body);
    let _ = ServerError::parse(body).to_string();
    let _ = ServerMessage::parse(body);
    let _ = (parameter_status(body), backend_key_data(body));
    let _ = (command_tag(body), first_column(body));
}

/// A file of this process's own with this content.
fn scratch_file(name: &str, content: &[u8]) -> std::path::PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a temporary folder"));
    let path = folder.path().join(name);
    let mut open = std::fs::OpenOptions::new();
    open.write(true).create(true).truncate(true).mode(0o600);
    let mut file = open.open(&path).expect("a scratch file");
    std::io::Write::write_all(&mut file, content).expect("a scratch file");
    path
}
