//! What the worker, and likewise the process of the pipelines, gives up before it reads its first byte
//! of a model, or of what came from elsewhere.
//!
//! ```text
//! no new privileges, no core dump, a limit of memory     always, or the worker does not start
//! Landlock: reads its models, opens its sockets          Linux 5.13 and newer, whole since 6.12
//! seccomp: no socket, no program, no other process       x86-64, ARM, RISC-V
//! ```
//! What a kernel has not is left out and said: a model that takes the worker over finds no key, no
//! telemetry and no way out on a kernel that has all of it.

mod calls;
mod landlocked;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A restriction that the kernel has and refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot confine this process: {what}: {why}")]
pub struct ConfineError {
    what: &'static str,
    why: String,
}

impl ConfineError {
    fn new(what: &'static str, why: impl ToString) -> Self {
        let why = why.to_string();
        Self { what, why }
    }
}

/// What the process still needs; everything else is taken from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Most private writable memory, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Files and folders to read, with all in them.
    pub read: Vec<PathBuf>,
    /// Folders to read and change, with all in them.
    pub change: Vec<PathBuf>,
    /// Folders in which Unix sockets are made.
    pub socket_dirs: Vec<PathBuf>,
    /// TCP ports to listen on; 0 is any port.
    pub listen_ports: Vec<u16>,
    /// TCP ports to reach, on whatever machine.
    pub connect_ports: Vec<u16>,
}

/// How much of a restriction is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforced {
    /// The kernel, or the machine, has none of it.
    No,
    /// An older kernel has some of it.
    Partly,
    /// All that was asked for.
    Fully,
}

/// What is in force beyond what always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Files and TCP ports, by Landlock.
    pub landlock: Enforced,
    /// System calls, by seccomp.
    pub seccomp: Enforced,
}

impl Confinement {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_whole(self) -> bool {
        (self.landlock, self.seccomp) == (Enforced::Fully, Enforced::Fully)
    }
}

impl std::fmt::Display for Confinement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |enforced| match enforced {
            Enforced::No => "not in force",
            Enforced::Partly => "partly in force",
            Enforced::Fully => "in force",
        };
        let (landlock, seccomp) = (word(self.landlock), word(self.seccomp));
        write!(f, "Landlock {landlock}, seccomp {seccomp}")
    }
}

/// Confines this process for good: no new privileges, no core dump (it would hold weights and
/// samples), a limit of memory, and no file or port that it does not need. To be called while there
/// is one thread only: Landlock binds the calling thread and those that it starts.
///
/// The limit is on data (`RLIMIT_DATA`, which counts every private writable mapping since Linux 4.7),
/// not on address space: allocators reserve far more of that than they use.
///
/// # Errors
/// The first restriction that the kernel refused; the worker must not go on then.
pub fn confine(needs: &Needs) -> Result<Enforced, ConfineError> {
    let refused = |what| move |errno: Errno| ConfineError::new(what, errno);
    set_no_new_privs(true).map_err(refused("no new privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("not dumpable"))?;
    setrlimit(Resource::Core, limit(0)).map_err(refused("no core dumps"))?;
    if let Some(bytes) = needs.memory_limit_bytes {
        setrlimit(Resource::Data, limit(bytes)).map_err(refused("memory limit"))?;
    }
    landlocked::restrict(needs)
}

/// Takes from every thread of this process what it needs no more once its sockets are open: making
/// sockets, starting programs, looking into other processes.
///
/// # Errors
/// The kernel has it and refused.
pub fn seal() -> Result<Enforced, ConfineError> {
    calls::forbid()
}

/// Raises this process's score for the kernel's out-of-memory killer, -1000 (never) to 1000 (first).
/// To be called before [`confine`], after which the file is root's. Where there is no such file, the
/// memory limit is all there is.
pub fn offer_to_oom_killer(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::debug!(%error, "the out-of-memory score stays as it is");
    }
}

fn limit(value: u64) -> Rlimit {
    Rlimit {
        current: Some(value),
        maximum: Some(value),
    }
}
