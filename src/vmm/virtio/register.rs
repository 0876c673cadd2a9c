//! Register offsets of the MMIO transport (specification, table 4.1).

/// Reads as "virt" in ASCII.
pub const MAGIC_VALUE: u64 = 0x000;
/// Reads as 2. A legacy device would have 1.
pub const VERSION: u64 = 0x004;
pub const DEVICE_ID: u64 = 0x008;
pub const VENDOR_ID: u64 = 0x00c;
/// Half of the offered feature bits, as selected by [`DEVICE_FEATURES_SEL`].
pub const DEVICE_FEATURES: u64 = 0x010;
/// Selects the low (0) or high (1) half for [`DEVICE_FEATURES`].
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// Half of the feature bits that the driver accepts, as selected by [`DRIVER_FEATURES_SEL`].
pub const DRIVER_FEATURES: u64 = 0x020;
/// Selects the low (0) or high (1) half for [`DRIVER_FEATURES`].
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// Selects the queue that the other queue registers refer to.
pub const QUEUE_SEL: u64 = 0x030;
pub const QUEUE_NUM_MAX: u64 = 0x034;
pub const QUEUE_NUM: u64 = 0x038;
/// Set to 1 by the driver once it has configured the queue.
pub const QUEUE_READY: u64 = 0x044;
/// Notifies the device of new buffers in a queue.
pub const QUEUE_NOTIFY: u64 = 0x050;
pub const INTERRUPT_STATUS: u64 = 0x060;
pub const INTERRUPT_ACK: u64 = 0x064;
pub const STATUS: u64 = 0x070;
pub const QUEUE_DESC_LOW: u64 = 0x080;
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// Address of the available ring.
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// Address of the used ring.
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// Selects a shared memory region. No device here has one.
pub const SHM_SEL: u64 = 0x0ac;
/// Changes with every configuration change.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// Start of the device's configuration space.
pub const CONFIG: u64 = 0x100;
