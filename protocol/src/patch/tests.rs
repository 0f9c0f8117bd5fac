#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use proptest::prelude::*;
use std::io::Cursor;

fn rebuild(base: &[u8], patch: &[u8], max: u64) -> Result<Vec<u8>, PatchError> {
    let mut out = Vec::new();
    let limits = Limits {
        target_max_bytes: max,
    };
    apply(&mut Cursor::new(base), &mut &patch[..], &mut out, &limits)?;
    Ok(out)
}

/// The workspace, where the test runs: what is kept between builds may have been built elsewhere.
fn workspace() -> std::path::PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    std::path::PathBuf::from(package).join("..")
}

fn digits(version: u8) -> Vec<u8> {
    let path = format!("tests/models/digits/v{version}/model.onnx");
    std::fs::read(workspace().join(path)).unwrap()
}

/// Bytes that do not repeat and do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    wire::put(out, number << 3 | 2);
    wire::put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A model with these tensors (name, data type, dimensions, raw data) and nothing else.
fn model(tensors: &[(&str, u64, &[u64], &[u8])]) -> Vec<u8> {
    let mut graph = Vec::new();
    for (name, dtype, dims, raw) in tensors {
        let mut tensor = Vec::new();
        for dim in *dims {
            wire::put(&mut tensor, 1 << 3);
            wire::put(&mut tensor, *dim);
        }
        wire::put(&mut tensor, 2 << 3);
        wire::put(&mut tensor, *dtype);
        field(&mut tensor, 8, name.as_bytes());
        field(&mut tensor, 9, raw);
        field(&mut graph, 5, &tensor);
    }
    let mut model = Vec::new();
    field(&mut model, 7, &graph);
    model
}

/// Numbers around `scale`, and the same a little changed, as little-endian bytes of `width`.
fn tuned(width: usize, count: usize, step: i64) -> (Vec<u8>, Vec<u8>) {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for (index, pair) in noise(7, count * 8).chunks_exact(8).enumerate() {
        let random = u64::from_le_bytes(pair.try_into().unwrap());
        let change = (random % 64) as i64 * step / 64 - step / 2;
        match width {
            4 => {
                let x = f32::from_bits((random as u32 & 0x80ff_ffff) | 0x3c00_0000);
                let y = f32::from_bits(x.to_bits().wrapping_add(change as u32));
                old.extend(x.to_le_bytes());
                new.extend(y.to_le_bytes());
            }
            2 => {
                let x = (random as u16 & 0x83ff) | 0x2c00;
                old.extend(x.to_le_bytes());
                new.extend(x.wrapping_add(change as u16).to_le_bytes());
            }
            _ => {
                let x = (random >> 5) as u8;
                let change = i64::from(index % 16 == 0) * change;
                old.push(x);
                new.push(x.wrapping_add(change as u8));
            }
        }
    }
    (old, new)
}

#[test]
fn real_models_come_back_and_a_patch_is_the_smallest() {
    // zstd 1.5.4 -19 --patch-from gives 13221, 12389, 12386 and 2404 bytes.
    let zstd = [
        ((1, 2), 13_221),
        ((2, 3), 12_389),
        ((3, 2), 12_386),
        ((3, 1), 2_404),
    ];
    for ((from, to), zstd_bytes) in zstd {
        let (base, target) = (digits(from), digits(to));
        let made = make(&base, &target, &Options::default()).unwrap();
        assert_eq!(rebuild(&base, &made.patch, 1 << 20).unwrap(), target);
        let bytes = made.patch.len();
        assert!(
            bytes < zstd_bytes,
            "v{from} to v{to}: {bytes} of {zstd_bytes}"
        );
    }
}

#[test]
fn the_same_file_is_one_copy() {
    let model = digits(2);
    let made = make(&model, &model, &Options::default()).unwrap();
    assert!(made.patch.len() <= 16, "{} bytes", made.patch.len());
    assert_eq!(made.shares.len(), 1);
    assert_eq!(
        (made.shares[0].how, made.shares[0].target_bytes),
        ("copied", 14_819)
    );
}

