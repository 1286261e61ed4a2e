//! The data pointer of a command.

use iommu_client::DmaBlock;

use crate::spec;

/// The data pointer of a command (3.3.3.1, DPTR), and the lists that it points to.
#[derive(Debug)]
pub(crate) struct DataPointer {
    /// Two addresses of pages, or one descriptor.
    pub(crate) words: [u64; 2],
    /// The bits of the command's first word that state which (PSDT).
    pub(crate) kind: u32,
    /// Memory of the lists, until the command has completed.
    pub(crate) lists: Vec<DmaBlock>,
}

impl DataPointer {
    /// Describes one range of addresses, whatever its length, by one descriptor of a scatter-gather list (4.1.2). `None` if
    /// the range is not of whole words of 4 bytes, or too long for a descriptor.
    pub(crate) fn block(iova: u64, length: u64) -> Option<Self> {
        let length = u32::try_from(length).ok()?;
        let whole = iova.is_multiple_of(4) && length.is_multiple_of(4);
        let words = spec::data_block(iova, length);
        whole.then_some(Self { words, kind: spec::SGL, lists: Vec::new() })
    }
}
