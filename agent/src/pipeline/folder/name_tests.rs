#![allow(clippy::unwrap_used)]

use super::*;
use crate::pipeline::place::{Sink, Source};
use crate::pipeline::queue::WhenFull;
use std::os::unix::ffi::OsStrExt as _;

#[test]
fn files_whose_names_are_no_text_are_told_once() {
    let folder = tempfile::tempdir().unwrap();
    for name in [&b"a.json"[..], b"b\xff.json", b".c\xff", b"d\xff.tmp"] {
        std::fs::write(folder.path().join(OsStr::from_bytes(name)), "{}").unwrap();
    }
    let settings = PipelineSettings {
        name: "parts".to_owned(),
        source: Source::parse("folder:/spool").unwrap(),
        model: "m".to_owned(),
        sink: Sink::parse("stdout:").unwrap(),
        when_full: WhenFull::Block,
        format: None,
        queue: 1,
        timeout_ms: 1000,
        after: After::Move,
        parameters: BTreeMap::new(),
        credentials: None,
    };
    let feed = Feed::new(1, WhenFull::Block);
    let mut watch = Watch {
        folder: folder.path(),
        settings: &settings,
        feed: &feed,
        kept: Kept::load(None, folder.path()),
        in_work: BTreeSet::new(),
        seen: BTreeMap::new(),
        unnamed: BTreeSet::new(),
        finished: mpsc::unbounded_channel().0,
    };
    for _ in 0..2 {
        let names: Vec<String> = watch.files().unwrap().into_keys().collect();
        assert_eq!(names, ["a.json"]);
        assert_eq!(feed.counts().failed, 1);
    }
    let reasons = feed.reasons();
    assert_eq!(reasons.len(), 1);
    assert!(reasons[0].detail.contains(r"b\xFF.json"), "{reasons:?}");
}
