//! Environment of a command, and the lookup of its program.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::FileType;

use super::users::User;

pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[must_use]
pub fn for_user(user: &User) -> Vec<(OsString, OsString)> {
    let variables =
        [("PATH", PATH), ("HOME", &user.home), ("USER", &user.name), ("LOGNAME", &user.name), ("SHELL", &user.shell)];
    variables
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// Sets a variable, possibly replacing its value.
pub fn set(variables: &mut Vec<(OsString, OsString)>, name: &OsStr, value: &OsStr) {
    match variables.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => known.clone_from(&value.to_owned()),
        None => variables.push((name.to_owned(), value.to_owned())),
    }
}

/// Formats variables as `name=value`. Fails if one contains NUL, or if a name is empty or contains `=`.
pub fn to_c_strings(variables: Vec<(OsString, OsString)>) -> io::Result<Vec<CString>> {
    variables
        .into_iter()
        .map(|(name, value)| {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{name:?} is not a valid variable name"),
                ));
            }
            let mut both = name.into_vec();
            both.push(b'=');
            both.extend_from_slice(value.as_bytes());
            Ok(CString::new(both)?)
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
pub enum Lookup {
    Found(OsString),
    /// Only files without an execute bit were found.
    NotExecutable,
    NotFound,
}

/// Looks up a program as a shell does: a name with a slash is used as a path.
#[must_use]
pub fn look_up(program: &OsStr, path: &OsStr) -> Lookup {
    if program.as_bytes().contains(&b'/') {
        return Lookup::Found(program.to_owned());
    }
    let mut outcome = Lookup::NotFound;
    if program.is_empty() {
        return outcome;
    }
    for directory in path.as_bytes().split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(directory) };
        let candidate = Path::new(directory).join(program);
        let Ok(stat) = rustix::fs::stat(&candidate) else { continue };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            continue;
        }
        if stat.st_mode & 0o111 != 0 {
            return Lookup::Found(candidate.into_os_string());
        }
        outcome = Lookup::NotExecutable;
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_value_replaces_earlier_value_in_place() {
        let mut variables = vec![("A".into(), "1".into()), ("B".into(), "2".into())];
        set(&mut variables, OsStr::new("A"), OsStr::new("3"));
        let strings = to_c_strings(variables).expect("valid");
        assert_eq!(strings, [c"A=3".to_owned(), c"B=2".to_owned()]);
    }

    #[test]
    fn look_up_finds_only_executables_in_path() {
        assert_eq!(look_up(OsStr::new("sh"), OsStr::new("/no/such:/bin")), Lookup::Found("/bin/sh".into()));
        assert_eq!(look_up(OsStr::new("passwd"), OsStr::new("/etc")), Lookup::NotExecutable);
        assert_eq!(look_up(OsStr::new("no-such-program"), OsStr::new(PATH)), Lookup::NotFound);
        assert_eq!(look_up(OsStr::new("./x"), OsStr::new(PATH)), Lookup::Found("./x".into()));
    }
}
