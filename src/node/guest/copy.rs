//! Copies files and directories to and from a guest, by the rules of [`wisp_agent::tree`].

use std::ffi::OsStr;
use std::path::Path;

use wisp_agent::protocol::{AgentConnection, Fill, FrameReader, MAX_DATA, ProtocolError, ToGuest, ToHost};
use wisp_agent::tree::{self, CopyRequest, Holes, Links, Summary, TreeEntry, TreeError, TreeWriter};

use super::{Agent, Error};

impl Agent {
    /// Copies the host's `source`, a file or a directory, to `destination` in the guest.
    ///
    /// If the destination is a directory, the copy is created inside it under the source's name. Otherwise the copy
    /// gets the destination's name, and its parent directory must exist. A relative destination starts at the agent's
    /// home (`/root`).
    ///
    /// `progress` gets the number of content bytes sent since its last call. `holes` is the agent's capability from
    /// [`Facts::holes`](super::Facts::holes).
    ///
    /// # Errors
    /// [`Error::Copy`] for files on the host and [`Error::Guest`] for files in the guest, each with the path.
    pub fn copy_to_guest(
        mut self,
        source: &Path,
        destination: &OsStr,
        holes: Holes,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Summary, Error> {
        self.begin(&ToGuest::Write { destination: destination.to_owned() })?;
        let AgentConnection { writer, reader } = &mut self.connection;
        let sent = tree::send(source, Links::RefuseMarked, holes, &mut |entry| {
            if let TreeEntry::Data(data) = &entry {
                progress(data.0.len() as u64);
            }
            writer.queue(&ToGuest::Tree(entry))?;
            if writer.pending() >= MAX_DATA {
                stop_where_refused(reader)?;
                writer.flush()?;
            }
            Ok(())
        });
        // A guest that refuses the copy keeps reading until its message is received. A guest that stops breaks the
        // connection, and its last message explains more than the write error.
        match sent.and_then(|()| Ok(writer.flush()?)) {
            Ok(()) | Err(TreeError::Stream(ProtocolError::Io(_))) => {}
            Err(error) => return Err(error.into()),
        }
        match reader.receive()? {
            ToHost::Copied(summary) => Ok(summary),
            ToHost::Failed(message) => Err(Error::Guest(message)),
            _ => Err(ProtocolError::Unexpected("it does not answer a copy").into()),
        }
    }

    /// Copies the guest's `source` to `destination` on the host. `progress`, `holes` and errors are those of
    /// [`copy_to_guest`](Self::copy_to_guest).
    ///
    /// If the destination is a directory, the copy is created inside it under the last component of `source`. A source
    /// without one (`/`, `.`, `..`) needs a destination that does not exist. The guest cannot choose the name, create a
    /// link at the top level or choose the permissions: see [`TreeWriter::untrusted`].
    pub fn copy_from_guest(
        mut self,
        source: &OsStr,
        destination: &Path,
        holes: Holes,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Summary, Error> {
        let source_in_guest = source.to_owned();
        self.begin(&match holes {
            Holes::Fill => ToGuest::Read { source: source_in_guest },
            Holes::Keep => ToGuest::ReadSparse { source: source_in_guest },
        })?;
        let mut tree = TreeWriter::untrusted(destination, CopyRequest::new(source, umask()));
        while !tree.is_complete() {
            match self.connection.reader.receive()? {
                ToHost::Tree(entry) => {
                    if let TreeEntry::Data(data) = &entry {
                        progress(data.0.len() as u64);
                    }
                    tree.accept(entry)?;
                }
                ToHost::Failed(message) => return Err(Error::Guest(message)),
                _ => return Err(ProtocolError::Unexpected("it does not belong to a copy").into()),
            }
        }
        Ok(tree.summary())
    }
}

/// Returns the umask without changing it, or 077 if the kernel does not report it.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_umask(&status).unwrap_or(0o077)
}

fn parse_umask(status: &str) -> Option<u32> {
    let value = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(value.trim(), 8).ok()
}

/// Checks for an early answer, which the guest sends only to refuse the copy.
fn stop_where_refused(reader: &mut FrameReader) -> Result<(), TreeError> {
    if reader.fill_now()? == Fill::Empty {
        return Ok(());
    }
    match reader.next_buffered()? {
        None => Ok(()),
        Some(ToHost::Failed(message)) => Err(TreeError::OtherEnd(message)),
        Some(_) => Err(ProtocolError::Unexpected("an answer before the end of a copy").into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::thread;
    use std::time::Duration;

    use wisp_agent::protocol::{Bytes, Facts};
    use wisp_agent::tree::Attributes;

    use super::*;
    use crate::guest::testing::agent;

    const ATTRIBUTES: Attributes = Attributes { mode: 0o777, modified: 0, nanoseconds: 0 };

    fn directory(name: &str) -> TreeEntry<'_> {
        TreeEntry::Directory { name: name.into(), attributes: ATTRIBUTES }
    }

    fn file(name: &str) -> TreeEntry<'_> {
        TreeEntry::File { name: name.into(), attributes: ATTRIBUTES }
    }

    fn link<'a>(name: &str, target: &Path) -> TreeEntry<'a> {
        TreeEntry::Symlink { name: name.into(), target: target.into() }
    }

    /// Copies from a guest that answers with `entries`, regardless of the request.
    fn copy_from_hostile(source: &str, destination: &Path, entries: Vec<TreeEntry<'static>>) -> Result<Summary, Error> {
        let (host, guest) = UnixStream::pair().expect("a socket pair");
        let guest = thread::spawn(move || {
            let mut connection = AgentConnection::new(guest.into());
            connection.greet()?;
            connection.reader.receive::<ToGuest<'_>>()?;
            for entry in entries {
                connection.writer.send(&ToHost::Tree(entry))?;
            }
            Ok::<(), ProtocolError>(())
        });
        let agent =
            Agent { connection: AgentConnection::new(host.into()), patience: Duration::from_secs(60), silence: None };
        let outcome = agent.copy_from_guest(source.as_ref(), destination, Holes::Keep, &mut |_| {});
        // The host may close the connection before the guest has sent all entries.
        let _ = guest.join().expect("the guest does not panic");
        outcome
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("listed");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    }

    /// Contains `home`, a user's working directory, and `victim`, which no copy may change.
    struct Host {
        _directory: tempfile::TempDir,
        home: PathBuf,
        victim: PathBuf,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let (home, victim) = (dir.path().join("home"), dir.path().join("victim"));
            for path in [&home, &victim] {
                fs::create_dir(path).expect("created");
            }
            Self { _directory: dir, home, victim }
        }

        fn assert_victim_is_untouched(&self) {
            assert_eq!(names(&self.victim), [""; 0]);
        }
    }

