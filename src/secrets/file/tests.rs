use std::fs::{self, Permissions};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A secrets file; removed when dropped.
struct TestFile(PathBuf);

impl TestFile {
    fn new(content: impl AsRef<[u8]>, mode: u32) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pgsluice-secrets-{}-{number}.json", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        Self(path)
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn load(content: impl AsRef<[u8]>) -> Result<SecretStore, SecretsError> {
    SecretStore::load(&TestFile::new(content, 0o600).0)
}

/// The error's text, with the file called FILE.
fn told(content: impl AsRef<[u8]>, mode: u32) -> String {
    let file = TestFile::new(content, mode);
    let error = SecretStore::load(&file.0).unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    error.to_string().replace(file.0.to_str().unwrap(), "FILE")
}

#[test]
fn one_object_as_secrets_manager_writes_it() {
    let store = load(
        r#"{"username":"app","password":"p\"ä\\","engine":"postgres","host":"db","port":5433,
            "dbname":"shop","dbInstanceIdentifier":"x","nested":{"a":[1]}}"#,
    )
    .unwrap();
    let secret = store.find("app", "shop").unwrap();
    assert_eq!(secret.password.expose(), "p\"ä\\");
    assert_eq!(store.server().unwrap(), Some(("db".into(), 5433)));
    assert!(store.find("app", "other").is_none());
    assert!(store.find("App", "shop").is_none());
}

#[test]
fn a_secret_that_names_the_database_wins() {
    let any = r#"{"username":"a","password":"any"}"#;
    let named = r#"{"username":"a","password":"named","dbname":"x"}"#;
    for list in [format!("[{any},{named}]"), format!("[{named},{any}]")] {
        let store = load(list).unwrap();
        assert_eq!(store.find("a", "x").unwrap().password.expose(), "named");
        assert_eq!(store.find("a", "y").unwrap().password.expose(), "any");
        assert_eq!((store.len(), store.roles()), (2, 1));
    }
}

#[test]
fn the_server_is_the_one_all_secrets_name() {
    let secret =
        |role: &str, rest: &str| format!(r#"{{"username":"{role}","password":"p"{rest}}}"#);
    let server = |rest: &[&str]| {
        let list: Vec<_> = rest
            .iter()
            .enumerate()
            .map(|(i, rest)| secret(&format!("r{i}"), rest))
            .collect();
        load(format!("[{}]", list.join(","))).unwrap().server()
    };
    type Case = (&'static [&'static str], Option<(&'static str, u16)>);
    let cases: &[Case] = &[
        (&[""], None),
        (&[r#","port":5433"#], None),
        (
            &[r#","host":"db""#, "", r#","host":"db","port":"5432""#],
            Some(("db", 5432)),
        ),
        (&[r#","host":"db","port":null"#], Some(("db", 5432))),
    ];
    for (rest, expected) in cases {
        assert_eq!(
            server(rest).unwrap(),
            expected.map(|(host, port)| (host.into(), port)),
            "{rest:?}"
        );
    }
    let error = server(&[
        r#","host":"b""#,
        r#","host":"a""#,
        r#","host":"b","port":1"#,
    ])
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the secrets name several servers (a:5432, b:1, b:5432); set target.host, or let them agree"
    );
}

#[test]
fn faults_name_file_place_and_field_but_no_value() {
    let cases: &[(&str, &str)] = &[
        (
            "{\"username\":\"app\",\n \"password\":\"hunter2}",
            "FILE is not JSON (EOF while parsing a string at line 2, column 21); correct it",
        ),
        (
            "{\"username\":\"app\",\"password\":hunter2}",
            "FILE is not JSON (expected value at line 1, column 30); correct it",
        ),
        (
            "{\"password\":\"hunter2\\x\"}",
            "FILE is not JSON (invalid escape at line 1, column 22); correct it",
        ),
        (
            "[]",
            "FILE: holds no secret; write {\"username\": …, \"password\": …} or a list of such",
        ),
        (
            "\"hunter2\"",
            "FILE: secret 1 is not an object {\"username\": …, \"password\": …}",
        ),
        (
            "[[\"hunter2\"]]",
            "FILE: secret 1 is not an object {\"username\": …, \"password\": …}",
        ),
        (
            r#"[{"username":5,"password":["hunter2"],"port":"hunter2","host":"","dbname":{"hunter2":1}}, 7, {}]"#,
            "FILE: secret 1: \"username\" must be a string; secret 1: \"password\" must be a string; \
             secret 1: \"dbname\" must be a string; secret 1: \"host\" is empty; \
             secret 1: \"port\" must be a number from 1 to 65535; \
             secret 2 is not an object {\"username\": …, \"password\": …}; \
             secret 3: \"username\" is missing; secret 3: \"password\" is missing",
        ),
        (
            r#"[{"username":"a","password":"hunter2"},{"username":"a","password":"hunter22"},
                {"username":"b","dbname":"x","password":"p"},{"username":"b","dbname":"x","password":"p"},
                {"username":"c","password":"hunter2\u0000"}]"#,
            "FILE: secret 2 is a second one for role \"a\", database any; keep one; \
             secret 4 is a second one for role \"b\", database \"x\"; keep one; \
             secret 5: \"password\" holds a NUL character",
        ),
    ];
    for (content, expected) in cases {
        assert_eq!(told(content, 0o600), *expected);
    }
}

#[test]
fn ports() {
    let cases = [
        ("1", true),
        ("65535", true),
        ("\"5432\"", true),
        ("0", false),
        ("65536", false),
        ("-1", false),
        ("1.5", false),
        ("\"\"", false),
        ("true", false),
    ];
    for (port, good) in cases {
        let content = format!(r#"{{"username":"a","password":"p","port":{port}}}"#);
        assert_eq!(load(content).is_ok(), good, "{port}");
    }
}

#[test]
fn a_file_open_to_everyone_is_refused() {
    let secret = r#"{"username":"a","password":"hunter2"}"#;
    for mode in [0o644, 0o602, 0o604, 0o666, 0o601] {
        let expected = format!("FILE is open to everyone (mode {mode:04o}); run: chmod 600 FILE");
        assert_eq!(told(secret, mode), expected);
    }
    for mode in [0o600, 0o640, 0o660] {
        assert!(
            SecretStore::load(&TestFile::new(secret, mode).0).is_ok(),
            "{mode:o}"
        );
    }
}

#[test]
fn what_is_not_a_secrets_file_is_refused() {
    for (path, expected) in [
        ("/nonexistent/x", "No such file"),
        ("/dev/zero", "not a regular file"),
        ("/", "not a regular file"),
    ] {
        let told = SecretStore::load(Path::new(path)).unwrap_err().to_string();
        assert!(told.starts_with(path) && told.contains(expected), "{told}");
    }
    let file = TestFile::new("", 0o600);
    File::options()
        .write(true)
        .open(&file.0)
        .unwrap()
        .set_len(FILE_BYTES_MAX + 1)
        .unwrap();
    assert!(matches!(
        SecretStore::load(&file.0),
        Err(SecretsError::TooLong { .. })
    ));
}

#[test]
fn debug_of_a_store_hides_passwords() {
    let store = load(r#"{"username":"app","password":"hunter2"}"#).unwrap();
    let shown = format!("{store:?}");
    assert!(
        shown.contains("app") && !shown.contains("hunter2"),
        "{shown}"
    );
}

#[test]
fn the_example_is_valid() {
    let store = load(include_bytes!("../../../config/secrets.example.json")).unwrap();
    assert_eq!(store.server().unwrap(), Some(("127.0.0.1".into(), 5432)));
}
