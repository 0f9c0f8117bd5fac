//! A folder whose files are records: taken whole, in order of name, and moved when they are done.
//!
//! A file counts once size and time of change have not moved between two looks; names that begin
//! with a dot or end in `.part` or `.tmp` never do, so that a writer may also rename. Links are not
//! followed.

mod kept;
#[cfg(test)]
mod name_tests;

use super::feed::{AnswerTo, Feed, Item, Outcome, Settle};
use super::record::Format;
use super::run::{Environment, stopped};
use super::settings::{After, PAYLOAD_MAX_BYTES, PipelineSettings};
use super::source::{lines, too_long};
use bytes::Bytes;
use kept::Kept;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::sync::{mpsc, watch};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Most files of one look; the next look sees the rest.
const FILES_MAX: usize = 1024;
/// Most names that a finished file tries to have in `done/`.
const NAMES_MAX: u32 = 1000;

/// What tells a file from the one that had its name before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    changed_s: i64,
    changed_ns: i64,
}

/// A file whose records are in the queue.
struct Work {
    name: String,
    stamp: Stamp,
    /// Records not settled yet, and one for the reader.
    open: AtomicUsize,
    failed: AtomicBool,
    finished: mpsc::UnboundedSender<Finished>,
}

struct Finished {
    name: String,
    stamp: Stamp,
    failed: bool,
}

impl Work {
    fn settled(&self, outcome: Outcome) {
        if outcome != Outcome::Answered {
            self.failed.store(true, Ordering::Relaxed);
        }
        self.closed();
    }

    fn closed(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = self.finished.send(Finished {
                name: self.name.clone(),
                stamp: self.stamp,
                failed: self.failed.load(Ordering::Relaxed),
            });
        }
    }
}

struct Watch<'a> {
    folder: &'a Path,
    settings: &'a PipelineSettings,
    feed: &'a Feed,
    kept: Kept,
    /// Being read, being answered, or finished and not to be moved.
    in_work: BTreeSet<String>,
    seen: BTreeMap<String, Stamp>,
    /// Names that are no text, which was told.
    unnamed: BTreeSet<OsString>,
    finished: mpsc::UnboundedSender<Finished>,
}

