//! The owner of memory.

use iommu_client::DmaBuffer;

use crate::platform::Mapping;
use crate::pool::Block;

/// Owns memory, which stays mapped as long as this lives.
#[derive(Debug)]
pub(crate) enum Home {
    /// Pages of a chunk.
    Block(Block),
    /// A buffer of the session.
    Buffer(DmaBuffer),
    /// Memory of this process.
    Plain(Mapping),
}

impl Home {
    /// Address of the first byte in this process.
    pub(crate) fn start(&self) -> *mut u8 {
        match self {
            Self::Block(block) => block.start(),
            Self::Buffer(buffer) => buffer.as_ptr(),
            Self::Plain(mapping) => mapping.start(),
        }
    }
}
