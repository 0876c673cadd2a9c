//! Copies files and directories into a guest and out of it; the rules are [`wisp_agent::tree`]'s.

use std::ffi::OsStr;
use std::path::Path;

use wisp_agent::protocol::{Connection, Fill, FrameReader, MAX_DATA, ProtocolError, ToGuest, ToHost};
use wisp_agent::tree::{self, Entry, Summary, TreeError, TreeWriter};

use super::{Agent, Error};

impl Agent {
    /// Copies the host's `source`, a file or a directory with all in it, to `destination` in the guest.
    ///
    /// An existing directory takes the copy inside it, under the source's name; else the copy gets the
    /// destination's name, in a directory that must exist. A relative destination starts at the agent's
    /// home (`/root`). `progress` is called with the bytes of file contents sent since its last call.
    ///
    /// # Errors
    /// [`Error::Copy`] for the host's files, [`Error::Guest`] for the guest's, each with the path.
    pub fn copy_to_guest(
        mut self,
        source: &Path,
        destination: &OsStr,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Summary, Error> {
        self.begin(&ToGuest::Write { destination: destination.to_owned() })?;
        let Connection { writer, reader } = &mut self.connection;
        let sent = tree::send(source, &mut |entry| {
            if let Entry::Data(data) = &entry {
                progress(data.0.len() as u64);
            }
            writer.queue(&ToGuest::Tree(entry))?;
            if writer.pending() >= MAX_DATA {
                stop_where_refused(reader)?;
                writer.flush()?;
            }
            Ok(())
        });
        // A guest that refuses reads on until it has been heard, but one that ends breaks the pipe:
        // then its last words say more than the pipe does.
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

    /// Copies the guest's `source` to `destination` on the host; as [`copy_to_guest`](Self::copy_to_guest)
    /// the other way round, with `progress` for the bytes received.
    ///
    /// # Errors
    /// As [`copy_to_guest`](Self::copy_to_guest).
    pub fn copy_from_guest(
        mut self,
        source: &OsStr,
        destination: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Summary, Error> {
        self.begin(&ToGuest::Read { source: source.to_owned() })?;
        let mut tree = TreeWriter::new(destination);
        while !tree.is_complete() {
            match self.connection.reader.receive()? {
                ToHost::Tree(entry) => {
                    if let Entry::Data(data) = &entry {
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

/// Looks whether the guest has answered before the end, which it does only to refuse.
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
    use super::*;
    use crate::guest::testing::agent;

    #[test]
    fn what_the_host_copies_to_the_guest_comes_back() {
        let home = tempfile::tempdir().expect("a directory");
        let path = |name: &str| home.path().join(name);
        std::fs::create_dir(path("a")).expect("made");
        std::fs::write(path("a/f"), vec![b'x'; 200_000]).expect("written");
        let mut sent = 0;
        let summary = agent().copy_to_guest(&path("a"), path("b").as_os_str(), &mut |bytes| sent += bytes);
        assert_eq!(summary.expect("copied").bytes, 200_000);
        assert_eq!(sent, 200_000);
        let summary = agent().copy_from_guest(path("b").as_os_str(), &path("c"), &mut |_| {});
        assert_eq!(summary.expect("copied").files, 1);
        assert_eq!(std::fs::read(path("c/f")).expect("there").len(), 200_000);

        let error = agent().copy_to_guest(&path("a"), path("no/such").as_os_str(), &mut |_| {}).expect_err("no place");
        assert!(matches!(&error, Error::Guest(message) if message.contains("/no: cannot open")), "{error}");
        let error = agent().copy_to_guest(Path::new("/no/such"), "x".as_ref(), &mut |_| {}).expect_err("no source");
        assert!(matches!(error, Error::Copy(_)), "{error}");
    }
}
