//! Rules about the source that no compiler checks: who may import whom, and how long things may get.
//!
//! It reads Rust without a parser: comments and strings are blanked, line breaks kept, and what remains is plain enough
//! to search. Code that only tests use is free of all this: tables of cases are long, and fixtures reach far.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test all over

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// Third-party crates that stay behind one module each, so that another could take their place.
const BEHIND: &[(&str, &str)] = &[
    ("clap", "cli"),
    ("deadpool", "pool"),
    ("hyper", "admin"),
    ("hyper_util", "admin"),
    ("http_body_util", "admin"),
    ("pgwire", "scram"),
    ("prometheus", "metrics"),
    ("rustls", "tls"),
    ("tokio_rustls", "tls"),
    ("toml", "config"),
];

#[test]
fn modules_import_from_below() {
    let rows = rows();
    let mut faults = Vec::new();
    for file in sources().iter().filter(|file| !file.only_tests) {
        let own = file.module();
        let Some(&row) = rows.get(own) else {
            faults.push(format!(
                "{file}: docs/ARCHITECTURE.md draws no row for `{own}`"
            ));
            continue;
        };
        for (line, import) in file.crate_imports() {
            match rows.get(import.as_str()) {
                _ if import == own => {}
                Some(&imported) if imported > row => {}
                Some(_) => faults.push(format!(
                    "{file}:{line}: `{own}` imports `{import}`, which is not below it"
                )),
                None => faults.push(format!(
                    "{file}:{line}: docs/ARCHITECTURE.md draws no row for `{import}`"
                )),
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn the_drawing_has_every_module_once() {
    let modules: BTreeSet<String> = sources()
        .iter()
        .map(|file| file.module().to_owned())
        .filter(|module| module != "lib")
        .collect();
    let drawn: BTreeSet<String> = rows()
        .into_keys()
        .filter(|module| module != "lib")
        .collect();
    assert_eq!(
        modules, drawn,
        "left: in src/, right: in docs/ARCHITECTURE.md"
    );
}

#[test]
fn third_party_crates_stay_behind_their_module() {
    let mut faults = Vec::new();
    for file in sources().iter().filter(|file| !file.only_tests) {
        for (number, line) in file.code.lines().enumerate() {
            for (library, home) in BEHIND {
                if file.module() != *home && has_path_from(line, library) {
                    faults.push(format!(
                        "{file}:{}: `{library}` belongs in `{home}`",
                        number + 1
                    ));
                }
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn files_are_short() {
    let faults: Vec<String> = sources()
        .iter()
        .filter(|file| !file.only_tests)
        .map(|file| (file, file.code.trim_end().lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(file, lines)| {
            format!("{file}: {lines} lines without its tests, at most {FILE_LINES_MAX}")
        })
        .collect();
    assert_none(&faults);
}

#[test]
fn functions_are_short() {
    let mut faults = Vec::new();
    for file in sources().iter().filter(|file| !file.only_tests) {
        for (line, name, lines) in functions(&file.code) {
            if lines > FUNCTION_LINES_MAX {
                faults.push(format!(
                    "{file}:{line}: fn {name} has {lines} lines, at most {FUNCTION_LINES_MAX}"
                ));
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn unsafe_code_is_forbidden() {
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    assert!(library.contains("#![forbid(unsafe_code)]"), "src/lib.rs");
    // The binary and the tests are crates of their own; the manifest speaks for them.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"forbid\""), "Cargo.toml");
}

#[test]
fn the_reader_reads_rust() {
    let source = r####"//! crate::comment
use crate::{error::{A, B}, ids};
/* crate::block /* crate::nested */ */
fn lifetime<'a>(x: &'a str) -> char { let _ = ("crate::text \" {", r#"crate::raw " {"#, b'"', '\'', '{'); 'x' }
trait T { fn without_body(&self); }
fn tall() -> [u8; 2]
where
    u8: Copy,
{
    [crate::wire::ONE, $crate::hidden]
}
#[cfg(test)]
mod tests {
    use crate::session;
}
#[cfg(test)]
mod elsewhere;
"####;
    let whole = blank(source);
    assert_eq!(whole.lines().count(), source.lines().count());
    let (code, test_files) = without_tests(&whole);
    assert_eq!(test_files, ["elsewhere"]);
    assert_eq!(
        crate_imports(&code),
        [
            (2, "error".to_owned()),
            (2, "ids".to_owned()),
            (10, "wire".to_owned())
        ]
    );
    assert_eq!(
        functions(&code),
        [(4, "lifetime".to_owned(), 1), (6, "tall".to_owned(), 6)]
    );
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Module → row, counted from the top, as the page draws them: the first block under "Arrows".
fn rows() -> BTreeMap<String, usize> {
    let page = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let section = page
        .split("\n## Arrows\n")
        .nth(1)
        .expect("a section called Arrows");
    let drawing = section.split("```").nth(1).expect("a drawing in it");
    let mut rows = BTreeMap::from([("lib".to_owned(), 0)]);
    for (row, line) in drawing.trim().lines().enumerate() {
        for module in line.split_whitespace() {
            assert_eq!(
                rows.insert(module.to_owned(), row),
                None,
                "`{module}` is drawn twice"
            );
        }
    }
    rows
}

struct Source {
    /// Relative to `src/`.
    path: PathBuf,
    /// Comments and strings blanked, what only tests use left out.
    code: String,
    only_tests: bool,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "src/{}", self.path.display())
    }
}

impl Source {
    /// The module right under the crate's root that this file belongs to.
    fn module(&self) -> &str {
        let first = self.path.iter().next().unwrap().to_str().unwrap();
        first.trim_end_matches(".rs")
    }

    fn crate_imports(&self) -> Vec<(usize, String)> {
        crate_imports(&self.code)
    }
}

fn sources() -> Vec<Source> {
    let source_root = root().join("src");
    let mut paths = Vec::new();
    collect(&source_root, &mut paths);
    paths.sort();
    let mut of_tests = BTreeSet::new();
    let mut sources = Vec::new();
    for path in paths {
        let whole = blank(&fs::read_to_string(&path).unwrap());
        let (code, test_files) = without_tests(&whole);
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let folder = match stem {
            "mod" | "lib" | "main" => path.parent().unwrap().to_owned(),
            _ => path.with_extension(""),
        };
        for name in test_files {
            of_tests.insert(folder.join(&name).with_extension("rs"));
            of_tests.insert(folder.join(&name).join("mod.rs"));
        }
        let path = path.strip_prefix(&source_root).unwrap().to_owned();
        sources.push(Source {
            path,
            code,
            only_tests: false,
        });
    }
    for source in &mut sources {
        source.only_tests = of_tests.contains(&source_root.join(&source.path));
    }
    assert!(sources.len() > 10, "src/ was not found");
    sources
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The source with spaces for what comments, strings and characters hold.
fn blank(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while !rest.is_empty() {
        let after_name = out.chars().last().is_some_and(is_name);
        let len = opaque_len(rest, after_name);
        if len == 0 {
            let next = rest.chars().next().unwrap();
            out.push(next);
            rest = &rest[next.len_utf8()..];
        } else {
            out.extend(
                rest[..len]
                    .chars()
                    .map(|c| if c == '\n' { '\n' } else { ' ' }),
            );
            rest = &rest[len..];
        }
    }
    out
}

/// How long the comment, string or character is that `rest` begins with; 0 if it begins with something else.
fn opaque_len(rest: &str, after_name: bool) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_len(rest);
    }
    if let Some(len) = raw_string_len(rest).filter(|_| !after_name) {
        return len;
    }
    if rest.starts_with('"') {
        return quoted_len(rest, '"');
    }
    // A character, not a lifetime: escaped, or closed after one character.
    let mut chars = rest.chars();
    match (chars.next(), chars.next(), chars.next()) {
        (Some('\''), Some('\\'), _) | (Some('\''), _, Some('\'')) => quoted_len(rest, '\''),
        _ => 0,
    }
}

/// `r"…"`, `r#"…"#`, and the same after `b` or `c`. Inside a name an `r` begins no string.
fn raw_string_len(rest: &str) -> Option<usize> {
    let unprefixed = rest.strip_prefix(['b', 'c']).unwrap_or(rest);
    let quoted = unprefixed.strip_prefix('r')?.trim_start_matches('#');
    let body = quoted.strip_prefix('"')?;
    let hashes = unprefixed.len() - 1 - quoted.len();
    let end = format!("\"{}", "#".repeat(hashes));
    let closed = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(rest.len() - body.len() + closed)
}

fn block_comment_len(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest.as_bytes()[at..rest.len().min(at + 2)] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Removes the items marked `#[cfg(test)]`; returns also the modules among them that are files of their own.
fn without_tests(whole: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let (mut code, mut files) = (String::new(), Vec::new());
    let mut rest = whole;
    while let Some(at) = rest.find(MARK) {
        code.push_str(&rest[..at]);
        let item = &rest[at + MARK.len()..];
        let open = item.find(['{', ';']).expect("an item after #[cfg(test)]");
        let end = if item[open..].starts_with(';') {
            let head = item[..open].trim();
            if let Some((_, name)) = head.split_once("mod ") {
                files.push(name.trim().to_owned());
            }
            open + 1
        } else {
            open + braces_len(&item[open..])
        };
        // The lines stay where they are, unless nothing comes after them.
        code.extend(item[..end].matches('\n'));
        rest = &item[end..];
    }
    code.push_str(rest);
    (code, files)
}

/// How long the block is that `text` begins with, both braces included.
fn braces_len(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    text.len()
}

fn line_at(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Each `crate::name`, and each name of `crate::{…}`, with its line.
fn crate_imports(code: &str) -> Vec<(usize, String)> {
    const START: &str = "crate::";
    let mut found = Vec::new();
    for (at, _) in code.match_indices(START) {
        if code[..at].ends_with(|c: char| is_name(c) || c == '$') {
            continue;
        }
        let path = &code[at + START.len()..];
        let names = match path.strip_prefix('{') {
            None => vec![leading_name(path)],
            Some(_) => grouped_names(&path[1..braces_len(path) - 1]),
        };
        found.extend(names.into_iter().map(|name| (line_at(code, at), name)));
    }
    found
}

fn leading_name(text: &str) -> String {
    text.trim_start()
        .chars()
        .take_while(|c| is_name(*c))
        .collect()
}

/// The first name of each path in a group's inside, groups within it left aside.
fn grouped_names(inside: &str) -> Vec<String> {
    let (mut depth, mut paths) = (0, vec![String::new()]);
    for c in inside.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => paths.push(String::new()),
            _ => paths.last_mut().unwrap().push(c),
        }
    }
    paths
        .iter()
        .map(|path| leading_name(path))
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether a path on this line begins with this crate's name.
fn has_path_from(line: &str, library: &str) -> bool {
    line.match_indices(library).any(|(at, _)| {
        line[at + library.len()..].starts_with("::")
            && !line[..at].ends_with(|c: char| is_name(c) || c == ':')
    })
}

/// Each function that has a body: its line, name and number of lines.
fn functions(code: &str) -> Vec<(usize, String, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].ends_with(is_name) {
            continue;
        }
        let name = leading_name(&code[at + 3..]);
        let Some(body) = body_start(&code[at..]).filter(|_| !name.is_empty()) else {
            continue;
        };
        let len = body + braces_len(&code[at + body..]);
        found.push((
            line_at(code, at),
            name,
            code[at..at + len].matches('\n').count() + 1,
        ));
    }
    found
}

/// Where a function's body begins; `None` if it has none. The `;` of an array's type is inside brackets.
fn body_start(function: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in function.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '{' if depth == 0 => return Some(at),
            ';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}
