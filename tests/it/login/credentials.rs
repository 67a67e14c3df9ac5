//! The methods of authentication, and which secret counts.

use super::{asked, refusal, try_login};
use crate::support::wire::{Certificates, Wire};
use crate::support::{PASSWORD, ProxyBuilder, ROLE, database, observer, proxy};

const OK: u8 = 0;
const CLEARTEXT: u8 = 3;
const MD5: u8 = 5;
const SASL: [u8; 4] = [10, 11, 12, OK];

fn with_tls(builder: ProxyBuilder, certificates: &Certificates) -> ProxyBuilder {
    builder
        .file("server.crt", certificates.certificate.as_str())
        .file("server.key", certificates.key.as_str())
        .set("listen.tls_certificate_file", "server.crt")
        .set("listen.tls_private_key_file", "server.key")
}

#[tokio::test]
async fn scram_sha_256() {
    let db = database().await;
    let password = "pa\u{df}w\u{f6}rd \u{a0}$`\"";
    let role = db.role("app", password).await;
    let proxy = proxy().secret(&role, password).start().await;
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&db.name, &role, password).await.unwrap();
    assert_eq!(asked(&wire.seen), SASL);
    assert_eq!(wire.value("select current_user").await, role);
    let (code, text) = refusal(&proxy, &db, &role, "wrong").await;
    assert_eq!(code, "28P01");
    assert_eq!(
        text,
        format!("password authentication failed for user \"{role}\"")
    );
}

#[tokio::test]
async fn scram_plus_is_offered_in_tls_and_bound_to_our_certificate() {
    let db = database().await;
    let role = db.role("app", "secret").await;
    let certificates = Certificates::new(&["localhost"]);
    let proxy = with_tls(proxy().secret(&role, "secret"), &certificates)
        .start()
        .await;
    let mut wire = certificates.connect(proxy.address).await;
    wire.log_in(&db.name, &role, "secret").await.unwrap();
    let offer = wire.seen.iter().find(|frame| frame.tag == b'R').unwrap();
    assert_eq!(&offer.body[4..], b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    assert_eq!(asked(&wire.seen), SASL);
    assert_eq!(wire.value("select current_user").await, role);

    // Somebody in between, with another certificate.
    let mut wire = certificates.connect(proxy.address).await;
    wire.binding.as_mut().unwrap()[0] ^= 1;
    let refused = wire.log_in(&db.name, &role, "secret").await.unwrap_err();
    assert_eq!(refused.sqlstate(), "28000", "{refused:?}");

    // TLS without channel binding is for the client to choose.
    let mut wire = certificates.connect(proxy.address).await;
    wire.binding = None;
    wire.log_in(&db.name, &role, "secret").await.unwrap();

    // Outside TLS there is nothing to bind to.
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&db.name, &role, "secret").await.unwrap();
    let offer = wire.seen.iter().find(|frame| frame.tag == b'R').unwrap();
    assert_eq!(&offer.body[4..], b"SCRAM-SHA-256\0\0");
}

#[tokio::test]
async fn md5() {
    let db = database().await;
    let role = db.role("app", "secret").await;
    let proxy = proxy()
        .secret(&role, "secret")
        .set("auth.method", "md5")
        .start()
        .await;
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&db.name, &role, "secret").await.unwrap();
    assert_eq!(asked(&wire.seen), [MD5, OK]);
    assert_eq!(wire.value("select current_user").await, role);
    let (code, text) = refusal(&proxy, &db, &role, "wrong").await;
    assert_eq!(code, "28P01", "{text}");
}

