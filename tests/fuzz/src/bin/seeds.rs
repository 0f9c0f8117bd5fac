//! Writes the inputs that fuzzing begins with: `seeds FOLDER`, beside what is there already.
//!
//! Valid examples, so that the fuzzer starts behind the first check: the golden files, metadata signed
//! with the entries' key, patches of every coding, topics.

use dunlin_fuzz::entries;
use dunlin_protocol::archive::Writer;
use dunlin_protocol::patch::{Options, make};
use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).expect("usage: seeds FOLDER");
    let folder = Path::new(&folder);
    for (name, inputs) in [
        ("archive", archives()),
        ("patch", patches()),
        ("signed", signed()),
        ("topic", topics()),
        ("request", requests()),
        ("grpc", grpc_requests()),
        ("metadata", golden("trust")?),
        ("canonical", golden("trust")?),
        ("messages", golden("messages")?),
        ("manifest", golden("messages")?),
    ] {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let (_, entry) = entries::ALL
            .iter()
            .find(|(n, _)| *n == name)
            .expect("known");
        for (at, input) in inputs.iter().enumerate() {
            entry(input);
            std::fs::write(folder.join(format!("seed-{at:02}")), input)?;
        }
        println!("{name}: {} seeds", inputs.len());
    }
    Ok(())
}