#[test]
fn tensors_of_every_width_are_differences() {
    // Data types FLOAT, FLOAT16, BFLOAT16, INT8.
    for (dtype, width) in [(1, 4), (10, 2), (16, 2), (3, 1)] {
        let (old, new) = tuned(width, 40_000, 60);
        let dims = [200, 200];
        let base = model(&[("w", dtype, &dims, &old)]);
        let target = model(&[("w", dtype, &dims, &new)]);
        let made = make(&base, &target, &Options::default()).unwrap();
        assert_eq!(rebuild(&base, &made.patch, 1 << 20).unwrap(), target);
        let difference = made.shares.iter().find(|share| share.how == "difference");
        assert_eq!(
            difference.map(|s| s.target_bytes),
            Some(new.len() as u64),
            "{dtype}"
        );
        // A change has 6 bits; of int8 numbers one in sixteen has one.
        let most = if width == 1 { 4_000 } else { 33_000 };
        assert!(
            made.patch.len() < most,
            "{dtype}: {} bytes",
            made.patch.len()
        );
    }
}

#[test]
fn tensors_that_moved_or_were_renamed_find_each_other() {
    let (old, new) = tuned(4, 5_000, 40);
    let (other, _) = tuned(2, 5_000, 40);
    let base = model(&[
        ("first", 1, &[50, 100], &old),
        ("other", 10, &[5_000], &other),
    ]);
    let target = model(&[
        ("other", 10, &[5_000], &other),
        ("renamed", 1, &[50, 100], &new),
    ]);
    let made = make(&base, &target, &Options::default()).unwrap();
    assert_eq!(rebuild(&base, &made.patch, 1 << 20).unwrap(), target);
    assert!(made.patch.len() < 5_000, "{} bytes", made.patch.len());
}

#[test]
fn a_tensor_that_grew_is_a_difference_as_far_as_the_old_one_goes() {
    let (old, mut new) = tuned(4, 4_000, 40);
    new.extend(noise(3, 400));
    let base = model(&[("w", 1, &[40, 100], &old)]);
    let target = model(&[("w", 1, &[41, 100], &new)]);
    let made = make(&base, &target, &Options::default()).unwrap();
    assert_eq!(rebuild(&base, &made.patch, 1 << 20).unwrap(), target);
    let difference = made.shares.iter().find(|share| share.how == "difference");
    assert_eq!(difference.map(|s| s.target_bytes), Some(16_000));
}

#[test]
fn long_tensors_span_blocks() {
    let (old, new) = tuned(4, 1_300_000, 200);
    let base = model(&[("w", 1, &[1_300, 1_000], &old)]);
    let target = model(&[("w", 1, &[1_300, 1_000], &new)]);
    let made = make(&base, &target, &Options { level: 1 }).unwrap();
    assert_eq!(rebuild(&base, &made.patch, 8 << 20).unwrap(), target);
}

#[test]
fn files_that_are_no_models_are_patched_too() {
    let text: Vec<u8> = (0..9_000)
        .flat_map(|n| format!("line {n}\n").into_bytes())
        .collect();
    let mut edited = text.clone();
    edited.splice(30_000..30_010, *b"something else");
    edited.splice(100..100, *b"more");
    for (base, target) in [
        (text.clone(), edited),
        (Vec::new(), text.clone()),
        (text.clone(), Vec::new()),
        (noise(1, 5 << 20), noise(1, 5 << 20).split_off(12_345)),
        (noise(1, 100_000), noise(2, 3 << 20)),
        (vec![0; 10], vec![0; 5 << 20]),
    ] {
        let made = make(&base, &target, &Options { level: 3 }).unwrap();
        assert_eq!(rebuild(&base, &made.patch, 8 << 20).unwrap(), target);
        assert!(
            made.patch.len() <= target.len() + 64,
            "{} bytes",
            made.patch.len()
        );
    }
    let moved = make(
        &noise(1, 5 << 20),
        &noise(1, 5 << 20)[12_345..],
        &Options::default(),
    );
    assert!(moved.unwrap().patch.len() < 64);
}

