#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::id::Digest;
use proptest::prelude::*;
use std::io::Cursor;

fn metadata(name: &str) -> RepositoryFile {
    RepositoryFile::metadata(name).unwrap()
}

fn patch() -> RepositoryFile {
    let (from, to) = (Digest::of(b"a"), Digest::of(b"b"));
    RepositoryFile::Patch { from, to }
}

fn archive(files: &[(RepositoryFile, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (file, bytes) in files {
        writer
            .add(file, bytes.len() as u64, &mut &bytes[..])
            .unwrap();
    }
    writer.finish().unwrap()
}

fn small() -> Vec<u8> {
    archive(&[
        (metadata("1.root.json"), b"root"),
        (patch(), &[7; 1000]),
        (RepositoryFile::Blob(Digest::of(b"")), b""),
    ])
}

fn read(bytes: &[u8]) -> Result<Index, ArchiveError> {
    Index::read(&mut Cursor::new(bytes))
}

/// Changes one header and makes its checksum right again.
fn changed(change: impl Fn(&mut [u8])) -> String {
    let mut bytes = small();
    change(&mut bytes[..RECORD]);
    bytes[148..156].copy_from_slice(b"        ");
    let sum: u64 = bytes[..RECORD].iter().map(|b| u64::from(*b)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    read(&bytes).unwrap_err().to_string()
}

#[test]
fn files_are_found_where_they_were_put() {
    let bytes = small();
    let index = read(&bytes).unwrap();
    let content = |file: &RepositoryFile| {
        let range = index.get(file).unwrap();
        bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
    };
    assert_eq!(content(&metadata("1.root.json")), b"root");
    assert_eq!(content(&patch()), [7; 1000]);
    assert_eq!(index.get(&metadata("2.root.json")), None);
    assert_eq!(index.files().map(|(_, n)| n).sum::<u64>(), 1004);
    assert_eq!(bytes, small(), "the same files, the same bytes");
}

#[test]
fn a_header_is_what_tar_writes() {
    // `tar --format=ustar --owner=0 --group=0 --numeric-owner --mode=644 --mtime=@0` of a file
    // `metadata/x.json` that holds four bytes, but for the user's name, which is empty.
    let record = Header::write("metadata/x.json", 4).unwrap();
    assert_eq!(&record[..16], b"metadata/x.json\0");
    assert_eq!(&record[100..108], b"0000644\0");
    assert_eq!(&record[124..136], b"00000000004\0");
    assert_eq!(&record[136..148], b"00000000000\0");
    assert_eq!(record[156], b'0');
    let sum: u64 = record
        .iter()
        .enumerate()
        .filter(|(i, _)| !(148..156).contains(i))
        .map(|(_, b)| u64::from(*b))
        .sum::<u64>()
        + 8 * 32;
    assert_eq!(&record[148..156], format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn whatever_is_no_plain_file_is_refused() {
    for (kind, name) in [
        (b'1', "hard link"),
        (b'2', "symlink"),
        (b'3', "device"),
        (b'x', "extended header"),
        (b'g', "global header"),
        (b'L', "long name"),
        (b'S', "sparse file"),
    ] {
        let why = changed(|h| h[156] = kind);
        assert!(
            why.contains("expected a regular file or a folder"),
            "{name}: {why}"
        );
    }
    let why = changed(|h| h[157..160].copy_from_slice(b"/tm"));
    assert!(why.contains("link name"), "{why}");
    let why = changed(|h| h[124] = 0x80);
    assert!(why.contains("size: expected at most eleven"), "{why}");
    let why = changed(|h| h[257..265].copy_from_slice(b"ustar  \0"));
    assert!(why.contains("plain ustar"), "{why}");
    for name in [
        "../x.json",
        "/metadata/x",
        "metadata/../x.json",
        "x",
        "metadata/\u{e9}.json",
    ] {
        let why = changed(|h| {
            h[..NAME].fill(0);
            h[..name.len()].copy_from_slice(name.as_bytes());
        });
        assert!(
            why.contains("names no file of a repository"),
            "{name}: {why}"
        );
    }
    let mut bytes = small();
    bytes[0] ^= 1;
    let why = read(&bytes).unwrap_err().to_string();
    assert!(why.contains("checksum"), "{why}");
}

#[test]
fn twice_too_long_and_too_many_are_refused() {
    let one = archive(&[(metadata("a.json"), b"1")]);
    let twice = [&one[..2 * RECORD], &one].concat();
    assert!(matches!(read(&twice), Err(ArchiveError::Twice(_))));
    let why = changed(|h| h[124..136].copy_from_slice(b"77777777777\0"));
    assert!(why.contains("was it copied whole?"), "{why}");
    let mut many = Vec::new();
    for n in 0..=ENTRIES_MAX {
        many.extend(Header::write(&format!("metadata/{n}.json"), 0).unwrap());
    }
    many.extend([0; 2 * RECORD]);
    assert!(matches!(read(&many), Err(ArchiveError::TooMany)));
    let long = (TARGETS_MAX_BYTES + 1) as u64;
    let mut long = Header::write("metadata/a.json", long).unwrap().to_vec();
    long.resize(TARGETS_MAX_BYTES + 3 * RECORD, 0);
    assert!(matches!(read(&long), Err(ArchiveError::TooLarge { .. })));
}

#[test]
fn cut_anywhere_it_is_refused_or_whole() {
    let whole = small();
    for length in 0..whole.len() {
        match read(&whole[..length]) {
            // Only the second of the two end marks may be missing.
            Ok(index) => {
                assert!(length >= whole.len() - RECORD, "{length}");
                assert_eq!(index, read(&whole).unwrap());
            }
            Err(ArchiveError::Truncated { .. }) => {}
            Err(other) => panic!("{length}: {other}"),
        }
    }
}

#[test]
fn a_writer_takes_exactly_what_was_announced() {
    let file = metadata("a.json");
    for (announced, given) in [(3, &b"ab"[..]), (1, b"ab"), (0, b"a")] {
        let mut writer = Writer::new(Vec::new());
        let result = writer.add(&file, announced, &mut &given[..]);
        assert!(
            matches!(result, Err(ArchiveError::Length { .. })),
            "{announced}"
        );
    }
    let blob = RepositoryFile::Blob(Digest::of(b"b"));
    let wrong = Writer::new(Vec::new()).add(&blob, 1, &mut &b"a"[..]);
    assert!(matches!(wrong, Err(ArchiveError::Hash { .. })));
    let mut writer = Writer::new(Vec::new());
    writer.add(&file, 1, &mut &b"a"[..]).unwrap();
    let again = writer.add(&file, 1, &mut &b"a"[..]);
    assert!(matches!(again, Err(ArchiveError::Twice(_))));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(at in 0_usize..3600, with in proptest::collection::vec(any::<u8>(), 1..40)) {
        let mut bytes = small();
        let at = at.min(bytes.len() - 1);
        let end = (at + with.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&with[..end - at]);
        if let Ok(index) = read(&bytes) {
            for (file, _) in index.files() {
                let range = index.get(file).unwrap();
                prop_assert!(range.end <= bytes.len() as u64);
            }
        }
    }
}