    #[test]
    fn copy_from_guest_takes_the_name_from_the_request() {
        let host = Host::new();
        let answer = vec![file(".bashrc"), TreeEntry::Data(Bytes(b"evil")), TreeEntry::EndOfFile, TreeEntry::End];
        copy_from_hostile("/etc/motd", &host.home, answer).expect("copied");
        let answer = vec![
            directory(".ssh"),
            file("authorized_keys"),
            TreeEntry::EndOfFile,
            TreeEntry::EndOfDirectory,
            TreeEntry::End,
        ];
        copy_from_hostile("/srv/data/", &host.home, answer).expect("copied");
        assert_eq!(names(&host.home), ["data", "motd"]);
    }

    #[test]
    fn copy_from_guest_refuses_link_or_missing_entry_at_root() {
        let host = Host::new();
        let answers = [
            vec![link("data", &host.victim), TreeEntry::End],
            vec![TreeEntry::Skipped { name: "data".into() }, TreeEntry::End],
            vec![TreeEntry::End],
        ];
        for answer in answers {
            let error = copy_from_hostile("/srv/data", &host.home, answer).expect_err("refused");
            assert!(matches!(error, Error::Copy(TreeError::OutOfOrder(_))), "{error}");
        }
        assert_eq!(names(&host.home), [""; 0]);
    }

    #[test]
    fn copy_from_guest_refuses_file_for_directory_source() {
        let host = Host::new();
        for source in ["/srv/data/", "/srv/."] {
            let answer = vec![file("data"), TreeEntry::EndOfFile, TreeEntry::End];
            let error = copy_from_hostile(source, &host.home.join("new"), answer).expect_err("refused");
            assert!(matches!(error, Error::Copy(TreeError::OutOfOrder(_))), "{error}");
        }
        assert_eq!(names(&host.home), [""; 0]);
    }

    #[test]
    fn copy_of_unnamed_source_requires_new_destination() {
        let host = Host::new();
        let answer = || vec![directory("root"), TreeEntry::EndOfDirectory, TreeEntry::End];
        for source in ["/", ".", "..", "", "/srv/.", "/srv/.."] {
            let error = copy_from_hostile(source, &host.home, answer()).expect_err("refused");
            assert!(matches!(error, Error::Copy(TreeError::NameNeeded(_))), "{source}: {error}");
        }
        copy_from_hostile("/srv/.", &host.home.join("new"), answer()).expect("copied");
        assert_eq!(names(&host.home), ["new"]);
    }