#[test]
fn lengths_are_checked_before_anything_is_written() {
    let (base, target) = (digits(2), digits(3));
    let patch = make(&base, &target, &Options::default()).unwrap().patch;
    let mut out = Vec::new();
    let limits = Limits {
        target_max_bytes: target.len() as u64 - 1,
    };
    let refused = apply(&mut Cursor::new(&base), &mut &patch[..], &mut out, &limits);
    assert!(matches!(
        refused,
        Err(PatchError::TooLarge {
            got: 14_819,
            max: 14_818,
            ..
        })
    ));
    assert!(out.is_empty());
}

/// A patch for a new file of `length` bytes with this body.
fn by_hand(mode: u8, length: u64, body: &[u8]) -> Vec<u8> {
    let mut patch = MAGIC.to_vec();
    patch.push(mode);
    wire::put(&mut patch, length);
    patch.extend_from_slice(body);
    patch
}

#[test]
fn each_way_to_be_wrong_has_its_error() {
    let base = [7_u8; 100];
    let error = |patch: Vec<u8>| rebuild(&base, &patch, 1 << 30).unwrap_err();
    assert!(matches!(
        error(b"DLP2.....".to_vec()),
        PatchError::Magic { .. }
    ));
    assert!(matches!(
        error(b"DL".to_vec()),
        PatchError::Truncated { at: 0, .. }
    ));
    assert!(matches!(
        error(by_hand(9, 1, &[])),
        PatchError::Unknown {
            what: "mode",
            got: 9,
            ..
        }
    ));
    // Copies: 100 bytes from 1, from -1, and more than the new file has.
    assert!(matches!(
        error(by_hand(2, 100, &[200, 1, 2])),
        PatchError::BaseRange {
            offset: 1,
            length: 100,
            base_bytes: 100,
            ..
        }
    ));
    assert!(matches!(
        error(by_hand(2, 100, &[200, 1, 1])),
        PatchError::BaseRange { offset: -1, .. }
    ));
    assert!(matches!(
        error(by_hand(2, 99, &[200, 1, 0])),
        PatchError::TooLarge {
            what: "a copy",
            max: 99,
            got: 100,
            ..
        }
    ));
    assert!(matches!(
        error(by_hand(2, 0, &[1])),
        PatchError::Trailing { .. }
    ));
    assert!(matches!(
        error(by_hand(2, 1, &[0])),
        PatchError::Unknown {
            what: "empty record",
            ..
        }
    ));
    // A block's control longer than may be: nothing is read for it.
    let mut long = Vec::new();
    wire::put(&mut long, (CONTROL_MAX_BYTES as u64 + 1) << 1 | 1);
    assert!(matches!(
        error(by_hand(2, 1, &long)),
        PatchError::TooLarge { .. }
    ));
    // Control of three stored bytes: no prefix, a literal of one byte; the literal's method is 9.
    assert!(matches!(
        error(by_hand(2, 1, &[5, 1, 0, 5, 9])),
        PatchError::Unknown {
            what: "method",
            got: 9,
            ..
        }
    ));
    // Coding 0x14: xor, sized, width 1; a paired segment of one byte whose length is 2.
    let sized = [9, 1, 0, 6, 0x14, 0, 1, 2, 0];
    assert!(
        matches!(error(by_hand(2, 1, &sized)), PatchError::Frame { .. }),
        "{sized:?}"
    );
    // A zstd frame that is none.
    assert!(matches!(
        error(by_hand(1, 1, b"not zstd")),
        PatchError::Frame {
            what: "the new file",
            ..
        }
    ));
    for bad in [by_hand(1, 1, b"x"), by_hand(2, 1, &[2])] {
        assert!(error(bad).is_patch_at_fault());
    }
}

#[test]
fn the_old_file_is_not_read_over_and_over() {
    // One literal byte a block, each with a prefix of the whole old file.
    let base = noise(1, 1 << 20);
    let (mut control, mut body) = (vec![1, 0], Vec::new());
    wire::put(&mut control, base.len() as u64);
    control.push(5);
    for _ in 0..100 {
        wire::put(&mut body, (control.len() as u64) << 1 | 1);
        body.push(wire::method::STORED);
        body.extend_from_slice(&control);
        body.extend_from_slice(&[wire::method::STORED, 1]);
    }
    let refused = rebuild(&base, &by_hand(2, 100, &body), 1 << 20);
    assert!(matches!(
        refused,
        Err(PatchError::TooLarge {
            what: "what is read of the old file",
            ..
        })
    ));
}

