//! The store of facts: what the next server is to know of sessions, buffers and mappings, in memory that outlives the
//! server.
//!
//! ```text
//! cell 0        "iommufc" and the version of the format, places of a record, commit mark, state
//! 2 records     each has places for cells that change together; commits use them by turns
//! the rest      cells: free, or one fact each
//! ```
//!
//! A commit writes the new content of every cell that it changes into the record whose turn it is, then the mark, then
//! the cells. The mark is one word: the number of the commit and the number of places that its record uses. So the
//! store of the mark is the commit: a server that dies before it has changed nothing, and one that dies after it has
//! changed all, because the reader applies the record again. The record of the commit before is left alone until the
//! mark no longer names it.
//!
//! A commit that changes more cells than a record has places marks the store as void first, and as whole after its last
//! cell. Only a server that dies in between leaves a store that cannot be read.
//!
//! ```text
//! cell    a fact in 32 bytes      store   what the server writes      left   what the next one reads, and its checks
//! ```

mod cell;
mod layout;
mod left;
mod memory;
mod store;
#[cfg(test)]
mod tests;

pub use cell::{CELL_BYTES, Cell};
pub use left::{Left, LostSession, Unreadable, read};
pub use memory::CellMemory;
pub use store::Store;