#[tokio::test]
async fn cleartext_only_in_tls() {
    let db = database().await;
    let role = db.role("app", "secret").await;
    let certificates = Certificates::new(&["localhost"]);
    let builder = proxy()
        .secret(&role, "secret")
        .set("auth.method", "cleartext");
    let proxy = with_tls(builder, &certificates).start().await;
    let mut wire = certificates.connect(proxy.address).await;
    wire.log_in(&db.name, &role, "secret").await.unwrap();
    assert_eq!(asked(&wire.seen), [CLEARTEXT, OK]);
    let mut wire = certificates.connect(proxy.address).await;
    let refused = wire.log_in(&db.name, &role, "wrong").await.unwrap_err();
    assert_eq!(refused.sqlstate(), "28P01", "{refused:?}");
    // Nobody is asked for a password in the clear.
    let mut wire = Wire::tcp(proxy.address).await;
    let refused = wire.log_in(&db.name, &role, "secret").await.unwrap_err();
    assert_eq!(refused.sqlstate(), "28000", "{refused:?}");
    assert!(
        refused.field(b'M').unwrap().contains("sslmode=require"),
        "{refused:?}"
    );
    assert!(asked(&wire.seen).is_empty());
}

#[tokio::test]
async fn trust_is_for_those_named() {
    let db = database().await;
    let (named, other) = (
        db.role("named", "secret").await,
        db.role("other", "secret").await,
    );
    let proxy = proxy()
        .secret(&named, "secret")
        .secret(&other, "secret")
        .set("auth.trust", vec![named.clone()])
        .start()
        .await;
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&db.name, &named, "not even looked at")
        .await
        .unwrap();
    assert_eq!(asked(&wire.seen), [OK]);
    assert_eq!(wire.value("select current_user").await, named);
    assert_eq!(refusal(&proxy, &db, &other, "wrong").await.0, "28P01");
    assert_eq!(refusal(&proxy, &db, ROLE, "wrong").await.0, "28P01");
    try_login(&proxy, &db, &other, "secret").await.unwrap();
}

#[tokio::test]
async fn an_empty_password_opens_nothing() {
    let db = database().await;
    let role = db.role("app", "secret").await;
    for method in ["scram-sha-256", "md5"] {
        let proxy = proxy()
            .secret(&role, "secret")
            .set("auth.method", method)
            .start()
            .await;
        for password in ["", "secre", "secret ", "SECRET"] {
            let (code, text) = refusal(&proxy, &db, &role, password).await;
            assert_eq!(code, "28P01", "{method} {password:?}: {text}");
        }
    }
}

/// The server lets the superuser in whatever its password, so only the proxy's choice of secret counts.
#[tokio::test]
async fn a_secret_for_a_database_wins_over_one_for_all() {
    let (first, second, third) = (database().await, database().await, database().await);
    let secret = |password: &str, db: Option<&str>| serde_json::json!({ "username": ROLE, "password": password, "dbname": db });
    let secrets = serde_json::json!([
        secret("for all", None),
        secret("for the first", Some(&first.name)),
        secret("for the second", Some(&second.name)),
    ]);
    let proxy = proxy()
        .with_passwords()
        .file("secrets.json", secrets.to_string())
        .start()
        .await;
    let cases = [
        (&first, "for the first"),
        (&second, "for the second"),
        (&third, "for all"),
    ];
    for (db, right) in cases {
        for (_, password) in cases {
            let login = try_login(&proxy, db, ROLE, password).await;
            assert_eq!(
                login.is_ok(),
                password == right,
                "{password} on {}",
                db.name
            );
        }
    }
}

#[tokio::test]
async fn a_secret_for_another_database_is_none() {
    let (db, other) = (database().await, database().await);
    let secret =
        serde_json::json!({ "username": ROLE, "password": PASSWORD, "dbname": other.name });
    let proxy = proxy()
        .with_passwords()
        .file("secrets.json", secret.to_string())
        .start()
        .await;
    try_login(&proxy, &other, ROLE, PASSWORD).await.unwrap();
    assert_eq!(refusal(&proxy, &db, ROLE, PASSWORD).await.0, "28P01");
}

#[tokio::test]
async fn the_database_is_logged_in_to_as_the_client() {
    let db = database().await;
    let roles = [
        db.role("a", "secret a").await,
        db.role("b", "secret b").await,
    ];
    let proxy = proxy()
        .secret(&roles[0], "secret a")
        .secret(&roles[1], "secret b")
        .start()
        .await;
    for (role, password) in roles.iter().zip(["secret a", "secret b"]) {
        let mut wire = Wire::tcp(proxy.address).await;
        wire.log_in(&db.name, role, password).await.unwrap();
        assert_eq!(wire.value("select session_user").await, *role);
    }
    assert_eq!(observer().await.backends(&db).await, 2);
    assert_eq!(refusal(&proxy, &db, &roles[0], "secret b").await.0, "28P01");
}

