//! Disk workload: `O_DIRECT` requests, which bypass the guest's page cache, to an allocated file. Concurrent requests
//! use asynchronous I/O (io_submit(2)), part of every kernel's default configuration.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::Options;
use crate::pages::Memory;
use crate::timing::{Done, Random, begin, repeat};

/// Size of a sequential request in bytes. EBS counts such a request as one operation.
const LONG: usize = 256 << 10;
/// Size of a random request in bytes.
const SHORT: usize = 4 << 10;
/// Maximum time to write the file, and its minimum size: room for all requests in flight.
const PATIENCE: Duration = Duration::from_millis(1500);
const LEAST: u64 = 8 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    random: bool,
    write: bool,
    depth: usize,
}

impl Pattern {
    /// Parses the name of a workload, such as `disk-random-read-32`.
    pub fn of(measure: &str) -> Option<Pattern> {
        let rest = measure.strip_prefix("disk-")?;
        let (random, rest) = rest.strip_prefix("random-").map_or((false, rest), |rest| (true, rest));
        let (write, depth) = match rest.split_once('-')? {
            ("read", depth) => (false, depth),
            ("write", depth) => (true, depth),
            _ => return None,
        };
        Some(Pattern { random, write, depth: depth.parse().ok().filter(|depth| (1..=256).contains(depth))? })
    }

    fn length(self) -> usize {
        if self.random { SHORT } else { LONG }
    }
}

/// Writes as much of the file as `PATIENCE` allows, and at least `LEAST` bytes.
pub fn prepare(options: &Options) -> Result<Done, String> {
    let file = open(options, libc::O_RDWR | libc::O_CREAT)?;
    let mut buffers = Buffers::new(1, LONG)?;
    let (began, mut bytes) = (Instant::now(), 0);
    while bytes < LEAST || bytes < options.bytes && began.elapsed() < PATIENCE {
        transfer(&file, buffers.get(0), bytes, true).map_err(|error| format!("{}: {error}", options.file))?;
        bytes += LONG as u64;
    }
    // SAFETY: the descriptor is open.
    if unsafe { libc::fsync(file.as_raw_fd()) } != 0 {
        return Err(format!("{}: {}", options.file, io::Error::last_os_error()));
    }
    Ok(Done { amount: bytes, elapsed: began.elapsed(), threads: 1, bytes })
}

/// Runs requests of a pattern. Counts the bytes of sequential requests, or the number of random ones.
pub fn run(pattern: Pattern, options: &Options) -> Result<Done, String> {
    let failed = |error: io::Error| format!("{}: {error}", options.file);
    let file = open(options, libc::O_RDWR)?;
    // SAFETY: the descriptor is open, and the call has no pointers.
    let bytes = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
    let bytes = u64::try_from(bytes).map_err(|_| failed(io::Error::last_os_error()))?;
    let length = pattern.length();
    let mut places = Places { count: bytes / length as u64, next: 0, random: pattern.random.then(|| Random::new(7)) };
    if places.count < pattern.depth as u64 {
        return Err(format!("{}: a file of {bytes} bytes is too small", options.file));
    }
    let mut buffers = Buffers::new(pattern.depth, length)?;
    begin()?;
    let done = if pattern.depth == 1 {
        repeat(options.target, |count| {
            (0..count).try_for_each(|_| transfer(&file, buffers.get(0), places.next() * length as u64, pattern.write))
        })
    } else {
        let mut queue =
            Queue::new(pattern.depth).map_err(|error| format!("cannot set up asynchronous I/O: {error}"))?;
        repeat(options.target, |count| queue.run(&file, pattern, count, &mut buffers, &mut places))
    };
    let (operations, elapsed) = done.map_err(failed)?;
    let amount = if pattern.random { operations } else { operations * length as u64 };
    Ok(Done { amount, elapsed, threads: 1, bytes })
}

