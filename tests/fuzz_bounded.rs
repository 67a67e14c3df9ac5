//! Every fuzz target for two seconds, with random bytes and damaged good ones, always the same: what `make fuzz` does
//! at length, without its tools.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test all over

#[path = "fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long one target may take.
const TIME: Duration = Duration::from_secs(2);

/// Random inputs are as long as this at most.
const RANDOM_LEN_MAX: usize = 512;

/// Inputs grow to this at most.
const LEN_MAX: usize = 16 * 1024;

/// A generator of pseudo-random numbers: xorshift64*, good enough and always the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not zero.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Damages a good input: flips, cuts, doubles, swaps with parts of another, puts in numbers at the edges.
fn damage(random: &mut Random, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    const EDGES: [&[u8]; 8] = [
        b"\0",
        b"\0\0\0\0",
        b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x04",
        b"'",
        b"\\",
        b"=",
    ];
    if input.is_empty() {
        *input = random.bytes(8);
    }
    let at = random.below(input.len());
    let rest = input.len() - at;
    match random.below(8) {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = random.next() as u8,
        2 => input.truncate(at),
        3 => drop(input.drain(at..at + random.below(rest.min(16)) + 1)),
        4 => {
            let piece = input[at..at + random.below(rest) + 1].to_vec();
            input.splice(at..at, piece);
        }
        5 => {
            let edge = EDGES[random.below(EDGES.len())];
            input.splice(at..at, edge.iter().copied());
        }
        6 => {
            let edge = EDGES[random.below(EDGES.len())];
            let end = (at + edge.len()).min(input.len());
            input.splice(at..end, edge.iter().copied());
        }
        _ => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len().max(1)).min(other.len());
            input.splice(at.., other[from..].iter().copied());
        }
    }
    input.truncate(LEN_MAX);
}

fn next_input(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    if random.below(4) == 0 {
        let len = random.below(RANDOM_LEN_MAX);
        return random.bytes(len);
    }
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..random.below(6) {
        damage(random, &mut input, seeds);
    }
    input
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/seeds")
        .join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    // The order must not depend on the file system.
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

fn try_one(name: &str, target: fn(&[u8]), input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        panic!("{name} fails on \"{}\"", input.escape_ascii());
    }
}

fn fuzz(name: &str, target: fn(&[u8])) {
    let seeds = seeds(name);
    seeds.iter().for_each(|seed| try_one(name, target, seed));
    let (mut random, end) = (Random(0x9e37_79b9_7f4a_7c15), Instant::now() + TIME);
    let mut count = 0_u64;
    while Instant::now() < end {
        try_one(name, target, &next_input(&mut random, &seeds));
        count += 1;
    }
    println!("{name}: {count} inputs");
    assert!(count > 100, "{name} is too slow: {count} inputs");
}

macro_rules! fuzzed {
    ($($target:ident),+) => {
        $(#[test]
        fn $target() {
            fuzz(stringify!($target), targets::$target);
        })+

        #[test]
        fn every_target_of_the_fuzz_crate_is_here() {
            let manifest = include_str!("fuzz/Cargo.toml");
            let bins = manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/"));
            let mut named: Vec<_> = bins.map(|rest| rest.trim_end_matches(".rs\"")).collect();
            let mut here = vec![$(stringify!($target)),+];
            named.sort_unstable();
            here.sort_unstable();
            assert_eq!(named, here);
        }
    };
}

fuzzed!(
    startup,
    options,
    login,
    client_frames,
    statement,
    digest,
    replies,
    server_frames,
    stored_verifier,
    secrets,
    configuration
);