/// The committed JSON files below a golden folder that are not large.
fn golden(kind: &str) -> std::io::Result<Vec<Vec<u8>>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protocol/tests/golden");
    let mut folders = vec![golden.join(kind)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "json") {
                found.push(std::fs::read(path)?);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Inference requests for the model of the entries, in JSON, in binary and in both.
fn requests() -> Vec<Vec<u8>> {
    let head = r#""id":"7","parameters":{"binary_data_output":true,"k":1}"#;
    let tensor = |name: &str, dtype: &str, shape: &str, values: &str| {
        format!(r#"{{"name":"{name}","datatype":"{dtype}","shape":{shape},{values}}}"#)
    };
    let size = |n: usize| format!(r#""parameters":{{"binary_data_size":{n}}}"#);
    let text = |f: &str| {
        [
            tensor("f", "FP32", "[1,2]", &format!(r#""data":{f}"#)),
            tensor("i", "INT64", "[2]", r#""data":[-1,9007199254740993]"#),
            tensor("b", "BOOL", "[]", r#""data":[true]"#),
        ]
        .join(",")
    };
    let binary = [
        tensor("f", "FP32", "[1,2]", &size(8)),
        tensor("i", "INT64", "[2]", &size(16)),
        tensor("b", "BOOL", "[]", &size(1)),
    ]
    .join(",");
    let outputs = r#""outputs":[{"name":"h","parameters":{"binary_data":false}},{"name":"y"}]"#;
    let plain = format!(r#"{{"inputs":[{}]}}"#, text("[0.5,1e-3]"));
    let nested = format!(r#"{{{head},"inputs":[{}],{outputs}}}"#, text("[[0.5,2]]"));
    let packed = format!(r#"{{{head},"inputs":[{binary}],{outputs}}}"#);
    let tail = [&[0_u8; 8][..], &[255; 16], &[1]].concat();
    vec![
        [b"\n", plain.as_bytes()].concat(),
        [b"\n", nested.as_bytes()].concat(),
        [format!("{}\n", packed.len()).as_bytes(), packed.as_bytes(), &tail].concat(),
        [b"0\n", &tail[..]].concat(),
    ]
}

/// The same over gRPC: raw, typed, with parameters and wanted outputs.
fn grpc_requests() -> Vec<Vec<u8>> {
    /// A field of bytes, shorter than 128.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat()
    }
    let input = |name: &str, dtype: &str, shape: &[u8], contents: &[u8]| {
        let head = [field(1, name.as_bytes()), field(2, dtype.as_bytes())].concat();
        let contents = if contents.is_empty() {
            Vec::new()
        } else {
            field(5, contents)
        };
        field(5, &[head, field(3, shape), contents].concat())
    };
    let named = [field(1, b"fuzzed"), field(3, b"7")].concat();
    let parameter = field(4, &[field(1, b"k"), field(2, &[0x10, 7])].concat());
    let wanted = field(6, &field(1, b"y"));
    let raw = [
        input("f", "FP32", &[1, 2], &[]),
        input("i", "INT64", &[2], &[]),
        input("b", "BOOL", &[], &[]),
        field(7, &[0; 8]),
        field(7, &[1; 16]),
        field(7, &[1]),
    ]
    .concat();
    let typed = [
        input("f", "FP32", &[1, 2], &field(6, &[0; 8])),
        input("i", "INT64", &[2], &field(3, &[5, 0x96, 1])),
        input("b", "BOOL", &[], &[0x08, 1]),
    ]
    .concat();
    vec![
        [&named[..], &raw].concat(),
        [&named[..], &typed].concat(),
        [&named[..], &parameter, &raw, &wanted].concat(),
        [&named[..], &parameter, &typed, &wanted].concat(),
    ]
}

fn topics() -> Vec<Vec<u8>> {
    let mut topics: Vec<Vec<u8>> = ["desired", "command", "ack", "presence", "event", "sketch"]
        .map(|channel| format!("dunlin/v1/demo/edge-1/{channel}").into_bytes())
        .into();
    for odd in [
        "dunlin/v1/demo/+/desired",
        "dunlin/v1/demo/#",
        "$share/g/dunlin/v1/demo/+/event",
    ] {
        topics.push(odd.into());
    }
    topics
}

/// The old file of the entry for patches.
fn base() -> Vec<u8> {
    (0..4096_u32).map(|i| ((i * 31) >> 3) as u8).collect()
}

fn patches() -> Vec<Vec<u8>> {
    let base = base();
    let mut moved = base.clone();
    moved.rotate_left(100);
    let mut touched = base.clone();
    touched.iter_mut().step_by(97).for_each(|b| *b ^= 1);
    let longer = [&base[..], b"and more", &base[..500]].concat();
    let targets = [
        Vec::new(),
        base.clone(),
        moved,
        touched,
        longer,
        vec![0; 10_000],
    ];
    let make = |target: &Vec<u8>| {
        make(&base, target, &Options::default())
            .expect("a patch")
            .patch
    };
    targets.iter().map(make).collect()
}

/// Archives of a few small files.
fn archives() -> Vec<Vec<u8>> {
    let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let names = [
        "metadata/1.root.json".to_owned(),
        "metadata/timestamp.json".to_owned(),
        format!("targets/digits/1/{digest}.manifest.json"),
        format!("blobs/{digest}"),
        format!("patches/{digest}/{digest}"),
    ];
    let archive = |count: usize| {
        let mut writer = Writer::new(Vec::new());
        for name in names.iter().take(count) {
            let file = name.parse().expect("a repository's name");
            // The blob is the empty one, whose hash its name is.
            let mut content: &[u8] = if name.starts_with("blobs/") {
                b""
            } else {
                b"{}"
            };
            let length = content.len() as u64;
            writer.add(&file, length, &mut content).expect("fits");
        }
        writer.finish().expect("memory")
    };
    (0..=names.len()).map(archive).collect()
}

/// Chains that are accepted to the end, with and without delegations.
fn signed() -> Vec<Vec<u8>> {
    let common = r#""spec_version":"1.0.34","version":1,"expires":"2030-01-01T00:00:00Z""#;
    let timestamp =
        format!(r#"{{"_type":"timestamp",{common},"meta":{{"snapshot.json":{{"version":1}}}}}}"#);
    let snapshot = format!(
        r#"{{"_type":"snapshot",{common},"meta":{{"targets.json":{{"version":1}},"team.json":{{"version":1}},"bin-0.json":{{"version":1}}}}}}"#
    );
    let hash = "a".repeat(64);
    let target = format!(r#""digits/1":{{"length":3,"hashes":{{"sha256":"{hash}"}}}}"#);
    let delegated = r#""roles":[{"name":"team","keyids":[],"threshold":1,"terminating":true,"paths":["digits/*"]}]"#;
    let hashed = r#""roles":[{"name":"team","keyids":[],"threshold":1,"terminating":false,"path_hash_prefixes":["0","1f"]}]"#;
    let succinct =
        r#""succinct_roles":{"keyids":[],"threshold":1,"bit_length":2,"name_prefix":"bin"}"#;
    let mut chains = Vec::new();
    for (targets, delegations) in [
        (&target[..], ""),
        ("", delegated),
        ("", hashed),
        ("", succinct),
    ] {
        let delegations = match delegations {
            "" => String::new(),
            some => format!(r#","delegations":{{"keys":{{}},{some}}}"#),
        };
        let file =
            format!(r#"{{"_type":"targets",{common},"targets":{{{targets}}}{delegations}}}"#);
        chains.push(
            [&timestamp, &snapshot, &file, "digits/1"]
                .join("\0")
                .into_bytes(),
        );
    }
    chains
}
