//! Random sessions, each run directly on PostgreSQL and through a small pool among others: both must see the same.
//!
//! A difference is printed with its seed and made smaller before the test fails.
//! - other seeds, longer: `TWO_WORLDS_SECONDS=3600 cargo test --test it two_worlds -- --nocapture`
//! - one round again: `TWO_WORLDS_SEED=…`
//! - go on after a difference, until there are so many: `TWO_WORLDS_DIFFERENCES=20`
//!
//! What is printed at the end of a difference can be kept as a file in `two_worlds/kept/`: these sessions run first, in
//! copies. They do not depend on the grammar, as seeds do. (proptest would not help: what it generates it also runs, alone,
//! and here the others are the point; made smaller is a list of steps, which needs no strategy.)

mod grammar;
mod script;
mod seen;
mod shrink;
mod worlds;

use crate::support::Frame;
use grammar::Random;
use script::{Script, written};
use seen::Difference;
use shrink::Shrink;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use worlds::{SESSIONS, Worlds};

/// Rounds of [`SESSIONS`] in an ordinary run: always the same.
const ROUNDS: u64 = 40;

/// On a busy machine fewer.
const ORDINARY_RUN: Duration = Duration::from_secs(60);

/// How often sessions that are kept run.
const KEPT_TIMES: u64 = 3;

fn says(frames: &[Frame]) -> String {
    let lines = frames.iter().map(|frame| format!("    {frame:?}\n"));
    lines.collect()
}

fn report(scripts: &[Script], found: &Difference) -> String {
    let Difference { session, step, .. } = found;
    let what = match step {
        0 => "the welcome".to_owned(),
        step => match scripts[*session].steps.get(step - 1) {
            Some(_) => format!("the answer to step {step}"),
            None => "the notifications".to_owned(),
        },
    };
    format!(
        "# session {session}, {what}\n# directly\n{}# through the proxy\n{}{}",
        says(&found.directly),
        says(&found.through),
        written(scripts)
    )
}

/// Prints the differences of a round, the first of them made smaller; returns how many there are.
async fn round(worlds: &Worlds, seed: u64) -> usize {
    let mut random = Random(seed);
    let scripts: Vec<Script> = (0..SESSIONS)
        .map(|_| grammar::script(random.next(), &worlds.role))
        .collect();
    let differences = worlds.differences(&scripts, seed).await;
    let count = differences.len();
    if let Some(found) = differences.into_iter().next() {
        println!("TWO_WORLDS_SEED={seed}: {count} differences; as it came:");
        println!(
            "{}",
            report(
                &scripts[found.session..=found.session],
                &Difference {
                    session: 0,
                    ..found.clone()
                }
            )
        );
        let small = Shrink::of(worlds, scripts, found).await;
        println!("TWO_WORLDS_SEED={seed}; the smallest found:");
        println!("{}", report(&small.scripts, &small.found));
    }
    count
}

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap())
}

/// Rounds from such seeds, as long as there is time and nothing, or not much, is found.
async fn rounds(worlds: &Worlds, seeds: impl Iterator<Item = u64>, time: Duration) {
    let begun = Instant::now();
    let bearable = from_environment("TWO_WORLDS_DIFFERENCES").unwrap_or(1);
    let (mut sessions, mut found) = (0, 0);
    for seed in seeds {
        if begun.elapsed() >= time || found >= bearable {
            break;
        }
        found += u64::from(round(worlds, seed).await > 0);
        sessions += SESSIONS;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{sessions} sessions, {:.0} a second",
        sessions as f64 / seconds
    );
    assert_eq!(found, 0, "rounds with a difference");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_worlds_look_the_same() {
    let worlds = Worlds::new().await;
    if let Some(seed) = from_environment("TWO_WORLDS_SEED") {
        return rounds(&worlds, seed..=seed, Duration::MAX).await;
    }
    match from_environment("TWO_WORLDS_SECONDS") {
        Some(seconds) => {
            let seeds = std::iter::repeat_with(rand::random);
            rounds(&worlds, seeds, Duration::from_secs(seconds)).await;
        }
        None => rounds(&worlds, 0..ROUNDS, ORDINARY_RUN).await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_once_differed_do_not() {
    let worlds = Worlds::new().await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/two_worlds/kept");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
    files.sort_by_key(|file| file.as_ref().unwrap().path());
    let mut differing = Vec::new();
    for file in files {
        let path = file.unwrap().path();
        let mut scripts = script::read(&std::fs::read_to_string(&path).unwrap());
        scripts = scripts.iter().cycle().take(SESSIONS / 2).cloned().collect();
        for attempt in 0..KEPT_TIMES {
            let found = worlds.differences(&scripts, attempt).await;
            if let Some(found) = found.first() {
                let own = &scripts[found.session..=found.session];
                let found = Difference {
                    session: 0,
                    ..found.clone()
                };
                println!("{}\n{}", path.display(), report(own, &found));
                differing.push(path);
                break;
            }
        }
    }
    assert!(differing.is_empty(), "{differing:#?}");
}
