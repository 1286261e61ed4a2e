//! A unit in words, for `units/N`.

use core::fmt::{self, Write};

use super::spec::register::{INTERRUPT_REMAPPING, QUEUE, TRANSLATION};
use super::unit::VtdUnit;
use crate::hw::hal::{Clock, RegisterIo, TableMemory};
use crate::hw::unit::Unit;
use crate::topology::capabilities::{LevelSet, PageSizes};

const fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

impl<R: RegisterIo, C: Clock, M: TableMemory> VtdUnit<R, C, M> {
    /// See [`Unit::describe`].
    pub(super) fn write_description(&mut self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "architecture version {}.{}", self.version >> 4 & 0xf, self.version & 0xf)?;
        match self.port.status() {
            Ok(status) => {
                writeln!(out, "translation on: {}", yes(status & TRANSLATION != 0))?;
                writeln!(out, "invalidation queue on: {}", yes(status & QUEUE != 0))?;
                let remapping = yes(status & INTERRUPT_REMAPPING != 0);
                writeln!(out, "interrupt remapping on: {remapping}")?;
            }
            Err(error) => writeln!(out, "status: {error}")?,
        }
        self.write_capabilities(out)
    }

    fn write_capabilities(&self, out: &mut dyn Write) -> fmt::Result {
        let unit = self.capabilities();
        let capability = self.capability;
        write!(out, "page table levels:")?;
        let depths = [(LevelSet::THREE, 3), (LevelSet::FOUR, 4), (LevelSet::FIVE, 5)];
        for (_, depth) in depths.iter().filter(|(set, _)| unit.levels.contains(*set)) {
            write!(out, " {depth}")?;
        }
        write!(out, "\npage sizes: 4 KiB")?;
        if unit.page_sizes.contains(PageSizes::SIZE_2M) {
            write!(out, ", 2 MiB")?;
        }
        if unit.page_sizes.contains(PageSizes::SIZE_1G) {
            write!(out, ", 1 GiB")?;
        }
        writeln!(out, "\naddress width: {} bits in, {} out", unit.iova_bits, unit.physical_bits)?;
        writeln!(out, "domain tags: 1 to {}", unit.last_tag)?;
        writeln!(out, "walks tables through caches: {}", yes(unit.coherent))?;
        writeln!(out, "makes devices snoop: {}", yes(unit.forces_snoop))?;
        writeln!(out, "caches absent entries: {}", yes(unit.caches_absent))?;
        writeln!(out, "needs write buffer flushes: {}", yes(capability.write_buffer()))?;
        writeln!(out, "pass-through: {}", yes(unit.pass_through))?;
        match capability.page_selective() {
            true => writeln!(out, "invalidates pages: up to 2^{}", capability.max_mask())?,
            false => writeln!(out, "invalidates pages: no, whole domains only")?,
        }
        writeln!(out, "fault records: {}", capability.fault_count())
    }
}
