//! The dependency rules of `ARCHITECTURE.md`, read from `cargo metadata` and the sources. A failing
//! test prints each breach as `file:line: what`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "rules/source.rs"]
mod source;

use serde_json::Value;
use source::{Code, RustFile};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each crate of ours, its folder, and which of ours it may depend on.
const CRATES: [(&str, &str, &[&str]); 5] = [
    ("dunlin-protocol", "protocol", &[]),
    ("dunlin-agent", "agent", &["dunlin-protocol"]),
    ("dunlin-server", "fleet-server", &["dunlin-protocol"]),
    (
        "dunlin",
        "cli",
        &["dunlin-protocol", "dunlin-agent", "dunlin-server"],
    ),
    (
        "dunlin-tests",
        "tests",
        &["dunlin-protocol", "dunlin-agent", "dunlin-server", "dunlin"],
    ),
];

/// What `protocol` must not have anywhere below it, by the start of the name: runtimes, transports,
/// storage, clocks' and randomness' sources.
const NOT_IN_PROTOCOL: [&str; 14] = [
    "tokio",
    "async-std",
    "smol",
    "mio",
    "rumqttc",
    "mqtt",
    "tract",
    "sled",
    "sqlx",
    "hyper",
    "axum",
    "rustls",
    "rand",
    "getrandom",
];

/// A foreign library (all crates whose name starts so) and the only places that may name it, without
/// `.rs`: a file may grow into a folder of its name. `tests` is free: it plays the other side.
const HOMES: [(&str, &[&str]); 17] = [
    ("tract", &["agent/src/inference"]),
    ("pulp", &["agent/src/inference/fast"]),
    ("sled", &["agent/src/telemetry/buffer"]),
    ("png", &["agent/src/inference/steps/decode"]),
    ("jpeg_decoder", &["agent/src/inference/steps/decode"]),
    ("rumqttc", &["agent/src/mqtt", "fleet-server/src/mqtt"]),
    ("mqtt5", &["fleet-server/src/broker"]),
    ("sqlx", &["fleet-server/src/store"]),
    (
        "rcgen",
        &[
            "fleet-server/src/pki",
            "agent/src/identity",
            "cli/src/consumer",
        ],
    ),
    (
        "x509_parser",
        &["fleet-server/src/pki", "agent/src/identity"],
    ),
    ("hpke", &["protocol/src/capture/seal"]),
    ("ring", &["protocol/src/trust/signature"]),
    ("parquet", &["fleet-server/src/export/table"]),
    ("crc32fast", &["agent/src/telemetry/journal"]),
    (
        "prost",
        &[
            "fleet-server/src/exposition/protobuf",
            "fleet-server/src/exposition/tests",
            "fleet-server/src/store/window",
        ],
    ),
    ("openssl", &[]),
    (
        "zstd",
        &[
            "protocol/src/patch/zstandard",
            "protocol/src/patch/tests",
            "agent/src/bundle",
            "agent/src/telemetry",
            "fleet-server/src/blobs",
            "cli/src/pack",
        ],
    ),
];

/// Files and folders whose decisions are pure, without `.rs`.
const PURE: [&str; 19] = [
    "protocol/src",
    "agent/src/detect",
    "agent/src/device",
    "agent/src/inference/capture/reservoir",
    "agent/src/inference/capture/unusual",
    "agent/src/pipeline/place",
    "agent/src/pipeline/queue",
    "agent/src/pipeline/record",
    "agent/src/renew/plan",
    "fleet-server/src/rollout/pairs",
    "fleet-server/src/rollout/plan",
    "fleet-server/src/drift/early",
    "fleet-server/src/drift/plausible",
    "fleet-server/src/drift/plot",
    "fleet-server/src/drift/query/pool",
    "fleet-server/src/drift/query/publish",
    "fleet-server/src/drift/rollup",
    "fleet-server/src/drift/statistics",
    "fleet-server/src/drift/gate",
];

/// What pure code must not name: clocks, files, sockets, threads, randomness, unordered iteration.
const IMPURE: [&str; 16] = [
    "Instant",
    "SystemTime",
    "Timestamp::now",
    "Zoned::now",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
    "tokio",
    "HashMap",
    "HashSet",
    "getrandom",
    "rand",
    "OsRng",
];

/// What may be named all the same: patches and archives are streams, and these are the traits of
/// streams and streams in memory, not files.
const STREAMS: ([&str; 2], [&str; 8]) = (
    ["protocol/src/patch", "protocol/src/archive"],
    [
        "std::io::Read",
        "std::io::Write",
        "std::io::Seek",
        "std::io::SeekFrom",
        "std::io::ErrorKind",
        "std::io::Error",
        "std::io::Cursor",
        "std::io::sink",
    ],
);

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 8] = [
    "utils", "util", "common", "base", "helpers", "helper", "manager", "misc",
];

