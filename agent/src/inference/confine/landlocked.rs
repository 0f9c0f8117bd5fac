//! Files and ports, by Landlock (<https://docs.kernel.org/userspace-api/landlock.html>).

use super::{ConfineError, Enforced, Needs};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use std::path::Path;

/// The newest interface that is made use of: 6 (Linux 6.12) also keeps signals and abstract sockets
/// inside. What an older kernel has not of it is left out.
const NEWEST: ABI = ABI::V6;

/// What the runtime and the engine look at to see what machine this is.
const MACHINE: [&str; 3] = ["/proc/cpuinfo", "/sys/devices/system/cpu", "/sys/fs/cgroup"];

pub(super) fn restrict(needs: &Needs) -> Result<Enforced, ConfineError> {
    let status = ruleset(needs)
        .and_then(RulesetCreated::restrict_self)
        .map_err(|e| ConfineError::new("Landlock", e))?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Enforced::Fully,
        RulesetStatus::PartiallyEnforced => Enforced::Partly,
        RulesetStatus::NotEnforced => Enforced::No,
    })
}

fn ruleset(needs: &Needs) -> Result<RulesetCreated, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let read = AccessFs::from_read(NEWEST) & !AccessFs::Execute;
    let machine = MACHINE.iter().map(Path::new);
    for path in needs.read.iter().map(AsRef::as_ref).chain(machine) {
        rules = allow(rules, path, read)?;
    }
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock;
    let change = AccessFs::from_all(NEWEST) & !never;
    for dir in &needs.change {
        rules = allow(rules, dir, change)?;
    }
    for dir in &needs.socket_dirs {
        rules = allow(rules, dir, AccessFs::MakeSock | AccessFs::RemoveFile)?;
    }
    for port in &needs.listen_ports {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    for port in &needs.connect_ports {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    Ok(rules)
}

/// A path that is not there needs no rule: nothing can be made there either.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(file) = PathFd::new(path) else {
        return Ok(rules);
    };
    // The kernel takes no right of folders for a file.
    let access = match path.is_dir() {
        true => access,
        false => access & AccessFs::from_file(NEWEST),
    };
    rules.add_rule(PathBeneath::new(file, access))
}