    #[test]
    fn links_from_guest_are_not_followed_by_later_copies() {
        let host = Host::new();
        let data = host.home.join("data");
        let first = vec![directory("data"), link("sub", &host.victim), TreeEntry::EndOfDirectory, TreeEntry::End];
        copy_from_hostile("/srv/data", &host.home, first).expect("copied");
        assert_eq!(fs::read_link(data.join("sub")).expect("a link"), host.victim, "links are kept as such");

        // Neither a link in the received tree nor a link in the user's path to it is followed.
        let again = vec![directory("data"), directory("sub"), file("x"), TreeEntry::EndOfFile];
        let error = copy_from_hostile("/srv/data", &host.home, again).expect_err("refused");
        assert!(matches!(error, Error::Copy(TreeError::LinkInTree(_))), "{error}");
        for destination in [data.join("sub"), data.join("sub/"), data.join("sub/x")] {
            let answer = vec![file("x"), TreeEntry::EndOfFile, TreeEntry::End];
            let error = copy_from_hostile("/srv/data/sub/x", &destination, answer).expect_err("refused");
            assert!(matches!(error, Error::Copy(TreeError::MarkedLink(_))), "{error}");
        }
        host.assert_victim_is_untouched();

        // A copy into the guest does not follow the link either.
        fs::write(host.victim.join("secret"), "x").expect("written");
        let error = agent()
            .copy_to_guest(&data.join("sub/secret"), "x".as_ref(), Holes::Keep, &mut |_| {})
            .expect_err("refused");
        assert!(matches!(error, Error::Copy(TreeError::MarkedLink(_))), "{error}");
    }

    #[test]
    fn copy_from_guest_follows_the_users_own_links_to_the_destination() {
        let host = Host::new();
        let place = host.home.join("place");
        fs::create_dir(&place).expect("created");
        symlink("place", host.home.join("own")).expect("linked");
        for (destination, created) in [("own", "motd"), ("own/", "motd"), ("own/new", "new")] {
            let answer = vec![file("motd"), TreeEntry::EndOfFile, TreeEntry::End];
            copy_from_hostile("/etc/motd", &host.home.join(destination), answer).expect("copied");
            assert!(place.join(created).is_file(), "{destination}");
        }
    }

    #[test]
    fn copy_from_guest_applies_the_umask() {
        let host = Host::new();
        let writable_by_all = Attributes { mode: 0o7777, ..ATTRIBUTES };
        let mut tree = TreeWriter::untrusted(&host.home, CopyRequest::new("/srv/data".as_ref(), 0o027));
        for entry in [
            TreeEntry::Directory { name: "data".into(), attributes: writable_by_all },
            TreeEntry::File { name: "f".into(), attributes: writable_by_all },
            TreeEntry::EndOfFile,
            TreeEntry::EndOfDirectory,
            TreeEntry::End,
        ] {
            tree.accept(entry).expect("written");
        }
        let mode = |name: &str| fs::metadata(host.home.join(name)).expect("there").permissions().mode() & 0o7777;
        assert_eq!((mode("data"), mode("data/f")), (0o1750, 0o750));
        // A copy applies the umask of this process.
        let answer = vec![
            TreeEntry::File { name: "motd".into(), attributes: writable_by_all },
            TreeEntry::EndOfFile,
            TreeEntry::End,
        ];
        copy_from_hostile("/etc/motd", &host.home, answer).expect("copied");
        assert_eq!(mode("motd"), 0o777 & !umask());
    }

    #[test]
    fn sparse_file_keeps_its_holes_both_ways() {
        const LENGTH: u64 = 1 << 30;
        let home = tempfile::tempdir().expect("a directory");
        let path = |name: &str| home.path().join(name);
        fs::File::create(path("a")).and_then(|file| file.set_len(LENGTH)).expect("created");
        let holes = agent().ping(Duration::from_secs(60)).expect("answered").holes();
        assert_eq!(holes, Holes::Keep);
        let no_data = &mut |bytes| assert_eq!(bytes, 0, "a hole was sent as data");
        agent().copy_to_guest(&path("a"), path("b").as_os_str(), holes, no_data).expect("copied");
        let no_data = &mut |bytes| assert_eq!(bytes, 0, "a hole was received as data");
        let summary = agent().copy_from_guest(path("b").as_os_str(), &path("c"), holes, no_data).expect("copied");
        assert_eq!(summary.bytes, LENGTH);
        for name in ["b", "c"] {
            let metadata = fs::metadata(path(name)).expect("there");
            assert!(metadata.len() == LENGTH && metadata.blocks() < 1 << 11, "{name}: {metadata:?}");
        }
    }