#[tokio::test]
async fn the_servers_own_refusal_reaches_the_client() {
    let db = database().await;
    let (locked, moved) = (
        db.role("locked", "secret").await,
        db.role("moved", "secret").await,
    );
    let dropped = db.role("dropped", "secret").await;
    db.execute(&format!(
        "ALTER ROLE {locked} NOLOGIN; ALTER ROLE {moved} PASSWORD 'another'; DROP ROLE {dropped}"
    ))
    .await;
    let proxy = [&locked, &moved, &dropped]
        .into_iter()
        .fold(proxy(), |proxy, role| proxy.secret(role, "secret"))
        .start()
        .await;
    let (code, text) = refusal(&proxy, &db, &locked, "secret").await;
    assert_eq!(code, "28000", "{text}");
    assert!(text.contains("not permitted to log in"), "{text}");
    for role in [&moved, &dropped] {
        let (code, text) = refusal(&proxy, &db, role, "secret").await;
        assert_eq!(code, "28P01", "{text}");
    }
    let mut wire = Wire::tcp(proxy.address).await;
    let refused = wire
        .log_in("no_such_database", ROLE, PASSWORD)
        .await
        .unwrap_err();
    assert_eq!(refused.sqlstate(), "3D000", "{refused:?}");
    assert_eq!(refused.field(b'S').unwrap(), "FATAL");
    let text = refused.field(b'M').unwrap();
    assert_eq!(text, "database \"no_such_database\" does not exist");
    // The database that could not be logged in to is tried again for the next one.
    db.execute(&format!("ALTER ROLE {locked} LOGIN")).await;
    try_login(&proxy, &db, &locked, "secret").await.unwrap();
}

/// What SASLprep forbids is taken as it is, as by PostgreSQL and libpq.
#[tokio::test]
async fn passwords_of_any_characters() {
    let db = database().await;
    let passwords = [
        "a bell \u{7}",
        "soft\u{ad}hyphen, \u{2168}, \u{fb01}",
        "unassigned \u{378}",
        "\u{627}1 ends left to right",
        "\u{1f40e}\u{1f50b}",
        "\u{e000} private",
        "\u{fffd}",
        " ",
        "a:b,c=d\\n\"",
    ];
    let long = "x".repeat(900);
    for (number, password) in passwords.into_iter().chain([long.as_str()]).enumerate() {
        let role = db.role(&number.to_string(), password).await;
        for method in ["scram-sha-256", "md5"] {
            let proxy = proxy()
                .secret(&role, password)
                .set("auth.method", method)
                .start()
                .await;
            let mut wire = Wire::tcp(proxy.address).await;
            let login = wire.log_in(&db.name, &role, password).await;
            assert!(login.is_ok(), "{method} {password:?}: {login:?}");
            let (code, _) = refusal(&proxy, &db, &role, &format!("{password}x")).await;
            assert_eq!(code, "28P01", "{method} {password:?}");
        }
    }
}

#[tokio::test]
async fn names_of_any_characters() {
    let observer = observer().await;
    let id = std::process::id();
    let (role, name) = (
        format!("r\u{f6}le \"of\" 'x', {id}"),
        format!("D\u{e4}t \"a\";-- {id}"),
    );
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    for sql in [
        format!("CREATE ROLE {} LOGIN PASSWORD 'secret'", quoted(&role)),
        format!("CREATE DATABASE {} TEMPLATE template0", quoted(&name)),
    ] {
        observer.client.batch_execute(&sql).await.unwrap();
    }
    let proxy = proxy().secret(&role, "secret").start().await;
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&name, &role, "secret").await.unwrap();
    assert_eq!(wire.value("select current_user").await, role);
    assert_eq!(wire.value("select current_database()").await, name);
    // Its labels are quoted, too.
    let metrics = proxy.metrics().await;
    let label = name.replace('"', "\\\"");
    assert_eq!(
        metrics.sum("pgsluice_database_connections", &[("database", &label)]),
        1.0
    );
}
