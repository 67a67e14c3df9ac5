//! How many clients at once: who comes too many is told which limit it was, and a place that is left is free again.

use crate::support::{
    Database, PASSWORD, Proxy, ROLE, RawClient, database, eventually, frames, proxy,
};

/// Tries to log in; the client, or the SQLSTATE and text of the refusal.
async fn try_login(
    proxy: &Proxy,
    database: &str,
    role: &str,
    password: &str,
) -> Result<RawClient, (String, String)> {
    let mut client = RawClient::connect(proxy.address).await;
    client
        .send(&frames::startup(&[("user", role), ("database", database)]))
        .await;
    match client.finish_login(password).await {
        None => Ok(client),
        Some(refusal) => Err((refusal.sqlstate(), refusal.field(b'M').unwrap())),
    }
}

async fn is_refused_for(proxy: &Proxy, database: &str, role: &str, password: &str, key: &str) {
    let (code, text) = match try_login(proxy, database, role, password).await {
        Ok(_) => panic!("{role} on {database} got in beyond {key}"),
        Err(refusal) => refusal,
    };
    assert_eq!(code, "53300", "{text}");
    assert!(text.contains(key), "{text}");
}

async fn gets_in_again(proxy: &Proxy, database: &Database) {
    eventually("the place is free again", async || {
        try_login(proxy, &database.name, ROLE, PASSWORD)
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_limit_for_all_clients() {
    let db = database().await;
    let proxy = proxy().set("limits.max_clients", 2).start().await;
    let first = proxy.raw(&db).await;
    let mut second = proxy.raw(&db).await;
    is_refused_for(&proxy, &db.name, ROLE, PASSWORD, "limits.max_clients").await;
    // Those inside notice nothing.
    assert_eq!(second.value("select 1").await, "1");
    drop(first);
    gets_in_again(&proxy, &db).await;
}

#[tokio::test]
async fn a_place_is_free_however_its_client_leaves() {
    let db = database().await;
    let proxy = proxy().set("limits.max_clients", 1).start().await;
    let mut polite = proxy.raw(&db).await;
    polite.send(&frames::terminate()).await;
    gets_in_again(&proxy, &db).await;
    eventually("the last one has left", async || {
        proxy
            .metrics()
            .await
            .sum("pgsluice_client_connections", &[])
            == 0.0
    })
    .await;
    let reset = proxy.raw(&db).await;
    reset.reset();
    gets_in_again(&proxy, &db).await;
    eventually("the last one has left", async || {
        proxy
            .metrics()
            .await
            .sum("pgsluice_client_connections", &[])
            == 0.0
    })
    .await;
    let mut in_transaction = proxy.raw(&db).await;
    in_transaction.query("begin").await;
    drop(in_transaction);
    gets_in_again(&proxy, &db).await;
}

#[tokio::test]
async fn a_limit_for_each_user() {
    let db = database().await;
    let other = db.role("other", "secret").await;
    let proxy = proxy()
        .secret(&other, "secret")
        .set("limits.max_clients_per_user", 1)
        .start()
        .await;
    let first = proxy.raw(&db).await;
    let key = "limits.max_clients_per_user";
    is_refused_for(&proxy, &db.name, ROLE, PASSWORD, key).await;
    let _second = try_login(&proxy, &db.name, &other, "secret").await.unwrap();
    is_refused_for(&proxy, &db.name, &other, "secret", key).await;
    drop(first);
    gets_in_again(&proxy, &db).await;
}

#[tokio::test]
async fn a_limit_for_each_database() {
    let (db, other) = (database().await, database().await);
    let proxy = proxy()
        .set("limits.max_clients_per_database", 1)
        .start()
        .await;
    let first = proxy.raw(&db).await;
    let key = "limits.max_clients_per_database";
    is_refused_for(&proxy, &db.name, ROLE, PASSWORD, key).await;
    let _second = proxy.raw(&other).await;
    is_refused_for(&proxy, &other.name, ROLE, PASSWORD, key).await;
    drop(first);
    gets_in_again(&proxy, &db).await;
}

#[tokio::test]
async fn a_limit_for_each_address() {
    let db = database().await;
    let proxy = proxy()
        .set("limits.max_clients_per_address", 1)
        .start()
        .await;
    let first = proxy.raw(&db).await;
    let key = "limits.max_clients_per_address";
    is_refused_for(&proxy, &db.name, ROLE, PASSWORD, key).await;
    // All of 127.0.0.0/8 is this machine: another address of it.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket.connect(proxy.address).await.unwrap();
    let mut elsewhere = crate::support::wire::Wire::new(stream);
    elsewhere.log_in(&db.name, ROLE, PASSWORD).await.unwrap();
    drop(first);
    gets_in_again(&proxy, &db).await;
}

#[tokio::test]
async fn a_wrong_password_does_not_learn_that_the_house_is_full() {
    let db = database().await;
    let role = db.role("app", "secret").await;
    let proxy = proxy()
        .secret(&role, "secret")
        .set("limits.max_clients", 1)
        .start()
        .await;
    let _first = proxy.raw(&db).await;
    let refused = try_login(&proxy, &db.name, &role, "wrong").await;
    assert_eq!(refused.err().unwrap().0, "28P01");
}
