//! `domains/N`: what an owner's devices reach. Lines and work are bounded, and no physical address is in it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::{Access, RegionKind};

use crate::hw::{BufferMemory, Unit};
use crate::policy::{DomainId, MappingView, RegionView, SessionId, SessionView, SlotView};
use crate::server::Server;
use crate::topology::capabilities::PageSizes;

/// Most buffers and mappings that one text lists, together.
const MOST_LINES: usize = 512;

/// Most slots that are looked at for one text.
const MOST_SLOTS: usize = 16 * 1024;

/// Most reserved regions that one text lists.
const MOST_REGIONS: usize = 256;

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// The domains of owners, by number.
    pub(super) fn domain_numbers(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> =
            self.registry.session_domains().map(|(_, domain)| domain.0).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// The text of `domains/N`.
    pub(super) fn domain(&self, id: DomainId, out: &mut String) -> fmt::Result {
        let of_it = self.registry.session_domains().filter(|(_, domain)| *domain == id);
        let sessions: Vec<(SessionId, SessionView)> =
            of_it.filter_map(|(id, _)| Some((id, self.registry.session(id)?))).collect();
        let &(first, session) = sessions.first().ok_or(fmt::Error)?;
        let domain = session.domain.ok_or(fmt::Error)?;
        writeln!(out, "domain: {}\ntag: {}", id.0, domain.tag.0)?;
        writeln!(out, "owner: {}", self.owner_words(Some(session.client)))?;
        for (_, session) in &sessions {
            let state = match (session.removed, session.attached) {
                (true, _) => "gone",
                (false, true) => "attached",
                (false, false) => "not attached",
            };
            writeln!(out, "device: {}, {state}", session.address)?;
        }
        let space = domain.space;
        writeln!(out, "addresses: {:#x}-{:#x}", space.first().0, space.last().0)?;
        writeln!(out, "page sizes: {}", sizes(domain.page_sizes))?;
        writeln!(out, "mappings: {}", domain.mappings)?;
        writeln!(out, "iotlb entries: {}", self.footprint_of_domain(id))?;
        self.reserved_lines(first, out)?;
        self.buffer_lines(&sessions, out)?;
        for (range, age) in self.registry.unmapped(id) {
            let (first, last) = (range.first().0, range.last().0);
            writeln!(out, "unmapped: {first:#x}-{last:#x}, {age} ms ago")?;
        }
        Ok(())
    }

    fn reserved_lines(&self, session: SessionId, out: &mut String) -> fmt::Result {
        let regions = self.registry.regions(session);
        let regions: Vec<_> = regions.iter().filter_map(region_words).collect();
        for (RegionView { range, .. }, words) in regions.iter().take(MOST_REGIONS) {
            writeln!(out, "reserved: {:#x}-{:#x} {words}", range.first().0, range.last().0)?;
        }
        match regions.len().checked_sub(MOST_REGIONS) {
            Some(more @ 1..) => writeln!(out, "reserved regions not listed: {more}"),
            _ => Ok(()),
        }
    }

    /// A line for each buffer, with one for each of its mappings behind it.
    fn buffer_lines(&self, sessions: &[(SessionId, SessionView)], out: &mut String) -> fmt::Result {
        let mut lines = MOST_LINES;
        let mut slots = MOST_SLOTS;
        for (session, SessionView { address, .. }) in sessions {
            for slot in self.registry.slots(*session) {
                let Some(left) = slots.checked_sub(1) else { return not_listed(*address, out) };
                slots = left;
                let Some(slot) = slot else { continue };
                if !self.one_buffer(*session, *address, &slot, &mut lines, out)? {
                    return not_listed(*address, out);
                }
            }
        }
        Ok(())
    }

    /// Lists a buffer as long as there are lines left; says whether all of it is listed.
    fn one_buffer(
        &self,
        session: SessionId,
        address: PciAddress,
        buffer: &SlotView,
        lines: &mut usize,
        out: &mut String,
    ) -> Result<bool, fmt::Error> {
        let Some(left) = lines.checked_sub(1) else { return Ok(false) };
        *lines = left;
        let slot = buffer.slot.0;
        write!(out, "buffer: {address} {slot}, {} bytes", buffer.length)?;
        match buffer.reserved {
            Some(range) => {
                writeln!(out, ", grants at {:#x}-{:#x}", range.first().0, range.last().0)?;
            }
            None => writeln!(out)?,
        }
        for mapping in self.registry.mappings(session, buffer.slot) {
            let Some(left) = lines.checked_sub(1) else { return Ok(false) };
            *lines = left;
            write!(out, "mapping: {address} {slot} ")?;
            mapping_words(&mapping, out)?;
        }
        Ok(true)
    }
}

/// A region and its kind in words. The units' registers are left out: they lie where they do in memory.
const fn region_words(region: &RegionView) -> Option<(&RegionView, &'static str)> {
    let words = match region.kind {
        RegionKind::Firmware => "firmware",
        RegionKind::Interrupt => "interrupts",
        RegionKind::Exclusion => "excluded by firmware",
        RegionKind::Registers => return None,
    };
    Some((region, words))
}

fn mapping_words(mapping: &MappingView, out: &mut String) -> fmt::Result {
    let MappingView { range, offset, access } = mapping;
    write!(out, "at {:#x}-{:#x}, ", range.first().0, range.last().0)?;
    match offset {
        Some(offset) => write!(out, "from byte {offset}, ")?,
        None => out.write_str("scattered, ")?,
    }
    out.write_str(match (access.contains(Access::READ), access.contains(Access::WRITE)) {
        (true, true) => "read and write\n",
        (true, false) => "read\n",
        (false, true) => "write\n",
        (false, false) => "nothing\n",
    })
}

fn not_listed(address: PciAddress, out: &mut String) -> fmt::Result {
    writeln!(out, "not listed: buffers and mappings of {address} and of devices after it")
}

fn sizes(sizes: PageSizes) -> String {
    let names = [
        (PageSizes::SIZE_4K, "4 KiB"),
        (PageSizes::SIZE_2M, "2 MiB"),
        (PageSizes::SIZE_1G, "1 GiB"),
    ];
    let held = names.iter().filter(|(size, _)| sizes.contains(*size));
    held.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_pages_are_named_from_the_smallest_on() {
        let all = PageSizes::all();
        assert_eq!(sizes(all), "4 KiB, 2 MiB, 1 GiB");
        assert_eq!(sizes(all.difference(PageSizes::SIZE_2M)), "4 KiB, 1 GiB");
        assert_eq!(sizes(PageSizes::SIZE_4K), "4 KiB");
    }
}
