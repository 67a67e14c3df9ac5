//! What clients ask for at login differs from client to client, on the same backend.

use super::{code_of, database, pid_of, proxy, text};
use crate::support::frames::{self, copy_data, copy_done, errors, query};
use crate::support::{ROLE, RawClient};

#[tokio::test]
async fn each_client_sees_its_own_startup_parameters() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut clients = Vec::new();
    for number in 0..4 {
        let name = format!("client {number}");
        let options = format!("-c work_mem={}MB -c app.tenant=t\\ {number}", 10 + number);
        let zone = if number % 2 == 0 { "UTC" } else { "Asia/Tokyo" };
        let asked = [
            ("application_name", name.as_str()),
            ("options", options.as_str()),
            ("TimeZone", zone),
        ];
        clients.push(proxy.raw_with(&db, &asked).await);
    }
    clients.push(proxy.raw(&db).await);
    let look = "SELECT concat_ws('|', current_setting('application_name'), \
                current_setting('work_mem'), current_setting('app.tenant', true), \
                current_setting('TimeZone'), pg_backend_pid())";
    let mut direct = db.raw().await;
    let zone = direct.value("SHOW TimeZone").await;
    let backend = clients[4].value("SELECT pg_backend_pid()").await;
    for round in 0..6 {
        for (number, client) in clients.iter_mut().enumerate() {
            let expected = match number {
                4 => format!("|4MB||{zone}|{backend}"),
                _ => {
                    let zone = if number % 2 == 0 { "UTC" } else { "Asia/Tokyo" };
                    format!(
                        "client {number}|{}MB|t {number}|{zone}|{backend}",
                        10 + number
                    )
                }
            };
            assert_eq!(
                client.value(look).await,
                expected,
                "round {round}, client {number}"
            );
        }
    }
    assert_eq!(proxy.metrics().await.sum("pgsluice_pins_total", &[]), 0.0);
}

#[tokio::test]
async fn the_welcome_tells_what_the_client_asked_for() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    for parameters in [
        vec![("application_name", "mine"), ("client_encoding", "LATIN1")],
        vec![("DateStyle", "German, DMY"), ("TimeZone", "Asia/Tokyo")],
        vec![(
            "options",
            "-c IntervalStyle=iso_8601 --standard_conforming_strings=off",
        )],
    ] {
        let server = db.server.address;
        let expected = RawClient::login(server, &db.name, ROLE, "", &parameters).await;
        let client = proxy.raw_with(&db, &parameters).await;
        let told = |client: &RawClient| {
            let mut told: Vec<_> = client
                .welcome
                .iter()
                .filter(|frame| frame.tag == b'S')
                .collect();
            told.sort_by(|a, b| a.body.cmp(&b.body));
            format!("{told:#?}")
        };
        assert_eq!(told(&client), told(&expected));
    }
}

#[tokio::test]
async fn a_parameter_the_server_refuses_refuses_the_login() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    for (name, value) in [
        ("work_mem", "much"),
        ("nosuchparameter", "1"),
        ("TimeZone", "Nowhere"),
    ] {
        let login = [
            ("user", ROLE),
            ("database", db.name.as_str()),
            (name, value),
        ];
        let mut refusals = Vec::new();
        for address in [db.server.address, proxy.address] {
            let mut client = RawClient::connect(address).await;
            client.send(&frames::startup(&login)).await;
            let refusal = client.finish_login("").await.unwrap();
            refusals.push((refusal.sqlstate(), refusal.field(b'M')));
        }
        assert_eq!(refusals[0], refusals[1]);
        // The backend it was tried on is as good as before.
        let next = proxy.connect(&db).await;
        assert_eq!(text(&next, "SHOW work_mem").await, "4MB");
    }
}

#[tokio::test]
async fn a_session_that_resets_all_gets_its_startup_parameters_back() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut client = proxy.raw_with(&db, &[("options", "-c work_mem=9MB")]).await;
    client.query("SET work_mem = '5MB'").await;
    client.query("RESET ALL").await;
    assert_eq!(client.value("SHOW work_mem").await, "9MB");
    client.query("SET work_mem = '5MB'").await;
    client.query("RESET work_mem").await;
    assert_eq!(client.value("SHOW work_mem").await, "9MB");
}

#[tokio::test]
async fn a_login_needs_a_database_that_exists() {
    let db = database().await;
    let proxy = proxy().max_connections(1).start().await;
    let mut client = RawClient::connect(proxy.address).await;
    client
        .send(&frames::startup(&[("user", ROLE), ("database", "nowhere")]))
        .await;
    let refusal = client.finish_login("").await.unwrap();
    assert_eq!(refusal.sqlstate(), "3D000");
    let next = proxy.connect(&db).await;
    assert!(pid_of(&next).await > 0);
    let error = next
        .batch_execute("SELECT * FROM nowhere")
        .await
        .unwrap_err();
    assert_eq!(code_of(&error), "42P01");
}

/// As drivers' pools do it: DISCARD ALL before the next one's BEGIN, in one write.
#[tokio::test]
async fn a_transaction_right_behind_discard_all_goes_on() {
    for mode in ["transaction", "session"] {
        let db = database().await;
        let proxy = proxy().max_connections(1).mode(mode).start().await;
        let mut client = proxy.raw_with(&db, &[("TimeZone", "Asia/Tokyo")]).await;
        client
            .send(&[query("DISCARD ALL"), query("BEGIN")].concat())
            .await;
        client.ready().await;
        client.ready().await;
        assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo", "{mode}");
        client.query("COMMIT").await;
        assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo", "{mode}");
    }
}

#[tokio::test]
async fn a_copy_behind_a_reset_gets_its_data() {
    let db = database().await;
    db.execute("CREATE TABLE t (a int)").await;
    let proxy = proxy().max_connections(1).start().await;
    let mut client = proxy.raw_with(&db, &[("TimeZone", "Asia/Tokyo")]).await;
    client.query("SET TimeZone = 'UTC'").await;
    client
        .send(&query("RESET TimeZone; COPY t FROM STDIN"))
        .await;
    client.until(b'G').await;
    client
        .send(&[copy_data(b"7\n"), copy_done()].concat())
        .await;
    assert_eq!(errors(&client.ready().await), [""; 0]);
    assert_eq!(client.value("SELECT a FROM t").await, "7");
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
}
