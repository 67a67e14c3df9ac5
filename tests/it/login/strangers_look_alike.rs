//! A wrong password, a role nobody knows, a role without a secret: the same bytes, after about the same time.

use crate::support::wire::{Certificates, Wire};
use crate::support::{Database, Frame, Proxy, database, frames, proxy};
use std::time::{Duration, Instant};

/// How often each is timed.
const LOGINS: usize = 40;

/// Times within this of each other are the same whatever their ratio: a busy machine.
const NOISE: Duration = Duration::from_micros(500);

/// Times measured anew before a difference counts.
const MEASUREMENTS: usize = 5;

/// All that was sent to a login that failed, with salts and nonces blotted out.
async fn transcript(wire: &mut Wire, db: &Database, role: &str) -> Vec<String> {
    wire.log_in(&db.name, role, "wrong").await.unwrap_err();
    let rest = wire.rest().await;
    assert_eq!(rest, [], "more after the refusal");
    let shown = |frame: &Frame| {
        // Four bytes of kind, then any four bytes, commas among them.
        if frame.tag == b'R' && frame.body[3] == 5 {
            assert_eq!(frame.body.len(), 8);
            return "R md5 with a salt".to_owned();
        }
        let text = String::from_utf8_lossy(&frame.body).replace(role, "ROLE");
        let parts = text.split(',').map(|part| match part.split_at_checked(2) {
            Some((name, random)) if frame.tag == b'R' && (name == "r=" || name == "s=") => {
                format!("{name}{} characters", random.len())
            }
            // Four bytes of kind, then a SCRAM message.
            _ if frame.tag == b'R' && frame.body[3] == 11 => {
                format!("{} characters", part.len())
            }
            _ => part.to_owned(),
        });
        format!(
            "{} {}",
            char::from(frame.tag),
            parts.collect::<Vec<_>>().join(",")
        )
    };
    wire.seen.iter().map(shown).collect()
}

/// A role whose password will be wrong, one that has no secret, one that no server knows, one whose secret is for
/// another database: names of the same length.
async fn four_roles(db: &Database) -> [String; 4] {
    let known = db.role("known", "secret").await;
    let unkept = db.role("none0", "secret").await;
    [
        known,
        unkept,
        format!("{}_never", db.name),
        format!("{}_other", db.name),
    ]
}

fn secrets(roles: &[String; 4]) -> String {
    serde_json::json!([
        { "username": roles[0], "password": "secret" },
        { "username": roles[3], "password": "secret", "dbname": "elsewhere" },
    ])
    .to_string()
}

#[tokio::test]
async fn the_same_bytes() {
    let db = database().await;
    let roles = four_roles(&db).await;
    let certificates = Certificates::new(&["localhost"]);
    for method in ["scram-sha-256", "md5", "cleartext"] {
        let proxy = proxy()
            .with_passwords()
            .file("secrets.json", secrets(&roles))
            .file("server.crt", certificates.certificate.as_str())
            .file("server.key", certificates.key.as_str())
            .set("listen.tls_certificate_file", "server.crt")
            .set("listen.tls_private_key_file", "server.key")
            .set("auth.method", method)
            .start()
            .await;
        let mut first = certificates.connect(proxy.address).await;
        let expected = transcript(&mut first, &db, &roles[0]).await;
        assert!(expected.last().unwrap().contains("C28P01"), "{expected:?}");
        for role in &roles {
            let mut wire = certificates.connect(proxy.address).await;
            assert_eq!(
                transcript(&mut wire, &db, role).await,
                expected,
                "{method} {role}"
            );
        }
    }
}

#[tokio::test]
async fn a_salt_does_not_change_from_login_to_login() {
    let db = database().await;
    let roles = four_roles(&db).await;
    let proxy = proxy()
        .with_passwords()
        .file("secrets.json", secrets(&roles))
        .start()
        .await;
    let mut salts = Vec::new();
    for role in &roles {
        let mut of_role = Vec::new();
        for _ in 0..2 {
            let mut wire = Wire::tcp(proxy.address).await;
            wire.log_in(&db.name, role, "wrong").await.unwrap_err();
            let challenge = wire
                .seen
                .iter()
                .find(|f| f.tag == b'R' && f.body[3] == 11)
                .unwrap();
            let text = String::from_utf8(challenge.body[4..].to_vec()).unwrap();
            of_role.push(text.split(",s=").nth(1).unwrap().to_owned());
        }
        assert_eq!(of_role[0], of_role[1], "{role}");
        salts.extend(of_role.pop());
    }
    salts.sort();
    salts.dedup();
    assert_eq!(salts.len(), roles.len(), "roles share a salt");
}

