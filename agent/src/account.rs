//! As whom the command line works on a state folder.
//!
//! The folder and all in it belong to the agent's user, who may put a symbolic link in the place of
//! anything there. Root would follow it, and what root wrote the agent could not read. So a command
//! that root calls becomes that user before it touches the folder.

use rustix::process::geteuid;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why a command does not run as the state folder's owner.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The state folder cannot be looked at.
    #[error("cannot look at {}: {source}", path.display())]
    Look {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The program cannot be started as its owner.
    #[error(
        "cannot run {} as user {uid}, whom {} belongs to: {source}",
        program.display(), state_dir.display()
    )]
    Become {
        /// The program.
        program: PathBuf,
        /// The owner.
        uid: u32,
        /// What is owned.
        state_dir: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// User and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
}

/// If root calls and the state folder is another user's: runs the same command anew as that user,
/// without root's groups, in the place of this process. Returns if there is no need to, or no state
/// folder yet. `arguments` are all after the program's name.
///
/// # Errors
/// [`AccountError`]; nothing was done then.
pub fn become_owner(state_dir: &Path, arguments: &[OsString]) -> Result<(), AccountError> {
    let owner = match std::fs::metadata(state_dir) {
        Ok(found) => Account {
            uid: found.uid(),
            gid: found.gid(),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(AccountError::Look {
                path: state_dir.to_owned(),
                source,
            });
        }
    };
    let Some(Account { uid, gid }) = to_become(geteuid().as_raw(), owner) else {
        return Ok(());
    };
    let failed = |program: PathBuf, source| AccountError::Become {
        program,
        uid,
        state_dir: state_dir.to_owned(),
        source,
    };
    let program = std::env::current_exe().map_err(|e| failed(PathBuf::from("this program"), e))?;
    let mut command = Command::new(&program);
    // Returns only if it fails. Setting the user drops the supplementary groups.
    let source = command.args(arguments).gid(gid).uid(uid).exec();
    Err(failed(program, source))
}

fn to_become(euid: u32, owner: Account) -> Option<Account> {
    (euid == 0 && owner.uid != 0).then_some(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_becomes_another() {
        let agent = Account { uid: 998, gid: 997 };
        assert_eq!(to_become(0, agent), Some(agent));
        assert_eq!(to_become(0, Account { uid: 0, gid: 0 }), None);
        assert_eq!(to_become(998, agent), None);
        assert_eq!(to_become(1000, agent), None);
    }
}
