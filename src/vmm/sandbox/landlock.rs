//! Landlock (landlock(7)): permanently restricts which files can be opened, regardless of the user's permissions.
//!
//! Newer kernels also deny TCP connections, binding TCP ports, other processes' abstract Unix sockets, and signals.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};

use super::files::{Access, Grants};

/// The Landlock version whose rules are requested. Older kernels enforce only some of them.
const VERSION: ABI = ABI::V6;

/// Restricts the calling thread and those that it starts later. Returns `Some(true)` if the kernel enforces all rules,
/// `Some(false)` if it enforces only some, and `None` if it has no Landlock.
pub fn enter(grants: &Grants) -> Result<Option<bool>, RulesetError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(VERSION))?
        .handle_access(AccessNet::ConnectTcp | AccessNet::BindTcp)?
        .scope(Scope::from_all(VERSION))?
        .create()?;
    for grant in grants.iter() {
        // If the file is missing, the later attempt to open it reports that.
        let Ok(path) = PathFd::new(&grant.path) else { continue };
        let rights =
            rights(grant.access) & if grant.path.is_dir() { BitFlags::all() } else { AccessFs::from_file(VERSION) };
        ruleset = ruleset.add_rule(PathBeneath::new(path, rights))?;
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Some(true),
        RulesetStatus::PartiallyEnforced => Some(false),
        RulesetStatus::NotEnforced => None,
    })
}

fn rights(access: Access) -> BitFlags<AccessFs> {
    let write = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::ReadFile;
    match access {
        Access::Read => AccessFs::ReadFile | AccessFs::ReadDir,
        // The file may be a block device.
        Access::Write => write | AccessFs::IoctlDev,
        Access::Own => {
            let other = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
            AccessFs::from_all(VERSION) & !other
        }
    }
}