/// From the startup message to the refusal. The client does no arithmetic of its own: its proof is nonsense.
async fn time(proxy: &Proxy, db: &Database, role: &str) -> Duration {
    let mut wire = Wire::tcp(proxy.address).await;
    let begin = Instant::now();
    wire.send(&frames::startup(&[("user", role), ("database", &db.name)]))
        .await;
    let request = wire.frame().await;
    if request.body[3] == 10 {
        let first = b"n,,n=,r=rOprNGfwEbeRWgbNEkqO";
        let len = u32::try_from(first.len()).unwrap().to_be_bytes();
        let initial = [b"SCRAM-SHA-256\0", &len[..], first].concat();
        wire.send(&frames::message(b'p', &initial)).await;
        let challenge = wire.frame().await;
        let text = String::from_utf8(challenge.body[4..].to_vec()).unwrap();
        let nonce = text.split(',').next().unwrap();
        let last = format!("c=biws,{nonce},p={}=", "A".repeat(43));
        wire.send(&frames::message(b'p', last.as_bytes())).await;
    } else {
        wire.send(&frames::message(
            b'p',
            b"md5ffffffffffffffffffffffffffffffff\0",
        ))
        .await;
    }
    let refused = wire.frame().await;
    let took = begin.elapsed();
    assert_eq!(
        (refused.tag, refused.sqlstate().as_str()),
        (b'E', "28P01"),
        "{refused:?}"
    );
    took
}

fn differ(mut one: Vec<Duration>, mut other: Vec<Duration>) -> Option<(Duration, Duration)> {
    one.sort();
    other.sort();
    let (a, b) = (one[one.len() / 2], other[other.len() / 2]);
    let (less, more) = (a.min(b), a.max(b));
    (more >= less * 2 && more - less >= NOISE).then_some((a, b))
}

fn assert_alike(what: &str, one: Vec<Duration>, other: Vec<Duration>) {
    let medians = differ(one, other);
    assert!(medians.is_none(), "{what}: medians {medians:?}");
}

#[tokio::test]
async fn the_same_time() {
    let db = database().await;
    let roles = four_roles(&db).await;
    for method in ["scram-sha-256", "md5"] {
        let proxy = proxy()
            .with_passwords()
            .file("secrets.json", secrets(&roles))
            .set("auth.method", method)
            .start()
            .await;
        // A difference that is there shows every time; one that the machine's other work makes does not.
        let mut found = Vec::new();
        for _ in 0..MEASUREMENTS {
            found = different(&proxy, &db, &roles).await;
            if found.is_empty() {
                break;
            }
        }
        assert!(found.is_empty(), "{method}: {found:?}");
    }
}

/// Roles whose logins take another time than the first one's.
async fn different(
    proxy: &Proxy,
    db: &Database,
    roles: &[String],
) -> Vec<(String, (Duration, Duration))> {
    let mut times = vec![Vec::new(); roles.len()];
    // In another order each round: whoever comes first after a pause finds everything cold.
    for round in 0..LOGINS {
        for place in 0..roles.len() {
            let which = (round + place) % roles.len();
            times[which].push(time(proxy, db, &roles[which]).await);
        }
    }
    let others = roles.iter().zip(&times).skip(1);
    let differences = others
        .filter_map(|(role, other)| Some((role.clone(), differ(times[0].clone(), other.clone())?)));
    differences.collect()
}

/// Nobody learns that a role exists by being the first who tries it.
#[tokio::test]
async fn the_same_time_for_the_first_login_of_a_role() {
    let db = database().await;
    let names = |kind: &str| {
        (0..30)
            .map(|n| format!("{kind}_{n:02}"))
            .collect::<Vec<_>>()
    };
    let (known, unknown) = (names("known"), names("never"));
    let proxy = known
        .iter()
        .fold(proxy(), |proxy, role| proxy.secret(role, "secret"))
        .start()
        .await;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (round, (known, unknown)) in known.iter().zip(&unknown).enumerate() {
        if round % 2 == 0 {
            second.push(time(&proxy, &db, unknown).await);
        }
        first.push(time(&proxy, &db, known).await);
        if round % 2 == 1 {
            second.push(time(&proxy, &db, unknown).await);
        }
    }
    assert_alike("first logins of known and of unknown roles", first, second);
}
