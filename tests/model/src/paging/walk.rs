//! Translates an address the way hardware does: through the caches, filling them.

use super::{Caches, Format, Leaf, Slot, Upper, Why, below, shift};
use crate::machine::{Bus, Use, View, Violation};

/// Reads a word the way the unit's walks see it, and checks that it belongs to a table. `None` where there is no
/// memory.
pub(crate) fn load_table(bus: &mut Bus<'_>, address: u64) -> Option<u64> {
    let purpose = bus.memory.purpose(address)?;
    if !matches!(purpose, Use::Table | Use::Firmware) {
        bus.report(Violation::WalkedForeign { unit: bus.unit, address });
    }
    Some(bus.memory.walk_load(bus.unit, address))
}

/// Reads a word like [`load_table`], but does not check that it belongs to a table.
pub(crate) fn read_table(view: View<'_>, address: u64) -> Option<u64> {
    view.memory.exists(address).then(|| view.memory.walk_load(view.unit, address))
}

/// Translates one address of a domain. `root` is its top table.
pub(crate) fn translate(
    format: &impl Format,
    caches: &mut Caches,
    bus: &mut Bus<'_>,
    domain: u16,
    root: Upper,
    iova: u64,
    write: bool,
) -> Result<u64, Why> {
    let finish = |bits: u32, leaf: Leaf| {
        let may = if write { leaf.write } else { leaf.read };
        if may { Ok(leaf.physical | iova & below(bits)) } else { Err(Why::Forbidden) }
    };
    if let Some((bits, leaf)) = caches.leaf(domain, iova) {
        return finish(bits, leaf);
    }
    if let Some(why) = caches.absence(domain, iova) {
        return Err(why);
    }
    let mut at = caches.deepest(domain, iova, shift(root.level)).unwrap_or(root);
    loop {
        let bits = shift(at.level);
        let address = at.table + 8 * (iova >> bits & 511);
        let entry = load_table(bus, address).ok_or(Why::Unreadable)?;
        let fails = |caches: &mut Caches, why| {
            if format.caches_absent() {
                caches.keep_absence(domain, bits, iova, why);
            }
            Err(why)
        };
        match format.decode(entry, at.level) {
            Slot::Absent => return fails(caches, Why::Absent),
            Slot::Reserved => return fails(caches, Why::Reserved),
            Slot::Page { leaf, bits: size } => {
                check_replicas(bus, at.table, address, entry, size.saturating_sub(bits));
                let (read, write) = (leaf.read && at.read, leaf.write && at.write);
                let leaf = Leaf { read, write, ..leaf };
                caches.keep_leaf(domain, size, iova, leaf);
                return finish(size, leaf);
            }
            // A skipped level translates only addresses whose bits for that level are all zero.
            Slot::Table(next) if iova & below(bits) & !below(shift(next.level + 1)) != 0 => {
                return fails(caches, Why::Absent);
            }
            Slot::Table(next) => {
                let (read, write) = (next.read && at.read, next.write && at.write);
                at = Upper { read, write, ..next };
                caches.keep_upper(domain, bits, iova, at);
            }
        }
    }
}

/// Returns where a read of one address leads by the tables below `root` alone.
pub(crate) fn look_up(format: &impl Format, view: View<'_>, root: Upper, iova: u64) -> Option<u64> {
    let mut at = root;
    if iova & !below(shift(root.level + 1)) != 0 {
        return None;
    }
    loop {
        let bits = shift(at.level);
        let entry = read_table(view, at.table + 8 * (iova >> bits & 511))?;
        match format.decode(entry, at.level) {
            Slot::Absent | Slot::Reserved => return None,
            Slot::Page { leaf, bits: size } => {
                return (leaf.read && at.read).then_some(leaf.physical | iova & below(size));
            }
            Slot::Table(next) if iova & below(bits) & !below(shift(next.level + 1)) != 0 => {
                return None;
            }
            Slot::Table(next) => at = Upper { read: next.read && at.read, ..next },
        }
    }
}

/// Checks that all 2^`power` entries of a page are the same.
fn check_replicas(bus: &mut Bus<'_>, table: u64, address: u64, entry: u64, power: u32) {
    let count = 1_u64 << power;
    let first = table + ((address - table) & !(8 * count - 1));
    for at in (0..count).map(|index| first + 8 * index) {
        if bus.memory.exists(at) && bus.memory.walk_load(bus.unit, at) != entry {
            bus.report(Violation::Replicas { unit: bus.unit, address: at });
            return;
        }
    }
}
