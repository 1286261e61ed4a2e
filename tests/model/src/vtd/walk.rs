//! Decodes entries (VT-d 4.1 chapters 3, 7 and 9, legacy mode).

use super::bits::{self, reason};
use super::config::Config;
use crate::machine::{Bus, Violation};
use crate::paging::{Format, Leaf, Slot, Upper, below, load_table, shift};

/// A cached context entry. With caching mode also an absent or faulty one.
#[derive(Clone, Copy, Debug)]
pub(super) struct CachedContext {
    pub(super) entry: Result<Context, Fault>,
    /// The domain id that invalidates it: 0 for absent or faulty entries.
    pub(super) tag: u16,
}

/// A decoded present context entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) domain: u16,
    pub(super) no_faults: bool,
    pub(super) target: Target,
}

/// The target of a context entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A page table.
    Table { root: u64, levels: u8 },
    /// Memory, untranslated.
    Pass,
}

/// A fault before it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: u16,
    /// Fault processing is disabled for it.
    pub(super) silent: bool,
}

impl Fault {
    pub(super) const fn loud(reason: u16) -> Self {
        Self { reason, silent: false }
    }
}

/// Reads one 64-bit word of a table.
pub(super) type Load<'a> = dyn FnMut(u64) -> Option<u64> + 'a;

/// Finds the entry of `source` in the tables below `root`.
pub(super) fn find_context(
    config: &Config,
    root: u64,
    source: u16,
    load: &mut Load<'_>,
) -> Result<([u64; 2], Context), Fault> {
    let [bus, devfn] = source.to_be_bytes().map(u64::from);
    let mut pair = |at: u64| Some([load(at)?, load(at + 8)?]);
    let [low, high] = pair(root + 16 * bus).ok_or(Fault::loud(reason::ROOT_TABLE_ACCESS))?;
    if low & bits::PRESENT == 0 {
        return Err(Fault::loud(reason::ROOT_ABSENT));
    }
    // Section 9.1: bits 11:1, above the host address width, and the second word are reserved.
    if low & 0xffe != 0 || low & !below(config.host_width) != 0 || high != 0 {
        return Err(Fault::loud(reason::ROOT_RESERVED));
    }
    let table = low & bits::ADDRESS;
    let entry = pair(table + 16 * devfn).ok_or(Fault::loud(reason::CONTEXT_TABLE_ACCESS))?;
    Ok((entry, decode_context(config, entry)?))
}

/// Decodes a context entry (section 9.3).
pub(super) fn decode_context(config: &Config, [low, high]: [u64; 2]) -> Result<Context, Fault> {
    let no_faults = low & bits::NO_FAULTS != 0;
    let fault = |reason| Fault { reason, silent: no_faults };
    if low & bits::PRESENT == 0 {
        return Err(fault(reason::CONTEXT_ABSENT));
    }
    // Low word: bits 11:4 and above the host address width; high word: bit 7 and bits 63:24.
    let reserved = low & 0xff0 | low & !below(config.host_width) | high & !0xff_ff7f;
    if reserved != 0 {
        return Err(Fault::loud(reason::CONTEXT_RESERVED));
    }
    let domain = u16::try_from(high >> 8 & 0xffff).unwrap() & domain_mask(config);
    // AW: 1 for 39 bits (3 levels), 2 for 48 (4), 3 for 57 (5).
    let levels = u8::try_from(high & 7).unwrap() + 2;
    if !config.levels.contains(&levels) {
        return Err(fault(reason::CONTEXT_INVALID));
    }
    let target = match low >> 2 & 3 {
        0 => Target::Table { root: low & bits::ADDRESS, levels },
        1 if config.device_tlb => Target::Table { root: low & bits::ADDRESS, levels },
        2 if config.pass_through && config.levels.iter().max() == Some(&levels) => Target::Pass,
        _ => return Err(fault(reason::CONTEXT_INVALID)),
    };
    Ok(Context { domain, no_faults, target })
}

/// Mask of the domain id bits that the unit distinguishes.
pub(super) fn domain_mask(config: &Config) -> u16 {
    u16::try_from(below(u32::from(config.domain_bits))).unwrap()
}

/// Decodes an entry found at `level` (1: maps 4 KiB; section 9.8).
fn decode_slot(config: &Config, entry: u64, level: u8) -> Slot {
    let (read, write) = (entry & bits::READ != 0, entry & bits::WRITE != 0);
    if !read && !write {
        return Slot::Absent;
    }
    let large = entry & bits::LARGE != 0;
    let allowed = match level {
        2 => config.large_2m,
        3 => config.large_1g,
        _ => false,
    };
    let leaf = level == 1 || large;
    let mut reserved = bits::ADDRESS & !below(config.host_width);
    if large && !allowed {
        reserved |= bits::LARGE;
    }
    if leaf {
        reserved |= below(shift(level)) & bits::ADDRESS;
    }
    if !leaf || !config.snoop_control {
        reserved |= bits::SNOOP;
    }
    if !leaf || !config.device_tlb {
        reserved |= bits::TRANSIENT;
    }
    // Bits 10:8, 61:52 and 63 are ignored. Bits 6:2 gained meanings in later revisions and in scalable mode.
    // Legacy-mode units of the first revisions reserve them.
    reserved |= 0x7c;
    if entry & reserved != 0 {
        Slot::Reserved
    } else if leaf {
        // Section 3.6: with SNP an access snoops whatever its No Snoop attribute is.
        let snoops = entry & bits::SNOOP != 0;
        let leaf = Leaf { physical: entry & bits::ADDRESS, read, write, snoops };
        Slot::Page { leaf, bits: shift(level) }
    } else {
        Slot::Table(Upper { table: entry & bits::ADDRESS, level: level - 1, read, write })
    }
}

impl Format for Config {
    fn decode(&self, entry: u64, level: u8) -> Slot {
        decode_slot(self, entry, level)
    }

    fn caches_absent(&self) -> bool {
        self.caching_mode
    }
}

impl super::Vtd {
    /// Returns the context entry of `source`, from the cache or from memory, and caches it.
    pub(super) fn context(&mut self, bus: &mut Bus<'_>, source: u16) -> Result<Context, Fault> {
        if let Some(cached) = self.contexts.get(&source) {
            return cached.entry;
        }
        let mut load = |at| load_table(bus, at);
        let found = find_context(&self.config, self.root, source, &mut load);
        if let Ok((entry, context)) = found {
            self.check_domain(bus, source, entry, context);
        }
        let entry = found.map(|(_, context)| context);
        if entry.is_ok() || self.config.caching_mode {
            let tag = entry.map_or(0, |context| context.domain);
            self.contexts.insert(source, CachedContext { entry, tag });
        }
        entry
    }

    /// Checks rules on domain ids that hardware does not enforce (sections 9.3 and 6.1).
    fn check_domain(&self, bus: &mut Bus<'_>, source: u16, entry: [u64; 2], context: Context) {
        let unit = bus.unit;
        if entry[1] >> 8 & 0xffff & !u64::from(domain_mask(&self.config)) != 0 {
            let rule = "the domain id is wider than CAP.ND says";
            bus.report(Violation::Entry { unit, source, entry, rule });
        }
        if context.domain == 0 && self.config.caching_mode {
            let rule = "domain id 0 is reserved with CAP.CM";
            bus.report(Violation::Entry { unit, source, entry, rule });
        }
    }
}
