//! Entry points of the fuzz targets in `fuzz/`; see `docs/fuzzing.md`. No input may cause a panic. This module is
//! compiled for tests, which replay the inputs in `fuzz/corpus` and mutations of them, and for the feature `fuzzing`.

use node::guest;

/// Defines each target's function and test.
macro_rules! targets {
    ($($name:ident: $($entry:ident)::+,)+) => {
        $(
            #[doc = concat!("Runs the target `", stringify!($name), "`.")]
            pub fn $name(data: &[u8]) {
                $($entry)::+(data);
            }
        )+

        #[cfg(test)]
        mod tests {
            $(
                #[test]
                fn $name() {
                    super::replay::all(stringify!($name), super::$name);
                }
            )+

            #[test]
            fn every_corpus_and_program_is_a_target() {
                super::replay::are_complete(&[$(stringify!($name)),+]);
            }
        }
    };
}

targets! {
    link_frames: netstack::fuzzing::frames,
    link_http: netstack::fuzzing::http,
    block_requests: vmm::virtio::block::fuzzing::requests,
    block_images: vmm::virtio::block::fuzzing::images,
    net_frames: vmm::virtio::net::fuzzing::frames,
    vsock_packets: vmm::virtio::vsock::fuzzing::packets,
    rng_requests: vmm::virtio::fuzzing::rng,
    balloon_requests: vmm::virtio::balloon::fuzzing::requests,
    virtio_registers: vmm::virtio::fuzzing::registers,
    boot_kernel: vmm::boot::fuzzing::kernel,
    ports: vmm::devices::fuzzing::ports,
    snapshot_state: vmm::snapshot::fuzzing::state,
    snapshot_device: vmm::snapshot::fuzzing::device,
    agent_frames: guest::fuzzing::frames,
    agent_host: guest::fuzzing::host,
    import_manifest: node::fuzzing::manifest,
    import_archive: node::fuzzing::archive,
    ec2_words: ec2::fuzzing::words,
    api_requests: api::fuzzing::requests,
}

#[cfg(test)]
mod replay;
