//! Fuzz target for the balloon: the driver's requests, and requests of the host for statistics.

use super::Balloon;
use crate::virtio::fuzzing::drive;

pub fn requests(data: &[u8]) {
    let mut device = Balloon::new().expect("out of file descriptors");
    let control = device.control();
    drive(&mut device, data, &mut |_| {
        control.statistics();
        control.request_statistics();
    });
}
