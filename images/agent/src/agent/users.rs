//! The guest's users, parsed from `/etc/passwd` and `/etc/group`. The C library's lookup functions load modules at run
//! time, which a static binary cannot do.

use std::fs;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub shell: String,
}

impl User {
    /// Returns the user of this process. Reads no file for root.
    #[must_use]
    pub fn own() -> Self {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let unnamed = |name: &str, home: &str| Self {
            name: name.to_owned(),
            uid,
            gid,
            home: home.to_owned(),
            shell: "/bin/sh".to_owned(),
        };
        if uid == 0 {
            return unnamed("root", "/root");
        }
        find(&read("/etc/passwd"), |user| user.uid == uid).unwrap_or_else(|| unnamed("", "/"))
    }

    /// Finds the user with this name or number.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let passwd = read("/etc/passwd");
        find(&passwd, |user| user.name == name)
            .or_else(|| name.parse().ok().and_then(|uid| find(&passwd, |user| user.uid == uid)))
    }

    #[must_use]
    pub fn groups(&self) -> Vec<u32> {
        groups_of(self, &read("/etc/group"))
    }
}

fn read(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn find(passwd: &str, is_it: impl Fn(&User) -> bool) -> Option<User> {
    passwd.lines().filter_map(parse_user).find(is_it)
}

/// Parses a line of `/etc/passwd` (passwd(5)). Returns `None` if it is malformed.
fn parse_user(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let or = |field: Option<&str>, default: &str| match field {
        Some(text) if !text.is_empty() => text.to_owned(),
        _ => default.to_owned(),
    };
    let home = or(fields.nth(1), "/");
    let shell = or(fields.next(), "/bin/sh");
    Some(User { name, uid, gid, home, shell })
}

/// Returns the user's group IDs, primary first. `group` is the content of `/etc/group` (group(5)).
fn groups_of(user: &User, group: &str) -> Vec<u32> {
    let mut groups = vec![user.gid];
    for line in group.lines() {
        let mut fields = line.split(':');
        let (Some(gid), Some(members)) = (fields.nth(2).and_then(|gid| gid.parse().ok()), fields.next()) else {
            continue;
        };
        if members.split(',').any(|member| member == user.name) && !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken:x\nadmin:x:1000:1000:,,,:/home/admin:\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:other,admin\nadmin:x:1000:admin\nbad:x:y:admin\n";

    #[test]
    fn user_is_found_after_malformed_lines() {
        let user = find(PASSWD, |user| user.name == "admin").expect("there");
        assert_eq!((user.uid, user.home.as_str(), user.shell.as_str()), (1000, "/home/admin", "/bin/sh"));
    }

    #[test]
    fn groups_include_primary_group_and_memberships() {
        let user = find(PASSWD, |user| user.uid == 1000).expect("there");
        assert_eq!(groups_of(&user, GROUP), [1000, 27]);
    }
}
