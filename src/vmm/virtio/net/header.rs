//! The header before each frame in guest buffers and on a tap: `struct virtio_net_hdr` (specification, section 5.1.6).

/// Length of a header, including `num_buffers`, which every non-legacy device has.
pub const LENGTH: usize = 12;

/// The receiver must compute the checksum from `csum_start` on, and store it `csum_offset` bytes after that.
pub const NEEDS_CSUM: u8 = 1;
/// The checksum was verified and is correct.
pub const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_ECN: u8 = 0x80;

pub type Header = [u8; LENGTH];

/// Header of a plain Ethernet frame in one buffer.
pub const PLAIN: Header = [0, GSO_NONE, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Returns true if the header uses only offered offloads. Consumers must validate its fields against the frame.
pub fn is_offered(header: &Header) -> bool {
    let [flags, gso_type, ..] = *header;
    let is_segmented = gso_type & !GSO_ECN == GSO_TCPV4;
    let size = u16::from_le_bytes([header[4], header[5]]);
    flags & !NEEDS_CSUM == 0 && (gso_type == GSO_NONE || is_segmented && size > 0 && flags & NEEDS_CSUM != 0)
}

/// Sets the number of buffers that hold the frame (section 5.1.6.4).
pub fn with_buffers(mut header: Header, count: u16) -> Header {
    header[10..].copy_from_slice(&count.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_with_unoffered_offload_is_refused() {
        assert!(is_offered(&PLAIN));
        let header = |flags, gso_type, size| [flags, gso_type, 54, 0, size, 0, 34, 0, 16, 0, 0, 0];
        assert!(is_offered(&header(NEEDS_CSUM, GSO_NONE, 0)));
        assert!(is_offered(&header(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 200)));
        assert!(!is_offered(&header(NEEDS_CSUM, GSO_TCPV4, 0)), "segment size of 0");
        assert!(!is_offered(&header(0, GSO_TCPV4, 200)), "segmentation without checksum offload");
        assert!(!is_offered(&header(NEEDS_CSUM, 4, 200)), "IPv6");
        assert!(!is_offered(&header(4, GSO_NONE, 0)));
    }

    #[test]
    fn with_buffers_sets_last_field() {
        assert_eq!(with_buffers(PLAIN, 0x102)[10..], [2, 1]);
    }
}
