//! The data pointer of a command.

use iommu_client::DmaBlock;

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