pub(super) async fn watch(
    folder: &Path,
    settings: &PipelineSettings,
    environment: &Environment,
    feed: &Feed,
    stop: &mut watch::Receiver<bool>,
) {
    let (finished, mut done) = mpsc::unbounded_channel();
    let journal = environment.file(&settings.name, "kept");
    let mut watch = Watch {
        folder,
        settings,
        feed,
        kept: Kept::load(journal.filter(|_| settings.after == After::Keep), folder),
        in_work: BTreeSet::new(),
        seen: BTreeMap::new(),
        unnamed: BTreeSet::new(),
        finished,
    };
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let watching = async {
        loop {
            tokio::select! {
                _ = tick.tick() => watch.look(&mut done).await,
                Some(one) = done.recv() => watch.finish(&one),
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = stopped(stop) => {}
    }
    while let Ok(one) = done.try_recv() {
        watch.finish(&one);
    }
}

impl Watch<'_> {
    async fn look(&mut self, done: &mut mpsc::UnboundedReceiver<Finished>) {
        let files = match tokio::task::block_in_place(|| self.files()) {
            Ok(files) => files,
            Err(e) => {
                let detail = format!("{}: {e}", self.folder.display());
                return self.feed.trouble("source", detail);
            }
        };
        let before = std::mem::replace(&mut self.seen, files.clone());
        for (name, stamp) in files {
            if before.get(&name) == Some(&stamp) {
                self.in_work.insert(name.clone());
                self.read(name, stamp).await;
                while let Ok(one) = done.try_recv() {
                    self.finish(&one);
                }
            }
        }
    }

    /// The first files by name that are not in work.
    fn files(&mut self) -> io::Result<BTreeMap<String, Stamp>> {
        let mut files = BTreeMap::new();
        let mut unnamed = BTreeSet::new();
        for entry in std::fs::read_dir(self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if unfinished(&name) {
                continue;
            }
            // A name that is no text could not be named in a result.
            let name = match name.into_string() {
                Ok(name) => name,
                Err(name) => {
                    let is_file = entry.file_type().is_ok_and(|found| found.is_file());
                    if is_file && unnamed.len() < FILES_MAX {
                        unnamed.insert(name);
                    }
                    continue;
                }
            };
            if self.in_work.contains(&name) {
                continue;
            }
            // Gone since: its writer's business.
            let Ok(found) = entry.metadata() else {
                continue;
            };
            let stamp = stamp(&found);
            if found.is_file() && !self.kept.has(&name, stamp) {
                files.insert(name, stamp);
            }
            if files.len() > FILES_MAX {
                files.pop_last();
            }
        }
        for name in unnamed.difference(&self.unnamed) {
            let path = self.folder.join(name);
            let detail = format!("{path:?}: a name that is not UTF-8, the file is left alone");
            self.feed.refused("source", detail);
        }
        self.unnamed = unnamed;
        Ok(files)
    }

    async fn read(&self, name: String, stamp: Stamp) {
        let path = self.folder.join(&name);
        let work = Arc::new(Work {
            name,
            stamp,
            open: AtomicUsize::new(1),
            failed: AtomicBool::new(false),
            finished: self.finished.clone(),
        });
        let settle = || -> Settle {
            work.open.fetch_add(1, Ordering::AcqRel);
            let work = Arc::clone(&work);
            Box::new(move |outcome| work.settled(outcome))
        };
        if let Err(e) = self.records(&path, &work, settle).await {
            self.feed
                .refused("source", format!("{}: {e}", path.display()));
            work.failed.store(true, Ordering::Relaxed);
        }
        work.closed();
    }

    async fn records(
        &self,
        path: &Path,
        work: &Work,
        mut settle: impl FnMut() -> Settle,
    ) -> io::Result<()> {
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        let of_lines = matches!(extension, "jsonl" | "ndjson");
        let format = self.settings.format.unwrap_or(match of_lines {
            true => Format::Json,
            false => Format::of_extension(extension),
        });
        let file = tokio::task::block_in_place(|| open(path))?;
        if format == Format::Csv || (of_lines && format == Format::Json) {
            let mut input = BufReader::new(tokio::fs::File::from_std(file));
            return lines(&mut input, format, &work.name, self.feed, settle).await;
        }
        let payload = tokio::task::block_in_place(|| read_whole(file))?;
        let item = Item {
            payload: Bytes::from(payload),
            format,
            header: None,
            id: work.name.clone(),
            answer_to: AnswerTo::default(),
            connection: None,
            settle: settle(),
        };
        self.feed.offer(item).await;
        Ok(())
    }

    fn finish(&mut self, one: &Finished) {
        let ended = tokio::task::block_in_place(|| self.put_away(one));
        match ended {
            Ok(()) => {
                self.in_work.remove(&one.name);
            }
            // It stays in work, or it would be answered again and again.
            Err(e) => {
                let path = self.folder.join(&one.name);
                let detail = format!(
                    "{}: {e}; it is not read again before a restart",
                    path.display()
                );
                self.feed.trouble("folder", detail);
            }
        }
    }

    fn put_away(&mut self, one: &Finished) -> io::Result<()> {
        let path = self.folder.join(&one.name);
        match (self.settings.after, one.failed) {
            (After::Keep, _) => return self.kept.add(&one.name, one.stamp),
            (After::Delete, false) => return gone_is_fine(std::fs::remove_file(path)),
            (After::Delete | After::Move, _) => {}
        }
        let folder = self.folder.join(if one.failed { "failed" } else { "done" });
        std::fs::create_dir_all(&folder)?;
        gone_is_fine(std::fs::rename(&path, free_name(&folder, &one.name)))
    }
}

fn unfinished(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") || name.ends_with(b".part") || name.ends_with(b".tmp")
}

fn gone_is_fine(ended: io::Result<()>) -> io::Result<()> {
    match ended {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A name that no earlier file has; the last one tried is overwritten.
fn free_name(folder: &Path, name: &str) -> PathBuf {
    let numbered = (1..NAMES_MAX).map(|n| folder.join(format!("{name}.{n}")));
    let mut names = std::iter::once(folder.join(name)).chain(numbered);
    let free = names.find(|path| std::fs::symlink_metadata(path).is_err());
    free.unwrap_or_else(|| folder.join(format!("{name}.{NAMES_MAX}")))
}

fn stamp(found: &std::fs::Metadata) -> Stamp {
    Stamp {
        bytes: found.len(),
        changed_s: found.mtime(),
        changed_ns: found.mtime_nsec(),
    }
}

fn open(path: &Path) -> io::Result<std::fs::File> {
    // A pipe put there meanwhile must not hold the reader, nor a link lead it elsewhere.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = std::fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("expected a file, got something else"))
    }
}

fn read_whole(file: std::fs::File) -> io::Result<Vec<u8>> {
    let bytes = file.metadata()?.len();
    if bytes > PAYLOAD_MAX_BYTES as u64 {
        return Err(io::Error::other(too_long("the file", bytes)));
    }
    let mut payload = Vec::new();
    file.take(PAYLOAD_MAX_BYTES as u64)
        .read_to_end(&mut payload)?;
    Ok(payload)
}
