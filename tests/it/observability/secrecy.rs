//! What never reaches the log, at any level: passwords, proofs, literals.

use crate::support::wire::{Certificates, Wire};
use crate::support::{Database, Proxy, RawClient, database, eventually, frames, proxy};

/// A word that no log line may hold; parts of it neither.
const MARKER: &str = "xylophone";

async fn with_everything_logged(method: &str) -> (Database, String, Certificates, Proxy) {
    let db = database().await;
    let role = db.role("app", &format!("{MARKER} of the secret")).await;
    let certificates = Certificates::new(&["localhost"]);
    let proxy = proxy()
        .secret(&role, &format!("{MARKER} of the secret"))
        .secret("another", &format!("{MARKER} of another"))
        .file("server.crt", certificates.certificate.as_str())
        .file("server.key", certificates.key.as_str())
        .set("listen.tls_certificate_file", "server.crt")
        .set("listen.tls_private_key_file", "server.key")
        .set("auth.method", method)
        .set("log.level", "trace")
        .start()
        .await;
    (db, role, certificates, proxy)
}

/// The log shows neither the word, nor what proves that somebody knows a password.
fn is_silent(proxy: &Proxy, answers: &[Vec<u8>]) {
    let log = proxy.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        assert!(!line.contains(MARKER), "{line}");
        // As a list of bytes, as Debug shows them.
        assert!(!line.contains("120, 121, 108, 111"), "{line}");
        // Proofs of SCRAM are 32 bytes in Base64, of md5 so many digits.
        for start in ["p=", "v=", "md5"] {
            for (at, _) in line.match_indices(start) {
                let rest = &line[at + start.len()..];
                let digits = rest
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || "+/".contains(*c));
                assert!(digits.count() < 32, "{line}");
            }
        }
    }
    for answer in answers {
        let text = String::from_utf8_lossy(answer)
            .trim_end_matches('\0')
            .to_owned();
        let proof = text.rsplit("p=").next().unwrap();
        assert!(
            !log.contains(proof),
            "an answer to a request for authentication is in the log"
        );
    }
    let verifier = log.contains("SCRAM-SHA-256$");
    assert!(!verifier, "a verifier is in the log");
}

#[tokio::test]
async fn passwords_and_proofs() {
    for method in ["scram-sha-256", "md5", "cleartext"] {
        let (db, role, certificates, proxy) = with_everything_logged(method).await;
        let mut answers = Vec::new();
        for password in ["of the secret", "that is wrong"] {
            let mut wire = certificates.connect(proxy.address).await;
            let login = wire
                .log_in(&db.name, &role, &format!("{MARKER} {password}"))
                .await;
            assert_eq!(login.is_ok(), password == "of the secret");
            answers.append(&mut wire.answers);
        }
        let mut wire = certificates.connect(proxy.address).await;
        wire.log_in(&db.name, "nobody", MARKER).await.unwrap_err();
        answers.append(&mut wire.answers);
        // Where a password is not asked for: a password as garbage.
        let mut wire = Wire::tcp(proxy.address).await;
        wire.send(&frames::startup(&[("user", &role), ("database", &db.name)]))
            .await;
        wire.frame().await;
        let _ = wire
            .try_send(&frames::query(&format!("{MARKER} as a query")))
            .await;
        wire.rest().await;
        eventually("all is logged", async || {
            proxy.log().matches("client refused").count() >= 3
        })
        .await;
        is_silent(&proxy, &answers);
        // The libraries' own words are there too.
        assert!(proxy.log().contains("TRACE rustls"), "{}", proxy.log());
    }
}

#[tokio::test]
async fn a_password_that_differs_from_the_servers() {
    let (db, role, _, proxy) = with_everything_logged("scram-sha-256").await;
    db.execute(&format!("ALTER ROLE {role} PASSWORD 'changed'"))
        .await;
    let mut wire = Wire::tcp(proxy.address).await;
    let login = wire
        .log_in(&db.name, &role, &format!("{MARKER} of the secret"))
        .await;
    assert_eq!(login.unwrap_err().sqlstate(), "28P01");
    eventually("it is logged", async || {
        proxy.log().contains("client refused")
    })
    .await;
    is_silent(&proxy, &wire.answers);
}

