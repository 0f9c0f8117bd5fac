//! What the worker gives up before it reads its first byte of a model.

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

/// A restriction that the kernel refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot confine the inference worker: {what}: {errno}")]
pub struct ConfineError {
    what: &'static str,
    errno: Errno,
}

/// Confines this process for good: no new privileges, no core dump (it would hold weights and
/// samples), and at most `memory_limit_bytes` of private writable memory.
///
/// The limit is on data (`RLIMIT_DATA`, which counts every private writable mapping since Linux 4.7),
/// not on address space: allocators reserve far more of that than they use.
///
/// # Errors
/// The first restriction that the kernel refused; the worker must not go on then.
pub fn confine(memory_limit_bytes: Option<u64>) -> Result<(), ConfineError> {
    let refused = |what| move |errno| ConfineError { what, errno };
    set_no_new_privs(true).map_err(refused("no new privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("not dumpable"))?;
    setrlimit(Resource::Core, limit(0)).map_err(refused("no core dumps"))?;
    if let Some(bytes) = memory_limit_bytes {
        setrlimit(Resource::Data, limit(bytes)).map_err(refused("memory limit"))?;
    }
    Ok(())
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
