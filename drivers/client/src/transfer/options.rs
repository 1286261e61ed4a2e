//! How a queue is made, and the directions of its transfers.

use iommu_protocol::wire::Access;

use crate::buffer::PAGE;

/// Who reads and who writes the memory of a transfer. The device gets no other access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads the memory.
    ToDevice,
    /// The device writes the memory.
    FromDevice,
}

impl Direction {
    /// The only access that the device has.
    #[must_use]
    pub const fn access(self) -> Access {
        match self {
            Self::ToDevice => Access::READ,
            Self::FromDevice => Access::WRITE,
        }
    }
}

/// What a device finds behind a transfer that does not fill its last page. A unit confines by whole pages, and the
/// pages of a slot have no other user; so it is the rest of the slot's own page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exposure {
    /// The rest of the page as it is: bytes of earlier transfers of that slot.
    Pages,
    /// Zeros: nothing but the bytes of the transfer.
    #[default]
    Bytes,
}

/// The memory of a queue, and how exact its grants are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferOptions {
    /// Slots, one for each transfer. A slot that is handed in for its revoke is free only after the flush, which grants
    /// the next transfers too. So twice the depth of the device's queue keeps that full.
    pub slots: usize,
    /// The longest transfer, in bytes; rounded up to whole pages.
    pub slot_bytes: u64,
    /// What the device finds behind a transfer.
    pub exposure: Exposure,
    /// The device takes addresses of 4 GiB and more.
    pub above_4g: bool,
}

impl Default for TransferOptions {
    /// 64 slots of 4096 bytes below 4 GiB, exact to the byte.
    fn default() -> Self {
        Self { slots: 64, slot_bytes: PAGE, exposure: Exposure::default(), above_4g: false }
    }
}
