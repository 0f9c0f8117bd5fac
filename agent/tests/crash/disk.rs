//! A disk in memory that keeps POSIX's promises and none beyond: bytes are durable once their file
//! was synced, names once their folder was. At a power cut every change since may be there or not,
//! each on its own: names in any subset, bytes whole, lost, torn, zeroed or garbage.

use super::random::Random;
use dunlin_agent::files::{FileSystem, Kind, Metadata, OpenFile};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

const ROOT: u64 = 0;
/// What every file, folder or link takes beside its bytes.
const INODE_BYTES: u64 = 64;

type Names = BTreeMap<OsString, u64>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    File { now: Vec<u8>, durable: Vec<u8> },
    Folder { now: Names, durable: Names },
    Link(PathBuf),
}

/// Names that change together: folder, name, what it stands for then.
type Change = Vec<(u64, OsString, Option<u64>)>;

/// What goes wrong, and when: at the operation of this number (the first is 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The power fails before it; nothing works any more.
    Cut(u64),
    /// Nothing more fits on the disk from here on than is freed again.
    Full(u64),
    /// This one fails with an I/O error.
    Broken(u64),
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<u64, Node>,
    modes: BTreeMap<u64, u32>,
    next: u64,
    /// Changes of names that are not durable, in order.
    changes: Vec<Change>,
    operations: u64,
    fault: Option<Fault>,
    dead: bool,
    capacity_bytes: Option<u64>,
    /// What lies on worn flash: its bytes can be read no more.
    unreadable: BTreeSet<u64>,
    trace: Vec<String>,
}

/// A handle; clones share the disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

/// What became of all that was not durable at a power cut.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome {
    /// Names and bytes are lost.
    Nothing,
    /// Names and bytes are kept, as if a process was killed.
    Everything,
    /// Names are kept, bytes lost.
    NamesOnly,
    /// Bytes are kept, names lost.
    BytesOnly,
    /// Names are kept, the bytes of each file up to a random place.
    Torn(u64),
    /// Names are kept and so are lengths; bytes are zeros.
    Zeroed,
    /// Each name or not, each file in any of these ways or as garbage.
    Random(u64),
}

impl Outcome {
    /// Every kind, and `random` seeded ones.
    pub(crate) fn all(seed: u64, random: u64) -> Vec<Self> {
        let mut all = vec![
            Self::Nothing,
            Self::Everything,
            Self::NamesOnly,
            Self::BytesOnly,
            Self::Torn(seed),
            Self::Zeroed,
        ];
        all.extend((0..random).map(|n| Self::Random(seed.wrapping_mul(1_000_003) + n)));
        all
    }
}

fn not_found() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