    /// An agent without support for sparse copies rejects their messages as malformed.
    #[test]
    fn older_agent_gets_requests_without_holes() {
        let older = Facts { agent_version: "0.1.0+resumes".into(), ..facts() };
        assert_eq!(older.holes(), Holes::Fill);
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("sparse");
        fs::File::create(&path).and_then(|file| file.set_len(200_000)).expect("created");

        let (host, guest) = UnixStream::pair().expect("a socket pair");
        let guest = thread::spawn(move || {
            let mut connection = AgentConnection::new(guest.into());
            connection.greet().expect("greeted");
            assert!(matches!(connection.reader.receive().expect("a request"), ToGuest::Write { .. }));
            let mut bytes = 0;
            loop {
                match connection.reader.receive().expect("an entry") {
                    ToGuest::Tree(TreeEntry::Data(data)) => bytes += data.0.len(),
                    ToGuest::Tree(TreeEntry::End) => break,
                    ToGuest::Tree(TreeEntry::File { .. } | TreeEntry::EndOfFile) => {}
                    other => panic!("an older agent does not know {other:?}"),
                }
            }
            connection.writer.send(&ToHost::Copied(Summary::default())).expect("answered");
            bytes
        });
        let agent =
            Agent { connection: AgentConnection::new(host.into()), patience: Duration::from_secs(60), silence: None };
        agent.copy_to_guest(&path, "x".as_ref(), older.holes(), &mut |_| {}).expect("copied");
        assert_eq!(guest.join().expect("no panic"), 200_000);

        let (host, guest) = UnixStream::pair().expect("a socket pair");
        let guest = thread::spawn(move || {
            let mut connection = AgentConnection::new(guest.into());
            connection.greet().expect("greeted");
            assert!(matches!(connection.reader.receive().expect("a request"), ToGuest::Read { .. }));
        });
        let agent =
            Agent { connection: AgentConnection::new(host.into()), patience: Duration::from_secs(60), silence: None };
        agent.copy_from_guest("/x".as_ref(), home.path(), older.holes(), &mut |_| {}).expect_err("the agent exited");
        guest.join().expect("no panic");
    }

    fn facts() -> Facts {
        Facts { hostname: "guest".into(), uptime: Duration::ZERO, agent_version: String::new(), is_init: false }
    }

    #[test]
    fn umask_is_read_from_process_status() {
        assert_eq!(parse_umask("Name:\twisp\nUmask:\t0027\nState:\tR\n"), Some(0o027));
        assert_eq!(parse_umask("Name:\twisp\n"), None);
        let status = fs::read_to_string("/proc/self/status").expect("readable");
        assert!(parse_umask(&status).is_some_and(|umask| umask <= 0o777));
    }

    #[test]
    fn copy_to_guest_and_back_keeps_content() {
        let home = tempfile::tempdir().expect("a directory");
        let path = |name: &str| home.path().join(name);
        std::fs::create_dir(path("a")).expect("created");
        std::fs::write(path("a/f"), vec![b'x'; 200_000]).expect("written");
        let mut sent = 0;
        let summary = agent().copy_to_guest(&path("a"), path("b").as_os_str(), Holes::Keep, &mut |bytes| sent += bytes);
        assert_eq!(summary.expect("copied").bytes, 200_000);
        assert_eq!(sent, 200_000);
        let summary = agent().copy_from_guest(path("b").as_os_str(), &path("c"), Holes::Keep, &mut |_| {});
        assert_eq!(summary.expect("copied").files, 1);
        assert_eq!(std::fs::read(path("c/f")).expect("there").len(), 200_000);

        let error = agent()
            .copy_to_guest(&path("a"), path("no/such").as_os_str(), Holes::Keep, &mut |_| {})
            .expect_err("no such directory");
        assert!(matches!(&error, Error::Guest(message) if message.contains("/no: cannot open")), "{error}");
        let error = agent()
            .copy_to_guest(Path::new("/no/such"), "x".as_ref(), Holes::Keep, &mut |_| {})
            .expect_err("no such file");
        assert!(matches!(error, Error::Copy(_)), "{error}");
    }
}