#[test]
fn a_bomb_ends_at_the_declared_length() {
    let packed = zstandard::pack(&vec![0; 8 << 20], &[], 19).unwrap();
    let refused = rebuild(&[], &by_hand(1, 1000, &packed), 1 << 20);
    assert!(matches!(refused, Err(PatchError::Frame { .. })));
}

struct Broken;

impl std::io::Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("cut"))
    }
}

#[test]
fn whose_fault_it_is_can_be_told() {
    let limits = Limits {
        target_max_bytes: 1,
    };
    let mut out = Vec::new();
    let cut = apply(&mut Cursor::new([]), &mut Broken, &mut out, &limits).unwrap_err();
    assert!(matches!(&cut, PatchError::Patch(_)) && !cut.is_patch_at_fault());
    let patch = make(b"", b"x", &Options::default()).unwrap().patch;
    let mut full: &mut [u8] = &mut [];
    let full = apply(&mut Cursor::new([]), &mut &patch[..], &mut full, &limits).unwrap_err();
    assert!(matches!(&full, PatchError::Output(_)) && !full.is_patch_at_fault());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_two_files_come_back(base in bytes(), target in bytes()) {
        let made = make(&base, &target, &Options { level: 1 }).unwrap();
        prop_assert_eq!(rebuild(&base, &made.patch, 1 << 20).unwrap(), target);
    }

    #[test]
    fn edits_come_back(seed in 0_u64..9, at in 0_usize..3000, cut in 0_usize..500, insert in bytes()) {
        let base = noise(seed, 4000);
        let mut target = base.clone();
        target.splice(at..at + cut, insert);
        let made = make(&base, &target, &Options { level: 1 }).unwrap();
        prop_assert_eq!(rebuild(&base, &made.patch, 1 << 20).unwrap(), target);
    }

    #[test]
    fn codings_turn_back(
        old in proptest::collection::vec(any::<u64>(), 1..300),
        change in proptest::collection::vec(prop_oneof![Just(0), -300_i64..300, any::<i64>()], 300),
        log in 0_u32..4, relation in 0_usize..3, is_sized: bool, row in 1_usize..40, first in 0_usize..40,
        has_exponent: bool, has_columns: bool, has_rows: bool,
    ) {
        let width = 1 << log;
        let relation = [
            wire::Relation::Xor, wire::Relation::Difference, wire::Relation::FloatDifference,
        ][relation];
        let exponent_shift = has_exponent.then_some((width * 8 - 9_usize.min(width * 8 - 1)) as u8);
        let sort = wire::Sort { exponent_shift, has_columns, has_rows };
        let coding = wire::Coding { width, relation, is_sized, sort };
        let grid = match sort.has_scales() {
            true => wire::Grid { row_length: row, first_column: first % row },
            false => wire::Grid::FLAT,
        };
        let new = old.iter().zip(&change).map(|(x, d)| x.wrapping_add_signed(*d));
        let cut = |x: u64| x.to_le_bytes()[..width].to_vec();
        let new: Vec<u8> = new.flat_map(cut).collect();
        let mut old: Vec<u8> = old.into_iter().flat_map(cut).collect();
        let (columns, rows) = planes::scales(coding, grid, &old, &new);
        let part = planes::Part { numbers: &old[..], grid, columns: &columns, rows: &rows };
        let mut planes: Vec<Vec<u8>> =
            planes::split(coding, &[part], &[&new]).into_iter().map(|p| p.bytes).collect();
        let lengths = is_sized.then(|| planes.remove(0));
        let part = planes::Part { numbers: &mut old[..], grid, columns: &columns, rows: &rows };
        planes::join(coding, lengths.as_deref(), &planes, &mut [part]);
        prop_assert_eq!(old, new);
    }

    #[test]
    fn groups_turn_back(plane in bytes(), log in 0_u32..3) {
        let bits = 1 << log;
        let cut = planes::cut_groups(&plane, bits);
        prop_assert_eq!(cut.len(), planes::cut_length(plane.len(), bits));
        prop_assert_eq!(planes::join_groups(&cut, bits, plane.len()), plane);
    }

    #[test]
    fn a_patch_that_was_changed_gives_an_error_or_a_bounded_file(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(), is_cut: bool, which in 0_usize..4,
    ) {
        let (base, target, mut patch) = PATCHES.with(|patches| patches[which].clone());
        for (at, value) in changes {
            let at = at.index(patch.len());
            patch[at] = value;
        }
        if is_cut {
            patch.truncate(cut.index(patch.len()));
        }
        let max = target.len() as u64;
        match rebuild(&base, &patch, max) {
            Ok(made) => prop_assert!(made.len() as u64 <= max),
            Err(error) => prop_assert!(error.is_patch_at_fault(), "{error}"),
        }
        fuzz_apply(&patch);
    }

    #[test]
    fn anything_behind_the_magic_gives_an_error_or_a_bounded_file(mode in 1_u8..3, rest in bytes()) {
        let mut patch = MAGIC.to_vec();
        patch.push(mode);
        patch.extend(rest);
        fuzz_apply(&patch);
        if let Err(error) = rebuild(&noise(1, 300), &patch, 1 << 16) {
            prop_assert!(error.is_patch_at_fault(), "{error}");
        }
    }

    #[test]
    fn a_model_that_is_none_is_bytes(rest in bytes(), base in bytes()) {
        let _ = onnx::tensors(&rest);
        let _ = pairing::pieces(&base, &rest, 32);
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..400),
        proptest::collection::vec(0_u8..3, 0..2000),
        (any::<u64>(), 0_usize..3000).prop_map(|(seed, length)| noise(seed, length)),
    ]
}