fn open(options: &Options, flags: i32) -> Result<OwnedFd, String> {
    let path = CString::new(options.file.as_str())
        .map_err(|_| "the value of --file must not contain a NUL byte".to_string())?;
    // SAFETY: the path ends with a zero byte.
    let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_DIRECT | libc::O_CLOEXEC, 0o600) };
    if fd < 0 {
        return Err(format!("cannot open {} with O_DIRECT: {}", options.file, io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn transfer(file: &OwnedFd, buffer: &mut [u8], offset: u64, write: bool) -> io::Result<()> {
    let (fd, offset) = (file.as_raw_fd(), offset.cast_signed());
    // SAFETY: the buffer has this length, and is borrowed exclusively for the call.
    let count = unsafe {
        match write {
            true => libc::pwrite(fd, buffer.as_ptr().cast(), buffer.len(), offset),
            false => libc::pread(fd, buffer.as_mut_ptr().cast(), buffer.len(), offset),
        }
    };
    check(count as i64, buffer.len())
}

/// Fails unless the whole request was transferred.
fn check(result: i64, length: usize) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        count if count == length as i64 => Ok(()),
        count => Err(io::Error::other(format!("transferred only {count} of {length} bytes"))),
    }
}

/// Sequence of request positions, counted in requests from the start of the file.
struct Places {
    count: u64,
    next: u64,
    random: Option<Random>,
}

impl Places {
    fn next(&mut self) -> u64 {
        match &mut self.random {
            Some(random) => random.below(self.count),
            None => {
                let place = self.next;
                self.next = (place + 1) % self.count;
                place
            }
        }
    }
}

/// Request buffers, filled with data that does not compress.
struct Buffers {
    memory: Memory,
    length: usize,
}

impl Buffers {
    fn new(count: usize, length: usize) -> Result<Buffers, String> {
        let mut memory = Memory::get(count * length, 0)?;
        let mut random = Random::new(3);
        memory.words()[..count * length / size_of::<u64>()].iter_mut().for_each(|word| *word = random.next());
        Ok(Buffers { memory, length })
    }

    fn get(&mut self, index: usize) -> &mut [u8] {
        self.memory.piece(index * self.length, self.length)
    }
}

/// `struct iocb` (linux/aio_abi.h), on a little-endian machine.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoRequest {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// `struct io_event` (linux/aio_abi.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// Opcodes `IOCB_CMD_PREAD` and `IOCB_CMD_PWRITE`.
const READ: u16 = 0;
const WRITE: u16 = 1;

struct Queue {
    context: libc::c_ulong,
    requests: Vec<IoRequest>,
    events: Vec<Event>,
}

impl Queue {
    fn new(depth: usize) -> io::Result<Queue> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: `context` is zero and has room for the answer.
        if unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Queue { context, requests: vec![IoRequest::default(); depth], events: vec![Event::default(); depth] })
    }

    /// Completes `count` requests, as many at a time as fit into the queue.
    fn run(
        &mut self,
        file: &OwnedFd,
        pattern: Pattern,
        count: u64,
        buffers: &mut Buffers,
        places: &mut Places,
    ) -> io::Result<()> {
        let depth = self.requests.len();
        let (mut left, mut in_flight) = (count, 0);
        let mut free: Vec<usize> = (0..depth).collect();
        while left > 0 || in_flight > 0 {
            let fresh: Vec<usize> = free.drain(free.len() - free.len().min(left as usize)..).collect();
            for &index in &fresh {
                let buffer = buffers.get(index);
                self.requests[index] = IoRequest {
                    data: index as u64,
                    opcode: if pattern.write { WRITE } else { READ },
                    fd: file.as_raw_fd() as u32,
                    buffer: buffer.as_mut_ptr() as u64,
                    length: buffer.len() as u64,
                    offset: (places.next() * pattern.length() as u64).cast_signed(),
                    ..IoRequest::default()
                };
            }
            left -= fresh.len() as u64;
            self.submit(&fresh)?;
            in_flight += fresh.len();
            let ended = self.wait()?;
            for event in &self.events[..ended] {
                let result = if event.result < 0 { -1 } else { event.result };
                if result < 0 {
                    return Err(io::Error::from_raw_os_error((-event.result) as i32));
                }
                check(result, pattern.length())?;
                free.push(event.data as usize);
            }
            in_flight -= ended;
        }
        Ok(())
    }

    fn submit(&mut self, indices: &[usize]) -> io::Result<()> {
        let mut pointers: Vec<*mut IoRequest> = indices.iter().map(|&index| &raw mut self.requests[index]).collect();
        let mut rest = &mut pointers[..];
        while !rest.is_empty() {
            // SAFETY: each pointer is to a request of this queue, whose buffer outlives it. `run` returns before all
            // are done only with an error, and then the process exits.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.context, rest.len(), rest.as_mut_ptr()) };
            match taken {
                1.. => rest = &mut rest[taken as usize..],
                0 => return Err(io::Error::other("the kernel accepted no request")),
                _ => return Err(io::Error::last_os_error()),
            }
        }
        Ok(())
    }

    /// Waits for at least one request. Returns the number of completed ones.
    fn wait(&mut self) -> io::Result<usize> {
        let (events, none) = (self.events.as_mut_ptr(), std::ptr::null_mut::<libc::timespec>());
        // SAFETY: `events` has room for the requested maximum.
        let ended = unsafe { libc::syscall(libc::SYS_io_getevents, self.context, 1, self.events.len(), events, none) };
        usize::try_from(ended).map_err(|_| io::Error::last_os_error())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: this value owns the context.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn pattern_is_parsed_from_name() {
        let pattern = |random, write, depth| Some(Pattern { random, write, depth });
        assert_eq!(Pattern::of("disk-read-1"), pattern(false, false, 1));
        assert_eq!(Pattern::of("disk-random-write-32"), pattern(true, true, 32));
        for name in ["disk", "disk-read", "disk-read-0", "disk-look-1", "disk-random-1", "integer"] {
            assert_eq!(Pattern::of(name), None, "{name}");
        }
    }

    #[test]
    fn every_pattern_transfers_data() {
        // Not in tmpfs, which does not support `O_DIRECT` on all kernels.
        let directory = env!("CARGO_MANIFEST_DIR");
        let file = format!("{directory}/../../target/workload-{}", std::process::id());
        let target = Duration::from_millis(1);
        let options = Options { target, threads: 1, file: file.clone(), bytes: 16 << 20, port: 0 };
        let prepared = prepare(&options).map(|done| done.amount);
        let names = ["read-1", "write-32", "random-read-32", "random-write-1"];
        let results: Vec<_> = names.map(|name| run(Pattern::of(&format!("disk-{name}")).unwrap(), &options)).into();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(prepared, Ok(16 << 20));
        for (name, result) in names.iter().zip(results) {
            let Ok(done) = result else { panic!("{name}: {:?}", result.err()) };
            assert!(done.amount > 0 && done.bytes == 16 << 20, "{name}");
        }
    }
}
