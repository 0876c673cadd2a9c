//! Copies and digests of sparse files, such as disk images. Holes are neither read nor written.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::space::FreeSpace;

/// The granularity of holes: a page, and a block of most file systems.
pub const BLOCK: usize = 4 << 10;

/// Writes the blocks of `bytes` that are not zero. It skips the others, so `destination` must have holes there.
pub fn write_blocks(destination: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    data_runs(bytes).try_for_each(|run| destination.write_all_at(&bytes[run.clone()], offset + run.start as u64))
}

/// Returns the ranges of blocks that are not zero.
pub fn data_runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = &bytes[start..];
        let skipped: usize = rest.chunks(BLOCK).take_while(|block| is_zero(block)).map(<[u8]>::len).sum();
        let run: usize = rest[skipped..].chunks(BLOCK).take_while(|block| !is_zero(block)).map(<[u8]>::len).sum();
        let data = start + skipped;
        start = data + run;
        (run > 0).then_some(data..start)
    })
}

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

/// Copies `source` into the empty file `destination` and pads it with zeros to `length` bytes. Shares blocks (reflink)
/// if the file system supports it. Otherwise, counts the bytes that it writes against `space`. Reports progress in
/// bytes to `advance`. Returns the SHA-256 of the content.
pub fn copy(
    source: &File,
    destination: &File,
    length: u64,
    space: &FreeSpace,
    advance: &dyn Fn(u64),
) -> io::Result<String> {
    if ioctl_ficlone(destination, source).is_ok() {
        destination.set_len(length)?;
        return sha256(destination, advance);
    }
    destination.set_len(length)?;
    let available = source.metadata()?.len().min(length);
    let mut hasher = Hasher::default();
    walk(source, available, &mut |part| {
        advance(part.length());
        hasher.part(&part);
        match part {
            Part::Hole(_) => Ok(()),
            Part::Data(offset, bytes) => write_blocks_within(destination, offset, bytes, space),
        }
    })?;
    hasher.zeroes(length - available);
    Ok(hasher.finish())
}

/// Like [`write_blocks`], but counts the bytes that it writes against `space`.
pub fn write_blocks_within(destination: &File, offset: u64, bytes: &[u8], space: &FreeSpace) -> io::Result<()> {
    data_runs(bytes).try_for_each(|run| {
        space.take(run.len() as u64)?;
        destination.write_all_at(&bytes[run.clone()], offset + run.start as u64)
    })
}

/// Returns the SHA-256 of a file in hexadecimal. Reports progress in bytes to `advance`.
pub fn sha256(file: &File, advance: &dyn Fn(u64)) -> io::Result<String> {
    let mut hasher = Hasher::default();
    walk(file, file.metadata()?.len(), &mut |part| {
        advance(part.length());
        hasher.part(&part);
        Ok(())
    })?;
    Ok(hasher.finish())
}

/// Writes a stream to an empty file, with holes for zeros. Fails if it exceeds `limit` or `space`. Returns the SHA-256.
pub fn write_stream(content: &mut dyn Read, destination: &File, limit: u64, space: &FreeSpace) -> io::Result<String> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; CHUNK];
    let mut length = 0;
    loop {
        let count = read_full(content, &mut buffer)?;
        if count == 0 {
            break;
        }
        if count as u64 > limit - length {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")));
        }
        hasher.part(&Part::Data(length, &buffer[..count]));
        write_blocks_within(destination, length, &buffer[..count], space)?;
        length += count as u64;
    }
    destination.set_len(length)?;
    Ok(hasher.finish())
}

/// Reads until `buffer` is full or the stream ends.
pub fn read_full(content: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match content.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

enum Part<'a> {
    Hole(u64),
    Data(u64, &'a [u8]),
}

impl Part<'_> {
    fn length(&self) -> u64 {
        match self {
            Part::Hole(length) => *length,
            Part::Data(_, bytes) => bytes.len() as u64,
        }
    }
}

fn walk(file: &File, length: u64, visit: &mut dyn FnMut(Part) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while offset < length {
        let (start, end) = next_data(file, offset, length);
        if start > offset {
            visit(Part::Hole(start - offset))?;
        }
        offset = start;
        while offset < end {
            let chunk = &mut buffer[..(end - offset).min(CHUNK as u64) as usize];
            file.read_exact_at(chunk, offset)?;
            visit(Part::Data(offset, chunk))?;
            offset += chunk.len() as u64;
        }
    }
    Ok(())
}

