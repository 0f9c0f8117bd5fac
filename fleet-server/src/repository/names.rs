//! Names of files in the repository, and which of those asked for are names at all.

use dunlin_protocol::trust::{Role, RoleName};

const VERSION_DIGITS_MAX: usize = 20;
const PATH_MAX_BYTES: usize = 512;

/// `N.root.json`.
pub(super) fn root_name(version: u64) -> String {
    Role::Root.file_name(version, true)
}

/// The name on disk of what is asked for as `timestamp.json` or `N.ROLE.json`, the role as metadata
/// spell it: a delegated role's name is percent-encoded on disk, so that it stays in its folder.
pub(super) fn stored_name(asked: &str) -> Option<String> {
    let stem = asked.strip_suffix(".json")?;
    if stem == "timestamp" {
        return Some(asked.to_owned());
    }
    let (version, role) = stem.split_once('.')?;
    let digits = !version.is_empty()
        && version.len() <= VERSION_DIGITS_MAX
        && version.bytes().all(|b| b.is_ascii_digit());
    let version: u64 = digits.then(|| version.parse().ok())??;
    match role {
        "root" => Some(root_name(version)),
        "targets" => Some(Role::Targets.file_name(version, true)),
        "snapshot" => Some(Role::Snapshot.file_name(version, true)),
        other => Some(RoleName::delegated(other)?.file_name(version, true)),
    }
}

/// The role that a snapshot lists as `targets.json` or `ROLE.json`.
pub(super) fn listed_role(file: &str) -> Option<RoleName> {
    match file.strip_suffix(".json")? {
        "targets" => Some(Role::Targets.into()),
        other => RoleName::delegated(other),
    }
}

/// Relative, no step upwards, no odd characters.
pub(super) fn is_safe_path(path: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let safe = |step: &str| !step.is_empty() && !step.starts_with('.') && step.chars().all(allowed);
    path.len() <= PATH_MAX_BYTES && path.split('/').all(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let stored = |name: &str| stored_name(name);
        assert_eq!(stored("timestamp.json").as_deref(), Some("timestamp.json"));
        assert_eq!(stored("7.vision.json").as_deref(), Some("7.vision.json"));
        assert_eq!(stored("07.root.json").as_deref(), Some("7.root.json"));
        let escaping = stored("1.../../../etc/passwd.json");
        assert!(escaping.is_some_and(|name| !name.contains('/')));
        for none in [
            "root.json",
            "1.timestamp.json",
            "x.root.json",
            "1..json",
            "-1.root.json",
            "99999999999999999999999.root.json",
            "1.root",
            "",
        ] {
            assert_eq!(stored(none), None, "{none}");
        }
    }
}
