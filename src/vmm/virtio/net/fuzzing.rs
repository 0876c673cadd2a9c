//! Fuzz targets for the network device: the driver's rings and frames, and the frames of a user-mode network.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::{Backend, Net};
use crate::virtio::fuzzing::drive;
use machine::config::NetConfig;

pub fn frames(data: &[u8]) {
    let (near, mut far) = UnixStream::pair().expect("cannot create a socket pair");
    far.set_nonblocking(true).expect("cannot make the socket nonblocking");
    let bits = data.first().copied().unwrap_or(0);
    let services = (bits & 8 == 0).then(|| netstack::fuzzing::config(bits >> 4 & 7));
    let backend = Backend::of(OwnedFd::from(near)).expect("cannot use the socket as a backend");
    let config = NetConfig { mac: netstack::fuzzing::GUEST, mtu: 1500, link: None, limits: None };
    let mut net = Net::new(&config, backend, services, None).expect("out of file descriptors");
    let mut sink = [0; 4096];
    drive(&mut net, data, &mut |bytes| {
        while far.read(&mut sink).is_ok_and(|count| count > 0) {}
        // The write fails if the device has hung up or is not reading.
        let _ = far.write(bytes);
    });
    // With the peer still open, the device would wait for the rest of a partial frame.
    drop(far);
}