fn disk_full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl State {
    fn names(&self, folder: u64) -> io::Result<&Names> {
        match self.nodes.get(&folder) {
            Some(Node::Folder { now, .. }) => Ok(now),
            Some(_) => Err(io::Error::from(io::ErrorKind::NotADirectory)),
            None => Err(not_found()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        path.components().try_fold(ROOT, |at, part| match part {
            Component::RootDir | Component::CurDir => Ok(at),
            Component::Normal(name) => self.names(at)?.get(name).copied().ok_or_else(not_found),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        })
    }

    fn place(&self, path: &Path) -> io::Result<(u64, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let folder = self.find(path.parent().unwrap_or(Path::new("/")))?;
        self.names(folder)?;
        Ok((folder, name.to_owned()))
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("the power is gone"));
        }
        Ok(())
    }

    /// Before anything is changed: is this where it goes wrong?
    fn begin(&mut self, what: &str, path: &Path) -> io::Result<()> {
        self.alive()?;
        let number = self.operations;
        self.operations += 1;
        self.trace
            .push(format!("{number} {what} {}", path.display()));
        match self.fault {
            Some(Fault::Cut(at)) if at == number => {
                self.dead = true;
                self.alive()
            }
            Some(Fault::Broken(at)) if at == number => Err(io::Error::from_raw_os_error(5)),
            Some(Fault::Full(at)) if at == number => {
                self.capacity_bytes = Some(self.used_bytes());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn used_bytes(&self) -> u64 {
        let reachable = self.reachable();
        let size = |id: &u64| match self.nodes.get(id) {
            Some(Node::File { now, .. }) => now.len() as u64 + INODE_BYTES,
            _ => INODE_BYTES,
        };
        reachable.iter().map(size).sum()
    }

    fn reachable(&self) -> BTreeSet<u64> {
        let (mut seen, mut open) = (BTreeSet::new(), vec![ROOT]);
        while let Some(id) = open.pop() {
            if seen.insert(id)
                && let Some(Node::Folder { now, .. }) = self.nodes.get(&id)
            {
                open.extend(now.values());
            }
        }
        seen
    }

    fn room_for(&self, bytes: u64) -> io::Result<()> {
        match self.capacity_bytes {
            Some(capacity) if self.used_bytes() + bytes > capacity => Err(disk_full()),
            _ => Ok(()),
        }
    }

    fn change(&mut self, change: Change) {
        for (folder, name, to) in &change {
            if let Some(Node::Folder { now, .. }) = self.nodes.get_mut(folder) {
                match to {
                    Some(id) => now.insert(name.clone(), *id),
                    None => now.remove(name),
                };
            }
        }
        self.changes.push(change);
    }

    fn make(&mut self, at: (u64, OsString), node: Node, mode: u32) -> u64 {
        self.next += 1;
        let id = self.next;
        self.nodes.insert(id, node);
        self.modes.insert(id, mode);
        self.change(vec![(at.0, at.1, Some(id))]);
        id
    }

    fn keep(&mut self, change: &Change) {
        for (folder, name, to) in change {
            if let Some(Node::Folder { durable, .. }) = self.nodes.get_mut(folder) {
                match to {
                    Some(id) => durable.insert(name.clone(), *id),
                    None => durable.remove(name),
                };
            }
        }
    }
}

impl SimDisk {
    /// An empty disk with one folder.
    pub(crate) fn with_folder(path: &Path) -> Self {
        let disk = Self::default();
        let folder = || Node::Folder {
            now: Names::new(),
            durable: Names::new(),
        };
        disk.state().nodes.insert(ROOT, folder());
        disk.create_dir(path, 0o700).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        disk.restart(Outcome::Everything)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn break_at(&self, fault: Option<Fault>) {
        let mut state = self.state();
        (state.fault, state.operations) = (fault, 0);
        state.trace.clear();
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Whether the disk has become full, or the operation failed.
    pub(crate) fn has_struck(&self) -> bool {
        let state = self.state();
        match state.fault {
            Some(Fault::Cut(at) | Fault::Full(at) | Fault::Broken(at)) => state.operations > at,
            None => false,
        }
    }

    pub(crate) fn give_space(&self) {
        self.state().capacity_bytes = None;
    }

    /// The file is there, and reading it fails from now on, whatever else it is named.
    pub(crate) fn wear_out(&self, path: &Path) {
        let mut state = self.state();
        let id = state.find(path).unwrap();
        state.unreadable.insert(id);
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// The last operations, for a failing test.
    pub(crate) fn trace(&self) -> String {
        let state = self.state();
        let from = state.trace.len().saturating_sub(12);
        state.trace[from..].join("\n")
    }

    /// Every path on the disk that is no folder.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let state = self.state();
        let (mut files, mut open) = (Vec::new(), vec![(PathBuf::from("/"), ROOT)]);
        while let Some((path, id)) = open.pop() {
            match &state.nodes[&id] {
                Node::Folder { now, .. } => {
                    open.extend(now.iter().map(|(name, id)| (path.join(name), *id)));
                }
                _ => files.push(path),
            }
        }
        files.sort();
        files
    }

    /// The disk as a machine finds it that is switched on again.
    pub(crate) fn restart(&self, outcome: Outcome) -> Self {
        let state = self.state();
        let mut after = State {
            nodes: state.nodes.clone(),
            modes: state.modes.clone(),
            next: state.next,
            ..State::default()
        };
        let mut random = match outcome {
            Outcome::Torn(seed) | Outcome::Random(seed) => Random(seed | 1),
            _ => Random(1),
        };
        for change in &state.changes {
            let kept = match outcome {
                Outcome::Nothing | Outcome::BytesOnly => false,
                Outcome::Random(_) => random.below(2) == 0,
                _ => true,
            };
            if kept {
                after.keep(change);
            }
        }
        for node in after.nodes.values_mut() {
            match node {
                Node::Folder { now, durable } => now.clone_from(durable),
                Node::File { now, durable } => {
                    *durable = bytes_after(now, durable, outcome, &mut random);
                    now.clone_from(durable);
                }
                Node::Link(_) => {}
            }
        }
        let reachable = after.reachable();
        after.nodes.retain(|id, _| reachable.contains(id));
        Self(Arc::new(Mutex::new(after)))
    }

    /// To tell whether two restarts found the same.
    pub(crate) fn fingerprint(&self) -> String {
        format!("{:?}", self.state().nodes)
    }
}

fn bytes_after(now: &[u8], durable: &[u8], outcome: Outcome, random: &mut Random) -> Vec<u8> {
    if now == durable {
        return now.to_vec();
    }
    let same = now.iter().zip(durable).take_while(|(a, b)| a == b).count();
    let kind = match outcome {
        Outcome::Nothing | Outcome::NamesOnly => 0,
        Outcome::Everything | Outcome::BytesOnly => 1,
        Outcome::Torn(_) => 2,
        Outcome::Zeroed => 3,
        Outcome::Random(_) => random.below(5),
    };
    match kind {
        0 => durable.to_vec(),
        1 => now.to_vec(),
        2 => {
            let upto = same + usize::try_from(random.below((now.len() - same) as u64 + 1)).unwrap();
            let mut torn = now[..upto].to_vec();
            torn.extend(durable.iter().skip(upto));
            torn
        }
        3 => [&now[..same], &vec![0; now.len() - same]].concat(),
        _ => {
            let garbage = (same..now.len()).map(|_| random.below(256) as u8);
            now[..same].iter().copied().chain(garbage).collect()
        }
    }
}

struct SimFile {
    disk: SimDisk,
    id: u64,
    at: usize,
    path: PathBuf,
}

impl SimFile {
    fn with<T>(&self, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        let state = self.disk.state();
        state.alive()?;
        match state.nodes.get(&self.id) {
            Some(Node::File { now, .. }) => Ok(read(now)),
            _ => Err(io::Error::from(io::ErrorKind::IsADirectory)),
        }
    }

    fn change(&self, what: &str, grows: u64, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.disk.state();
        state.begin(what, &self.path)?;
        state.room_for(grows)?;
        if let Some(Node::File { now, .. }) = state.nodes.get_mut(&self.id) {
            write(now);
        }
        Ok(())
    }
}

impl Read for SimFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.disk.state().unreadable.contains(&self.id) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let at = self.at;
        let read = self.with(|bytes| {
            let rest = bytes.get(at..).unwrap_or_default();
            let n = rest.len().min(buffer.len());
            buffer[..n].copy_from_slice(&rest[..n]);
            n
        })?;
        self.at += read;
        Ok(read)
    }
}

impl Write for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.change("write", bytes.len() as u64, |now| {
            now.extend_from_slice(bytes)
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for SimFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let length = self.with(<[u8]>::len)?;
        let at = match to {
            SeekFrom::Start(n) => i64::try_from(n).unwrap(),
            SeekFrom::End(n) => length as i64 + n,
            SeekFrom::Current(n) => self.at as i64 + n,
        };
        self.at = usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(self.at as u64)
    }
}

impl OpenFile for SimFile {
    fn set_len(&mut self, length_bytes: u64) -> io::Result<()> {
        let length = usize::try_from(length_bytes).unwrap();
        if length == 0 {
            // Flash puts what is written anew elsewhere.
            self.disk.state().unreadable.remove(&self.id);
        }
        if self.with(<[u8]>::len)? == length {
            return Ok(());
        }
        self.change("set length", 0, |now| now.resize(length, 0))
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.begin("sync", &self.path)?;
        if let Some(Node::File { now, durable }) = state.nodes.get_mut(&self.id) {
            durable.clone_from(now);
        }
        Ok(())
    }
}

impl SimDisk {
    fn file(&self, id: u64, path: &Path) -> Box<dyn OpenFile> {
        Box::new(SimFile {
            disk: self.clone(),
            id,
            at: 0,
            path: path.to_owned(),
        })
    }

    fn create(&self, path: &Path, mode: u32, node: Node) -> io::Result<u64> {
        let mut state = self.state();
        let at = state.place(path)?;
        if state.names(at.0)?.contains_key(&at.1) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        state.begin("create", path)?;
        state.room_for(INODE_BYTES)?;
        Ok(state.make(at, node, mode))
    }
}

fn empty_file() -> Node {
    Node::File {
        now: Vec::new(),
        durable: Vec::new(),
    }
}

impl FileSystem for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let state = self.state();
        state.alive()?;
        let id = state.find(path)?;
        drop(state);
        Ok(self.file(id, path))
    }

    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn OpenFile>> {
        let id = self.create(path, mode, empty_file())?;
        Ok(self.file(id, path))
    }

    fn append(&self, path: &Path, mode: u32) -> io::Result<Box<dyn OpenFile>> {
        let found = self.state().find(path);
        let id = match found {
            Ok(id) => {
                self.state().alive()?;
                id
            }
            Err(_) => self.create(path, mode, empty_file())?,
        };
        Ok(self.file(id, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin("rename to", to)?;
        let id = state.find(from)?;
        let (from, to) = (state.place(from)?, state.place(to)?);
        // To a second name of the same file: nothing happens, says POSIX.
        if state.names(to.0)?.get(&to.1) != Some(&id) {
            state.change(vec![(from.0, from.1, None), (to.0, to.1, Some(id))]);
        }
        Ok(())
    }

    fn hard_link(&self, file: &Path, link: &Path) -> io::Result<()> {
        let mut state = self.state();
        let (id, at) = (state.find(file)?, state.place(link)?);
        if state.names(at.0)?.contains_key(&at.1) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        state.begin("link", link)?;
        state.change(vec![(at.0, at.1, Some(id))]);
        Ok(())
    }

    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        self.create(link, 0o777, Node::Link(target.to_owned()))
            .map(drop)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        let state = self.state();
        state.alive()?;
        match &state.nodes[&state.find(path)?] {
            Node::Link(target) => Ok(target.clone()),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        let (folder, name) = state.place(path)?;
        match state.nodes[&state.find(path)?] {
            Node::Folder { .. } => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Node::File { .. } | Node::Link(_) => {}
        }
        state.begin("remove", path)?;
        state.change(vec![(folder, name, None)]);
        Ok(())
    }

    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        let folder = Node::Folder {
            now: Names::new(),
            durable: Names::new(),
        };
        self.create(path, mode, folder).map(drop)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        let (id, (folder, name)) = (state.find(path)?, state.place(path)?);
        if !state.names(id)?.is_empty() {
            return Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty));
        }
        state.begin("remove folder", path)?;
        state.change(vec![(folder, name, None)]);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin("sync folder", path)?;
        let id = state.find(path)?;
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut state.changes)
            .into_iter()
            .partition(|change| change.iter().any(|(folder, ..)| *folder == id));
        for change in &now {
            state.keep(change);
        }
        state.changes = later;
        Ok(())
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        let mut state = self.state();
        let id = state.find(path)?;
        state.begin("set mode", path)?;
        state.modes.insert(id, mode);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(OsString, Metadata)>> {
        let state = self.state();
        state.alive()?;
        let names = state.names(state.find(path)?)?;
        let all = names
            .iter()
            .map(|(name, id)| (name.clone(), state.look(*id)));
        Ok(all.collect())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let state = self.state();
        state.alive()?;
        Ok(state.look(state.find(path)?))
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.state();
        state.alive()?;
        // What is asked before a download: the disk fills up afterwards, that is the test.
        Ok(1 << 30)
    }
}

impl State {
    fn look(&self, id: u64) -> Metadata {
        let (kind, length_bytes) = match &self.nodes[&id] {
            Node::File { now, .. } => (Kind::File, now.len() as u64),
            Node::Folder { .. } => (Kind::Folder, 0),
            Node::Link(_) => (Kind::Other, 0),
        };
        Metadata {
            kind,
            length_bytes,
            mode: self.modes.get(&id).copied().unwrap_or(0o700),
        }
    }
}
