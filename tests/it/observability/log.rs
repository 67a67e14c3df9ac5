//! One line each for a login, a refusal, a pin, a discard, a close; as text and as JSON.

use crate::support::wire::Wire;
use crate::support::{
    Database, PASSWORD, Proxy, ROLE, RawClient, database, eventually, frames, proxy,
};
use serde_json::Value;

/// A day in the life of a proxy: each kind of event once.
async fn a_day(format: &str) -> (Proxy, Database, String) {
    let db = database().await;
    let role = db.role("app", "secret").await;
    let proxy = proxy()
        .secret(&role, "secret")
        .set("log.format", format)
        .set("log.level", "info")
        .start()
        .await;
    // A refusal.
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&db.name, &role, "wrong").await.unwrap_err();
    // A login and a pin.
    let login = RawClient::login(proxy.address, &db.name, &role, "secret", &[]);
    let mut client = login.await;
    client.query("create temp table mine (x int)").await;
    client.query("select 1").await;
    // A discard and a close: half a message, and gone.
    let long = frames::query(&format!("select '{}'", "x".repeat(40_000)));
    client.send(&long[..20_000]).await;
    drop(client);
    eventually("the backend is closed", async || {
        proxy.log().contains("backend closed")
    })
    .await;
    eventually("the client is closed", async || {
        proxy.log().contains("client closed")
    })
    .await;
    (proxy, db, role)
}

#[tokio::test]
async fn as_json() {
    let (proxy, db, role) = a_day("json").await;
    let log = proxy.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let the = |message: &str| {
        let mut found = lines.iter().filter(|line| line["message"] == message);
        let line = found
            .next()
            .unwrap_or_else(|| panic!("no {message:?} in\n{log}"));
        assert_eq!(found.next(), None, "{message:?} twice");
        for key in ["timestamp", "level", "target"] {
            assert!(line[key].is_string(), "{key} of {line}");
        }
        line
    };
    let refused = the("client refused");
    assert_eq!(
        (&refused["user"], &refused["database"]),
        (&role.as_str().into(), &db.name.as_str().into())
    );
    assert_eq!(
        refused["error"],
        format!("password authentication failed for user \"{role}\"")
    );
    let login = the("client logged in");
    assert_eq!(
        (&login["user"], &login["database"]),
        (&role.as_str().into(), &db.name.as_str().into())
    );
    assert_eq!(
        (&login["tls"], &login["from"]),
        (&false.into(), &"127.0.0.1".into())
    );
    assert_eq!(login["endpoint"], proxy.address.to_string());
    let pinned = the("session pinned");
    assert_eq!(
        (&pinned["reason"], &pinned["client"]),
        (&"temp_object".into(), &login["client"])
    );
    let discarded = the("backend closed");
    assert_eq!(discarded["reason"], "client_left");
    assert_eq!(the("backend connected")["backend"], discarded["backend"]);
    let closed = the("client closed");
    assert_eq!(
        (&closed["reason"], &closed["client"]),
        (&"client_gone".into(), &login["client"])
    );
}

#[tokio::test]
async fn as_text() {
    let (proxy, db, role) = a_day("text").await;
    let log = proxy.log();
    for (message, parts) in [
        (
            "client refused",
            vec![
                role.as_str(),
                db.name.as_str(),
                "password authentication failed",
            ],
        ),
        (
            "client logged in",
            vec![&role, &db.name, "tls=false", "from=127.0.0.1"],
        ),
        ("session pinned", vec!["reason=\"temp_object\"", "advice="]),
        ("backend closed", vec!["reason=\"client_left\""]),
        ("client closed", vec!["reason=\"client_gone\""]),
    ] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(message)).collect();
        assert_eq!(lines.len(), 1, "{message:?} in\n{log}");
        for part in parts {
            assert!(lines[0].contains(part), "{part} is not in {}", lines[0]);
        }
    }
    assert!(!log.contains('\u{1b}'), "colours in a file");
}

#[tokio::test]
async fn names_from_strangers_can_not_forge_a_line() {
    let db = database().await;
    for format in ["text", "json"] {
        let proxy = proxy()
            .set("log.format", format)
            .set("log.level", "info")
            .start()
            .await;
        let name = "x\n2030-01-01T00:00:00Z INFO forged\r\u{1b}[31m";
        let mut client = RawClient::connect(proxy.address).await;
        client
            .send(&frames::startup(&[("user", name), ("database", &db.name)]))
            .await;
        client.finish_login("wrong").await.unwrap();
        // Who is known may still invent a database.
        let mut client = RawClient::connect(proxy.address).await;
        let parameters = [("user", ROLE), ("database", name)];
        client.send(&frames::startup(&parameters)).await;
        let refused = client.finish_login(PASSWORD).await.unwrap();
        assert_eq!(refused.sqlstate(), "3D000");
        eventually("it is logged", async || {
            proxy.log().matches("client refused").count() == 2
        })
        .await;
        let log = proxy.log();
        assert!(
            !log.contains('\u{1b}') && !log.contains('\r'),
            "{format}: {log:?}"
        );
        let forged = log.lines().any(|line| line.starts_with("2030"));
        assert!(!forged, "{format}: {log}");
    }
}
