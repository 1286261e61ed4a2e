//! A controller's description of itself and of its namespaces (5.17.2; NVM Command Set 4.1.5.1).

use crate::admin::Admin;
use crate::error::Error;
use crate::registers::Registers;
use crate::spec::{self, PAGE};

/// The most pages of one transfer, as a power of two, even if the controller takes more.
const MOST_PAGES: u8 = 10;

/// A controller's description of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Serial number.
    pub serial: String,
    /// Model.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// The most bytes of one transfer, 8192 to 4 MiB.
    pub most_bytes: u64,
    /// It takes scatter-gather lists for requests.
    pub sgl: bool,
    /// Namespaces that can be used.
    pub namespaces: Vec<NamespaceInfo>,
}

/// A controller's description of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Identifier, from 1.
    pub id: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes of a block, a power of two, 512 to 4096.
    pub block_size: u64,
    /// The most blocks of one transfer, 1 to 65536.
    pub most_blocks: u64,
    /// Its controller takes scatter-gather lists.
    pub sgl: bool,
}

impl Info {
    pub(crate) fn ask<R: Registers>(admin: &mut Admin<R>) -> Result<Self, Error> {
        let page = admin.identify(0, spec::CONTROLLER)?;
        let [transfer] = spec::field(&page, 77);
        // MDTS: a power of two, in the smallest pages; 0 for no limit.
        let most_bytes = PAGE << if transfer == 0 { MOST_PAGES } else { transfer.min(MOST_PAGES) };
        // SGLS, bits 1:0: without limits, or in whole words of 4 bytes.
        let sgl = matches!(u32::from_le_bytes(spec::field(&page, 536)) & 3, 1 | 2);
        let list = admin.identify(0, spec::ACTIVE_NAMESPACES)?;
        let (ids, _) = list.as_chunks::<4>();
        let mut namespaces = Vec::new();
        for id in ids.iter().map(|id| u32::from_le_bytes(*id)).take_while(|id| *id != 0) {
            let page = admin.identify(id, spec::NAMESPACE)?;
            namespaces.extend(namespace(&page, id, most_bytes, sgl));
        }
        Ok(Self {
            serial: spec::text::<20>(&page, 4),
            model: spec::text::<40>(&page, 24),
            firmware: spec::text::<8>(&page, 64),
            most_bytes,
            sgl,
            namespaces,
        })
    }
}

/// A namespace without metadata, with blocks that fit in a page. `None` for any other, and for one whose bytes 64
/// bits cannot count.
fn namespace(page: &[u8; 4096], id: u32, most_bytes: u64, sgl: bool) -> Option<NamespaceInfo> {
    let blocks = u64::from_le_bytes(spec::field(page, 0));
    let [format] = spec::field(page, 26);
    let format: [u8; 4] = spec::field(page, 128 + 4 * usize::from(format & 0xf));
    let [metadata0, metadata1, shift, _] = format;
    if !(9..=12).contains(&shift) || (metadata0, metadata1) != (0, 0) {
        return None;
    }
    let block_size = 1 << shift;
    blocks.checked_mul(block_size)?;
    let most_blocks = (most_bytes / block_size).min(1 << 16);
    Some(NamespaceInfo { id, blocks, block_size, most_blocks, sgl })
}
