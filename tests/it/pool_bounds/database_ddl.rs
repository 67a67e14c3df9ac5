//! A database whose clients have left can be copied, renamed and dropped: no idle backend is in the way.

use crate::support::frames::{errors, extended, query, sync};
use crate::support::{Database, Proxy, database, eventually, proxy};

/// A client that comes and goes; its backend stays, idle.
async fn visit(proxy: &Proxy, db: &Database) {
    proxy.raw(db).await.query("SELECT 1").await;
    let labels = [("database", db.name.as_str()), ("state", "idle")];
    eventually("the visitor's backend is idle", async || {
        proxy
            .metrics()
            .await
            .sum("pgsluice_database_connections", &labels)
            == 1.0
    })
    .await;
}

#[tokio::test]
async fn no_idle_backend_keeps_a_database_from_being_copied_renamed_or_dropped() {
    let (db, proxy) = (database().await, proxy().start().await);
    let named = |name: String| Database {
        name,
        server: db.server,
    };
    let (copy, moved) = (
        named(format!("{}_copy", db.name)),
        named(format!("{}_MOVED", db.name)),
    );
    let mut admin = proxy.raw(&named("postgres".to_owned())).await;
    let (from, copied, to) = (&db.name, &copy.name, &moved.name);
    let create = format!("CREATE DATABASE {copied} TEMPLATE {from}");
    let rename = format!("/* ! */ alter database {from} RENAME TO \"{to}\"");
    let drop_copy = format!("DROP DATABASE {copied}");
    let drop_moved = format!("DROP DATABASE IF EXISTS \"{to}\"");
    for (visited, request) in [
        (&db, query(&create)),
        (&db, query(&rename)),
        (&copy, query(&drop_copy)),
        (&moved, [extended(&drop_moved, &[]), sync()].concat()),
    ] {
        visit(&proxy, visited).await;
        let answer = admin.ask(&request).await;
        assert_eq!(errors(&answer), [""; 0], "{request:?}");
    }
}