type Pair = (Vec<u8>, Vec<u8>, Vec<u8>);

thread_local! {
    /// Old file, new file and patch of every mode and most codings.
    static PATCHES: Vec<Pair> = {
        let with_patch = |base: Vec<u8>, target: Vec<u8>| {
            let patch = make(&base, &target, &Options { level: 3 }).unwrap().patch;
            (base, target, patch)
        };
        let pair = |width, dtype| {
            let (old, new) = tuned(width, 2_400, 60);
            let models = [old, new].map(|raw| model(&[("w", dtype, &[24, 100], &raw)]));
            let [base, target] = models;
            with_patch(base, target)
        };
        vec![pair(4, 1), pair(2, 10), pair(1, 3), with_patch(noise(1, 900), noise(1, 700))]
    };
}

/// The bytes of a fenced block `hex NAME`; what stands behind a semicolon is comment.
fn hex_of(page: &str, name: &str) -> Vec<u8> {
    let block = page.split_once(&format!("```hex {name}\n")).unwrap().1;
    let lines = block.split_once("```").unwrap().0.lines();
    lines
        .flat_map(|line| line.split(';').next().unwrap().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

#[test]
fn the_documents_example_is_a_patch() {
    let page = std::fs::read_to_string(workspace().join("docs/patch-format.md")).unwrap();
    let [old, new, patch] = ["old", "new", "patch"].map(|name| hex_of(&page, name));
    assert_eq!(rebuild(&old, &patch, 20).unwrap(), new);
    for (bytes, said) in [
        (BLOCK_MAX_BYTES, "at most 2 MiB"),
        (PREFIX_MAX_BYTES, "at most 4 MiB"),
        (CONTROL_MAX_BYTES, "at most 16 KiB"),
        (SCALES_MAX_BYTES, "at most 256 KiB"),
    ] {
        let unit = if said.ends_with("MiB") {
            1 << 20
        } else {
            1 << 10
        };
        let number = said.split(' ').nth(2).unwrap().parse::<usize>().unwrap();
        assert!(number * unit == bytes && page.contains(said), "{said}");
    }
}