/// A session whose every message holds the word.
async fn talk(client: &mut RawClient) {
    // Names are told where they pin, literals never.
    for sql in [
        "create temp table temporary (x text default 'MARKER')",
        "select pg_advisory_lock(hashtext('MARKER'))",
        "declare c cursor with hold for select E'\\'MARKER', $$MARKER$$, 'C:\\', 'MARKER'",
        "set app.token = MARKER; set client_encoding = latin1; listen another",
        "call nothing('MARKER')",
        "select 'MARKER'",
        "insert into MARKER values ('MARKER')",
        "select 'MARKER'::int",
        "select 1 from no_such_MARKER",
        "do $$ begin raise warning 'MARKER'; end $$",
        "do $$ begin raise exception 'MARKER'; end $$",
        "set app.token = 'MARKER'",
        "prepare p as select 'MARKER'; prepare q as select 'MARKER'",
        "syntax error 'MARKER'",
        "notify channel, 'MARKER'",
        "listen channel",
    ] {
        client.query(&sql.replace("MARKER", MARKER)).await;
    }
    let sql = format!("select $1 || '{MARKER}'");
    let batch = [
        frames::parse(MARKER, &sql),
        frames::bind(MARKER, MARKER, &[MARKER]),
        frames::describe_portal(MARKER),
        frames::execute(MARKER, 0),
        frames::sync(),
    ];
    client.ask(&batch.concat()).await;
    client
        .send(&frames::query(&format!("copy {MARKER} from stdin")))
        .await;
    client.until(b'G').await;
    client
        .send(
            &[
                frames::copy_data(MARKER.as_bytes()),
                frames::copy_fail(MARKER),
            ]
            .concat(),
        )
        .await;
    client.ready().await;
}

#[tokio::test]
async fn what_clients_say_and_what_servers_answer() {
    let (db, role, _, proxy) = with_everything_logged("scram-sha-256").await;
    let password = format!("{MARKER} of the secret");
    let login = async || RawClient::login(proxy.address, &db.name, &role, &password, &[]).await;
    db.execute(&format!(
        "create table {MARKER} (x text); grant all on {MARKER} to {role};
         create procedure nothing(x text) language sql as $$ select 1 $$"
    ))
    .await;
    let mut client = login().await;
    talk(&mut client).await;
    eventually("the pins are logged", async || {
        proxy.log().matches("session pinned").count() >= 6
    })
    .await;
    let (_, page) = proxy.http("/pins").await;
    assert!(
        page.contains("advisory_lock") && !page.contains(MARKER),
        "{page}"
    );
    // The ways a session can end, each with the word at hand.
    client
        .send(&frames::query(&format!("select pg_sleep(60), '{MARKER}'")))
        .await;
    drop(client);
    let mut client = login().await;
    let words = format!("select '{MARKER}', pg_terminate_backend(pg_backend_pid())");
    client.send(&frames::query(&words)).await;
    client.rest().await;
    let mut client = login().await;
    client
        .send(&[b"?\0\0\0\x20", MARKER.as_bytes()].concat())
        .await;
    client.rest().await;
    let mut client = login().await;
    client
        .send(&frames::query(&format!("select '{MARKER}'"))[..18])
        .await;
    client.reset();
    eventually("all is logged", async || {
        proxy.log().matches("client closed").count() >= 4
    })
    .await;
    is_silent(&proxy, &[]);
}

#[tokio::test]
async fn what_clients_ask_for_at_login() {
    let (db, role, _, proxy) = with_everything_logged("scram-sha-256").await;
    let password = format!("{MARKER} of the secret");
    let options = format!("-c app.token={MARKER}");
    let good = [("options", options.as_str()), ("application_name", MARKER)];
    let client = RawClient::login(proxy.address, &db.name, &role, &password, &good).await;
    drop(client);
    for (name, value) in [
        ("statement_timeout", MARKER),
        ("options", "-c work_mem=xylophone"),
    ] {
        let mut client = RawClient::connect(proxy.address).await;
        let parameters = [
            ("user", role.as_str()),
            ("database", &db.name),
            (name, value),
        ];
        client.send(&frames::startup(&parameters)).await;
        assert_eq!(
            client.finish_login(&password).await.unwrap().sqlstate(),
            "22023"
        );
    }
    eventually("all is logged", async || {
        proxy.log().matches("client refused").count() >= 2
    })
    .await;
    is_silent(&proxy, &[]);
}

#[tokio::test]
async fn what_the_operator_wrote() {
    let db = database().await;
    let proxy = proxy()
        .set("log.level", "trace")
        .set("pool.init_query", format!("select '{MARKER}'::int"))
        .start()
        .await;
    let mut wire = Wire::tcp(proxy.address).await;
    let refused = wire.log_in(&db.name, "postgres", "").await.unwrap_err();
    assert_eq!(refused.sqlstate(), "22P02", "{refused:?}");
    // Nor is it any client's business.
    assert!(
        !refused.field(b'M').unwrap().contains(MARKER),
        "{refused:?}"
    );
    eventually("it is logged", async || {
        proxy.log().contains("client refused")
    })
    .await;
    is_silent(&proxy, &[]);
}
