//! Names of a guest's users.

/// Maximum length in bytes, as in useradd(8).
const MAX_LENGTH: usize = 32;

/// Checks a guest's user name. It becomes an argument of `ssh`, which may substitute it into commands of the user's
/// configuration (`%r`). The error is a sentence with the name and the violated rule.
pub fn check_user_name(name: &str) -> Result<(), String> {
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_');
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if starts_well && name.len() <= MAX_LENGTH && name.bytes().all(is_allowed) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a valid user name: it must be 1 to {MAX_LENGTH} letters, digits, `_`, `.` or `-`, and must \
         start with a letter, a digit or `_`"
    ))
}

/// Parses an option's value; see [`check_user_name`].
pub fn parse_user_name(name: &str) -> Result<String, String> {
    check_user_name(name).map(|()| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_name_that_ssh_could_misread_is_refused() {
        for name in ["root", "admin", "_apt", "www-data", "first.last", "Alice", "1000", &"x".repeat(32)] {
            check_user_name(name).unwrap();
        }
        let long = "x".repeat(33);
        for name in [
            "",
            "-",
            "-oProxyCommand=x",
            "--",
            ".",
            "..",
            "a b",
            "a@b",
            "a/b",
            "a:b",
            "a%h",
            "a$(x)",
            "a`x`",
            "a\nb",
            "a\0",
            "a'b",
            "\u{e9}",
            &long,
        ] {
            let error = check_user_name(name).unwrap_err();
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
    }
}
