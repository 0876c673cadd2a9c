//! Fuzz targets for the vsock device: the driver's packets, and clients and servers on the host.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::Vsock;
use crate::virtio::fuzzing::drive;
use machine::config::VsockConfig;
use netstack::broker;

/// The host port with a listener.
const PORT: u32 = 80;

pub fn packets(data: &[u8]) {
    let dir = tempfile::tempdir().expect("cannot create a directory");
    let (path, seed) = (dir.path().join("v"), dir.path().join("seed"));
    fs::write(&seed, b"a seed").expect("cannot write the seed");
    let server = UnixListener::bind(dir.path().join(format!("v_{PORT}"))).expect("cannot bind the socket");
    server.set_nonblocking(true).expect("cannot make the socket nonblocking");
    let config = VsockConfig { cid: 3, seed: Some(seed) };
    let connector = broker::in_thread(None, Some(path.clone())).vsock;
    let mut device = Vsock::new(&config, &path, connector).expect("cannot create the device");
    let mut streams: Vec<UnixStream> = Vec::new();
    let mut sink = [0; 4096];
    drive(&mut device, data, &mut |bytes| {
        streams.extend(server.accept().map(|(stream, _)| stream));
        let (which, bytes) = bytes.split_first().map_or((0, bytes), |(which, rest)| (*which, rest));
        if which & 0x80 != 0 {
            streams.extend(UnixStream::connect(&path));
        }
        let count = streams.len().max(1);
        let Some(stream) = streams.get_mut(usize::from(which & 0x1f) % count) else { return };
        let _ = stream.set_nonblocking(true).and_then(|()| stream.write(bytes));
        if which & 0x40 != 0 {
            let _ = stream.read(&mut sink);
        }
        if which & 0x20 != 0 {
            drop(streams.swap_remove(usize::from(which & 0x1f) % count));
        }
    });
}
