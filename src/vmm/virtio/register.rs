//! Register offsets of the MMIO transport (specification, table 4.1).

/// "virt" in ASCII.
pub const MAGIC_VALUE: u64 = 0x000;
/// 2: not a legacy device.
pub const VERSION: u64 = 0x004;
/// What the device is.
pub const DEVICE_ID: u64 = 0x008;
/// Who made it.
pub const VENDOR_ID: u64 = 0x00c;
/// 32 of the features offered.
pub const DEVICE_FEATURES: u64 = 0x010;
/// Which 32.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// 32 of the features taken.
pub const DRIVER_FEATURES: u64 = 0x020;
/// Which 32.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// Which queue the queue registers mean.
pub const QUEUE_SEL: u64 = 0x030;
/// The queue's largest size.
pub const QUEUE_NUM_MAX: u64 = 0x034;
/// The queue's size.
pub const QUEUE_NUM: u64 = 0x038;
/// Whether the queue is in use.
pub const QUEUE_READY: u64 = 0x044;
/// "There are new buffers in this queue."
pub const QUEUE_NOTIFY: u64 = 0x050;
/// Why there was an interrupt.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// Which of it was seen.
pub const INTERRUPT_ACK: u64 = 0x064;
/// The device's status.
pub const STATUS: u64 = 0x070;
/// Descriptor table, low half; the high half follows.
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// See [`QUEUE_DESC_LOW`].
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// Available ring.
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// See [`QUEUE_DRIVER_LOW`].
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// Used ring.
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// See [`QUEUE_DEVICE_LOW`].
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// Shared memory region selector; no device here has one, so its length reads as all ones.
pub const SHM_SEL: u64 = 0x0ac;
/// Changes whenever the configuration does.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// The device's configuration space begins here.
pub const CONFIG: u64 = 0x100;
