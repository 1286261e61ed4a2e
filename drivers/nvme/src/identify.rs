//! What a controller says of itself and of its namespaces (5.17.2; NVM Command Set 4.1.5.1).

use crate::admin::Admin;
use crate::error::Error;
use crate::registers::Registers;
use crate::spec::{self, PAGE};

/// The most bytes of one transfer, whatever the controller takes.
const MOST_BYTES: u64 = 4 << 20;

/// What a controller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Serial number.
    pub serial: String,
    /// Model.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// The most bytes of one transfer.
    pub most_bytes: u64,
    /// Namespaces that can be used.
    pub namespaces: Vec<NamespaceInfo>,
}

/// What it says of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Identifier, from 1.
    pub id: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes of a block, a power of two from 512 on.
    pub block_size: u64,
    /// The most blocks of one transfer.
    pub most_blocks: u64,
}

impl Info {
    pub(crate) fn ask<R: Registers>(admin: &mut Admin<R>) -> Result<Self, Error> {
        let page = admin.identify(0, spec::CONTROLLER)?;
        let [transfer] = spec::field(&page, 77);
        let most_bytes = match transfer {
            0 => MOST_BYTES,
            shift => PAGE.checked_shl(shift.into()).unwrap_or(MOST_BYTES).min(MOST_BYTES),
        };
        let list = admin.identify(0, spec::ACTIVE_NAMESPACES)?;
        let (ids, _) = list.as_chunks::<4>();
        let mut namespaces = Vec::new();
        for id in ids.iter().map(|id| u32::from_le_bytes(*id)).take_while(|id| *id != 0) {
            let page = admin.identify(id, spec::NAMESPACE)?;
            namespaces.extend(namespace(&page, id, most_bytes));
        }
        Ok(Self {
            serial: spec::text::<20>(&page, 4),
            model: spec::text::<40>(&page, 24),
            firmware: spec::text::<8>(&page, 64),
            most_bytes,
            namespaces,
        })
    }
}

/// A namespace without metadata and with blocks that fit in a page; `None` for another.
fn namespace(page: &[u8; 4096], id: u32, most_bytes: u64) -> Option<NamespaceInfo> {
    let blocks = u64::from_le_bytes(spec::field(page, 0));
    let [format] = spec::field(page, 26);
    let format: [u8; 4] = spec::field(page, 128 + 4 * usize::from(format & 0xf));
    let [metadata0, metadata1, shift, _] = format;
    let usable = (9..=12).contains(&shift) && (metadata0, metadata1) == (0, 0);
    usable.then(|| {
        let block_size = 1 << shift;
        let most_blocks = (most_bytes / block_size).min(1 << 16);
        NamespaceInfo { id, blocks, block_size, most_blocks }
    })
}
