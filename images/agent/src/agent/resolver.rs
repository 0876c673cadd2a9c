//! Writes `/etc/resolv.conf` in a guest where no other program does.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use super::files;
use crate::network::Network;

const DIRECTORY: &str = "etc";
const FILE: &str = "resolv.conf";
/// Target of the link in an image that leaves the configuration to the agent.
const RESOLVER: &str = "run/resolv.conf";
/// Directory of files that last for one boot. Programs normally create the targets of links into it at each boot.
const VOLATILE: &str = "run";
/// The search domain, as in EC2's us-east-1.
const DOMAIN: &str = "ec2.internal";
/// First line of a file that the agent wrote and may rewrite when the network changes.
const MARK: &str = "# Written by wisp-init, as the image left it empty.\n";
/// Maximum size of an existing configuration in bytes.
const LIMIT: u64 = 64 << 10;

/// Configures name resolution, unless the guest has its own configuration.
pub fn configure(network: &Network) -> io::Result<()> {
    configure_in(Path::new("/"), network)
}

/// Creates the file in an image that leaves the configuration to the agent, so that [`configure`] only fills it.
pub fn prepare() {
    prepare_in(Path::new("/"));
}

fn prepare_in(root: &Path) {
    let link = fs::read_link(root.join(DIRECTORY).join(FILE));
    if link.is_ok_and(|target| linked(root, &target) == Some(root.join(RESOLVER))) {
        // Ignore an error: `configure` creates a missing file.
        let _ = fs::write(root.join(RESOLVER), "");
    }
}

fn configure_in(root: &Path, network: &Network) -> io::Result<()> {
    let servers = network.dns.iter().map(|server| format!("nameserver {server}\n"));
    let text = format!("search {DOMAIN}\n{}", servers.collect::<String>());
    let path = root.join(DIRECTORY).join(FILE);
    match fs::read_link(&path) {
        Ok(target) => match linked(root, &target) {
            Some(target) if target == root.join(RESOLVER) => fs::write(target, text),
            Some(target) if target.starts_with(root.join(VOLATILE)) && is_ours(fs::read(&target))? => {
                target.parent().map_or(Ok(()), fs::create_dir_all)?;
                fs::write(target, format!("{MARK}{text}"))
            }
            _ => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(root.join(DIRECTORY))?;
            let directory = files::open_directory(&root.join(DIRECTORY))?;
            files::replace(directory, FILE, format!("{MARK}{text}").as_bytes(), 0o644, None)
        }
        // EINVAL: the file is not a link.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let directory = files::open_directory(&root.join(DIRECTORY))?;
            let content = files::read(&directory, FILE, LIMIT)?.map(|(content, _)| content).unwrap_or_default();
            if !is_ours(Ok(content))? {
                return Ok(());
            }
            // Write in place, because the file may be a mount point.
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).truncate(true).custom_flags(libc::O_NOFOLLOW).open(&path)?;
            io::Write::write_all(&mut file, format!("{MARK}{text}").as_bytes())
        }
        Err(error) => Err(error),
    }
}

/// Returns true if the agent may write the configuration: it is missing, has no entries, or was written by the agent.
fn is_ours(content: io::Result<Vec<u8>>) -> io::Result<bool> {
    let content = match content {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        content => content?,
    };
    let says_something = |line: &[u8]| !matches!(line.trim_ascii().first(), None | Some(b'#' | b';'));
    let is_empty = !content.split(|byte| *byte == b'\n').any(says_something);
    Ok(is_empty || content.starts_with(MARK.as_bytes()))
}

/// Returns the path in `root` of a link's target, for a link in `/etc`, or `None` if the link leaves the root.
fn linked(root: &Path, target: &Path) -> Option<PathBuf> {
    let mut parts: Vec<&std::ffi::OsStr> = if target.is_absolute() { vec![] } else { vec![DIRECTORY.as_ref()] };
    for component in target.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::CurDir => {}
            Component::Prefix(_) => return None,
        }
    }
    Some(parts.iter().fold(root.to_path_buf(), |path, part| path.join(part)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const WRITTEN: &str = "search ec2.internal\nnameserver 172.31.0.2\n";

    fn network(dns: &str) -> Network {
        Network::parse(&format!("06:00:00:00:00:01,172.31.0.4/20,172.31.0.1,9001,{dns}")).unwrap()
    }

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        ["etc", "run"].iter().for_each(|name| fs::create_dir(root.path().join(name)).unwrap());
        root
    }

    #[test]
    fn missing_or_empty_configuration_is_written_and_updated() {
        for content in [None, Some(""), Some("\n# nothing\n; here\n")] {
            let root = root();
            let path = root.path().join("etc/resolv.conf");
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
            }
            configure_in(root.path(), &network("172.31.0.2")).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{MARK}{WRITTEN}"), "{content:?}");
            configure_in(root.path(), &network("10.0.0.2")).unwrap();
            assert!(fs::read_to_string(&path).unwrap().ends_with("nameserver 10.0.0.2\n"));
        }
        let root = tempfile::tempdir().unwrap();
        configure_in(root.path(), &network("172.31.0.2")).unwrap();
        assert!(root.path().join("etc/resolv.conf").exists());
    }

    #[test]
    fn prepared_file_is_created_only_for_link_to_it_and_filled_in() {
        let root = root();
        prepare_in(root.path());
        assert!(!root.path().join(RESOLVER).exists());
        symlink("/run/resolv.conf", root.path().join("etc/resolv.conf")).unwrap();
        prepare_in(root.path());
        assert_eq!(fs::read_to_string(root.path().join(RESOLVER)).unwrap(), "");
        configure_in(root.path(), &network("172.31.0.2")).unwrap();
        assert_eq!(fs::read_to_string(root.path().join(RESOLVER)).unwrap(), WRITTEN);
    }

    #[test]
    fn configuration_with_content_is_kept() {
        let root = root();
        let path = root.path().join("etc/resolv.conf");
        for content in ["nameserver 9.9.9.9\n", "options edns0"] {
            fs::write(&path, content).unwrap();
            configure_in(root.path(), &network("172.31.0.2")).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn only_links_into_run_are_filled_in() {
        let root = root();
        let path = root.path().join("etc/resolv.conf");
        let link = |target: &str| {
            let _ = fs::remove_file(&path);
            symlink(target, &path).unwrap();
            configure_in(root.path(), &network("172.31.0.2")).unwrap();
        };
        link("/run/resolv.conf");
        assert_eq!(fs::read_to_string(root.path().join("run/resolv.conf")).unwrap(), WRITTEN);
        link("../run/systemd/resolve/stub-resolv.conf");
        let stub = root.path().join("run/systemd/resolve/stub-resolv.conf");
        assert_eq!(fs::read_to_string(&stub).unwrap(), format!("{MARK}{WRITTEN}"));
        fs::write(&stub, "nameserver 127.0.0.53\n").unwrap();
        link("../run/systemd/resolve/stub-resolv.conf");
        assert_eq!(fs::read_to_string(&stub).unwrap(), "nameserver 127.0.0.53\n");
        link("/var/lib/resolv.conf");
        link("../../outside");
        assert!(!root.path().join("var").exists() && !root.path().parent().unwrap().join("outside").exists());
    }
}
