//! Landlock (landlock(7)): which files can be opened, from here on and for good, whatever the user's rights are.
//!
//! It knows more than files, of newer kernels: no TCP connection is made, no TCP port bound, no abstract Unix socket of another process reached
//! and no other process signalled. Kernels before 5.13 have none of it, and each since has more.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};

use super::files::{Access, Grants};

/// The newest version whose rights are handled here; older kernels have fewer.
const VERSION: ABI = ABI::V6;

/// Restricts the calling thread, and all that it starts, to `grants`. Returns whether the kernel has all that is asked for;
/// nothing if it has none.
pub fn enter(grants: &Grants) -> Result<Option<bool>, RulesetError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(VERSION))?
        .handle_access(AccessNet::ConnectTcp | AccessNet::BindTcp)?
        .scope(Scope::from_all(VERSION))?
        .create()?;
    for grant in grants.iter() {
        // A file that is not there is missed when it is opened.
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
        // It may be a block device.
        Access::Write => write | AccessFs::IoctlDev,
        Access::Own => {
            let other = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
            AccessFs::from_all(VERSION) & !other
        }
    }
}