const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(
        output.status.success(),
        "cargo {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn packages() -> Vec<Value> {
    let text = cargo(&[
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
        "--offline",
    ]);
    let metadata: Value = serde_json::from_str(&text).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// `file:line` of the first line of the crate's manifest that starts with `key`.
fn manifest_line(folder: &str, key: &str) -> String {
    let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let line = text
        .lines()
        .position(|line| line.starts_with(key))
        .map_or(1, |index| index + 1);
    format!("{folder}/Cargo.toml:{line}")
}

/// Every Rust file of our crates, with paths relative to the root.
fn sources() -> Vec<RustFile> {
    let root = root();
    CRATES
        .iter()
        .flat_map(|(_, folder, _)| source::rust_files(&root, folder))
        .collect()
}

/// Whether `path` is the file or lies in the folder that `place` names without `.rs`.
fn lies_in(path: &str, place: &str) -> bool {
    path.strip_prefix(place)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

fn assert_none(rule: &str, breaches: &[String]) {
    let list = breaches.join("\n");
    assert!(
        breaches.is_empty(),
        "{rule}\n{} breach(es):\n{list}\n",
        breaches.len()
    );
}

#[test]
fn crates_depend_on_ours_only_as_drawn() {
    let mut breaches = Vec::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let Some((_, folder, allowed)) = CRATES.iter().find(|(known, ..)| *known == name) else {
            breaches.push(format!(
                "Cargo.toml:1: crate {name} has no place in the drawing"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let wanted = dependency["name"].as_str().unwrap();
            let ours = CRATES.iter().any(|(known, ..)| *known == wanted);
            if ours && !allowed.contains(&wanted) {
                let place = manifest_line(folder, wanted);
                breaches.push(format!("{place}: {name} must not depend on {wanted}"));
            }
        }
    }
    assert_none(
        "rule 1: agent and server know protocol alone, and nobody knows cli",
        &breaches,
    );
}

#[test]
fn protocol_stays_free_of_runtimes() {
    let select = ["tree", "-p", "dunlin-protocol", "-e", "normal,build"];
    // `ring` brings its own source of randomness along. It lives in one file (rule 2), which may
    // not name that (rule 3): only signatures are verified there.
    let verified_only = ["--prune", "ring", "--prefix", "none", "--offline"];
    let tree = cargo(&[&select[..], &verified_only].concat());
    let mut breaches: Vec<_> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| {
            NOT_IN_PROTOCOL
                .iter()
                .any(|banned| banned_name(name, banned))
        })
        .map(|name| {
            let place = manifest_line("protocol", name);
            format!(
                "{place}: {name} (`cargo tree -p dunlin-protocol -i {name}` says by way of what)"
            )
        })
        .collect();
    breaches.dedup();
    assert_none(
        "rule 1: protocol has no runtime, transport, storage or randomness",
        &breaches,
    );
}

/// `rand` bans `rand` and `rand-…` but not `rand_core`, which holds traits only.
fn banned_name(name: &str, banned: &str) -> bool {
    name.strip_prefix(banned)
        .is_some_and(|rest| !rest.starts_with('_'))
}

#[test]
fn a_foreign_library_is_named_in_one_place() {
    let mut breaches = Vec::new();
    for file in sources()
        .iter()
        // Tests play the other side.
        .filter(|file| !file.path.starts_with("tests/") && !file.path.contains("/tests/"))
    {
        for (line, path) in file.code().paths() {
            let first = path.split("::").next().unwrap();
            for (library, homes) in HOMES {
                let named = first == library || first.starts_with(&format!("{library}_"));
                if named && !homes.iter().any(|home| lies_in(&file.path, home)) {
                    let places = homes.join(", ");
                    breaches.push(format!(
                        "{}:{line}: `{path}` belongs in {places}",
                        file.path
                    ));
                }
            }
        }
    }
    assert_none(
        "rule 2: a foreign library is named in one file or folder",
        &breaches,
    );
}

#[test]
fn decisions_are_pure() {
    let files = sources();
    let mut breaches = Vec::new();
    for place in PURE {
        let mut found = false;
        // A test may read the files it compares with.
        let pure =
            |file: &&RustFile| lies_in(&file.path, place) && !file.path.ends_with("tests.rs");
        for file in files.iter().filter(pure) {
            found = true;
            for (line, path) in file.code().without_test_modules().paths() {
                let streams = STREAMS.0.iter().any(|home| lies_in(&file.path, home));
                if streams && STREAMS.1.contains(&&*path) {
                    continue;
                }
                for name in IMPURE.iter().filter(|name| source::contains(&path, name)) {
                    breaches.push(format!("{}:{line}: `{path}` names {name}", file.path));
                }
            }
        }
        if !found {
            breaches.push(format!(
                "{place}.rs:1: is gone; name its successor in this test"
            ));
        }
    }
    assert_none(
        "rule 3: decisions take `now` as an argument and return their effects",
        &breaches,
    );
}

#[test]
fn names_say_what_is_inside() {
    let root = root();
    let mut breaches = Vec::new();
    for (_, folder, _) in CRATES {
        for path in source::everything_below(&root, folder) {
            let stem = Path::new(&path)
                .file_stem()
                .unwrap()
                .to_string_lossy()
                .to_lowercase();
            if EMPTY_NAMES.contains(&stem.as_str()) {
                breaches.push(format!("{path}:1: say what it is about, not `{stem}`"));
            }
        }
    }
    for file in sources() {
        for (line, name) in file.code().modules() {
            if EMPTY_NAMES.contains(&name.as_str()) {
                breaches.push(format!("{}:{line}: `mod {name}`", file.path));
            }
        }
    }
    assert_none(
        "rule 5: no utils, common, base, helpers, manager",
        &breaches,
    );
}

#[test]
fn files_stay_readable() {
    let breaches: Vec<_> = sources()
        .iter()
        .map(|file| (&file.path, file.text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("{path}:{LINES_MAX}: has {lines} lines"))
        .collect();
    assert_none("no file has more than 700 lines", &breaches);
}

#[test]
fn nothing_is_unsafe() {
    let mut breaches = Vec::new();
    for file in sources() {
        for (line, path) in file.code().paths() {
            if path == "unsafe" {
                breaches.push(format!("{}:{line}: `unsafe`", file.path));
            }
        }
    }
    for (_, folder, _) in CRATES {
        let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        if !text.contains("[lints]\nworkspace = true") {
            breaches.push(format!(
                "{folder}/Cargo.toml:1: takes the workspace's lints"
            ));
        }
    }
    assert_none(
        "no unsafe code, and the lints that forbid it hold everywhere",
        &breaches,
    );
}

mod the_reader_of_sources {
    use super::{Code, banned_name, lies_in, source};

    fn paths(text: &str) -> Vec<String> {
        Code::of(text)
            .paths()
            .into_iter()
            .map(|(_, path)| path)
            .collect()
    }

    #[test]
    fn sees_paths_in_groups() {
        let found = paths("use std::{fs, collections::{BTreeMap, HashMap as Map}};");
        for path in [
            "std::fs",
            "std::collections::BTreeMap",
            "std::collections::HashMap",
        ] {
            assert!(found.iter().any(|one| one == path), "{path} in {found:?}");
        }
    }

    #[test]
    fn does_not_read_comments_strings_and_lifetimes() {
        let text = "// sled::open\n/* a /* b */ tokio */ let x = \"std::fs \\\" y\"; r#\"sqlx::\"\"#; \
                    '\"'; fn f<'a>(b: &'a str) {} '\\''; rand";
        let found = paths(text);
        for hidden in ["sled::open", "tokio", "std::fs", "sqlx", "y"] {
            assert!(
                !found.iter().any(|one| one == hidden),
                "{hidden} in {found:?}"
            );
        }
        assert_eq!(found.last().map(String::as_str), Some("rand"));
    }

    #[test]
    fn counts_lines_and_leaves_test_modules_out() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    use std::fs;\n    fn b() {}\n}\nuse tokio::time;\n";
        let code = Code::of(text).without_test_modules();
        let found = code.paths();
        assert!(found.contains(&(7, "tokio::time".to_owned())), "{found:?}");
        assert!(
            !found.iter().any(|(_, path)| path == "std::fs"),
            "{found:?}"
        );
    }

    #[test]
    fn compares_whole_names() {
        assert!(source::contains("jiff::Timestamp::now", "Timestamp::now"));
        assert!(!source::contains(
            "jiff::Timestamp::nowhere",
            "Timestamp::now"
        ));
        assert!(!source::contains("InstantLike", "Instant"));
        assert!(lies_in("agent/src/mqtt.rs", "agent/src/mqtt"));
        assert!(lies_in("agent/src/mqtt/wire.rs", "agent/src/mqtt"));
        assert!(!lies_in("agent/src/mqtt_topics.rs", "agent/src/mqtt"));
        assert!(banned_name("rand", "rand") && !banned_name("rand_core", "rand"));
    }
}