/// Returns the next range of data from `offset`, or an empty range at `length`.
fn next_data(file: &File, offset: u64, length: u64) -> (u64, u64) {
    let start = data_start(file, offset, length);
    let end = seek(file, SeekFrom::Hole(start)).map_or(length, |end| end.clamp(start, length));
    // A hole that is filled concurrently must not stop the walk.
    (start, if end == start { length } else { end })
}

/// Returns the offset of the first data from `offset` on, or `end` if there is only a hole before `end`.
pub fn data_start(file: &File, offset: u64, end: u64) -> u64 {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start.clamp(offset, end),
        Err(Errno::NXIO) => end,
        // Block devices and some file systems do not report holes: everything is data.
        Err(_) => offset,
    }
}

#[derive(Default)]
struct Hasher(Sha256);

impl Hasher {
    fn part(&mut self, part: &Part) {
        match part {
            Part::Hole(length) => self.zeroes(*length),
            Part::Data(_, bytes) => self.0.update(bytes),
        }
    }

    fn zeroes(&mut self, mut length: u64) {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        while length > 0 {
            let count = length.min(ZEROES.len() as u64);
            self.0.update(&ZEROES[..count as usize]);
            length -= count;
        }
    }

    fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const MIB: usize = 1 << 20;

    fn plain(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A file of data, a hole, data that is not a multiple of the block size, and a hole.
    fn sparse_file() -> (File, Vec<u8>) {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = vec![0; 5 * MIB];
        bytes[10..4000].fill(1);
        bytes[3 * MIB..3 * MIB + 5000].fill(2);
        file.write_all_at(&bytes[..4096], 0).unwrap();
        file.write_all_at(&bytes[3 * MIB..3 * MIB + 5000], 3 * MIB as u64).unwrap();
        file.set_len(5 * MIB as u64).unwrap();
        (file, bytes)
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn copy_is_equal_sparse_and_has_right_digest() {
        let (file, mut bytes) = sparse_file();
        let copied = tempfile::tempfile().unwrap();
        let seen = std::cell::Cell::new(0);
        let digest = copy(&file, &copied, bytes.len() as u64 + 100, &FreeSpace::unwatched(), &|count| {
            seen.set(seen.get() + count)
        })
        .unwrap();
        bytes.extend([0; 100]);
        assert_eq!(content(&copied), bytes);
        assert_eq!(digest, plain(&bytes));
        assert!(seen.get() >= 5 * MIB as u64);
        assert!(copied.metadata().unwrap().blocks() * 512 < MIB as u64);
        assert_eq!(sha256(&copied, &|_| {}).unwrap(), digest);
    }

    #[test]
    fn stream_becomes_sparse_file() {
        let (_, bytes) = sparse_file();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(
            write_stream(&mut bytes.as_slice(), &file, u64::MAX, &FreeSpace::unwatched()).unwrap(),
            plain(&bytes)
        );
        assert_eq!(content(&file), bytes);
        assert!(file.metadata().unwrap().blocks() * 512 < MIB as u64);
    }

    #[test]
    fn stream_over_limit_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(write_stream(&mut [1; 10].as_slice(), &file, 10, &FreeSpace::unwatched()).is_ok());
        assert!(
            write_stream(&mut [1; 11].as_slice(), &file, 10, &FreeSpace::unwatched())
                .unwrap_err()
                .to_string()
                .contains("more than 10")
        );
    }

    #[test]
    fn stream_over_free_space_is_refused() {
        let free = || {
            FreeSpace::measured_by(std::path::Path::new("/"), |written| {
                Ok(super::super::space::RESERVE + 8192 - written)
            })
        };
        let file = tempfile::tempfile().unwrap();
        assert!(write_stream(&mut [1; 8192].as_slice(), &file, u64::MAX, &free()).is_ok());
        let error = write_stream(&mut [1; 8193].as_slice(), &file, u64::MAX, &free()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        // Zeros take no space.
        assert!(write_stream(&mut [0; 1 << 20].as_slice(), &tempfile::tempfile().unwrap(), u64::MAX, &free()).is_ok());
    }

    #[test]
    fn empty_file_has_digest_of_no_bytes() {
        assert_eq!(sha256(&tempfile::tempfile().unwrap(), &|_| {}).unwrap(), plain(b""));
    }
}
