//! What the next server reads, and its checks.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use iommu_protocol::ids::PciAddress;

use super::cell::{Cell, decode, number_of};
use super::layout::{FORMAT, Layout, MARK, PLACES, STATE, VOID, unmark};
use super::memory::CellMemory;
use crate::policy::{ClientId, MappingFact, ObjectFact, SessionFact, SessionId, SlotFact};

/// A session that an earlier server had open when it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostSession {
    /// The device.
    pub device: PciAddress,
    /// The client.
    pub client: ClientId,
    /// Whether the device was attached.
    pub attached: bool,
    /// Buffers in its slots, and their bytes.
    pub buffers: u32,
    /// Bytes of these buffers.
    pub buffer_bytes: u64,
    /// Mappings and grants.
    pub mappings: u32,
    /// Bytes of these mappings.
    pub mapped_bytes: u64,
}

/// What an earlier server left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Number of its commits.
    pub commits: u64,
    /// Facts that it had no room for.
    pub missed: u64,
    /// Its sessions, by device.
    pub sessions: Vec<LostSession>,
}

/// Why a store cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The first word is that of another format or version.
    Format(u64),
    /// A record has another number of places, or the mark names more of them than there are.
    Places(u64),
    /// The server ended in a commit that was too large for a record.
    Void,
    /// The checksum of a cell is wrong, or it holds no fact.
    Damaged(u32),
    /// The session of a slot, or the slot of a mapping, is not there.
    Orphan(u32),
    /// An object is there twice.
    Twice(u32),
    /// A mapping ends behind its buffer.
    Beyond(u32),
    /// Two mappings of a session overlap at this address.
    Overlap(u64),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(word) => write!(f, "format {word:#x} is not known"),
            Self::Places(places) => write!(f, "{places} places of a record do not fit"),
            Self::Void => f.write_str("it was being rewritten"),
            Self::Damaged(cell) => write!(f, "cell {cell} is damaged"),
            Self::Orphan(cell) => write!(f, "the parent of cell {cell} is missing"),
            Self::Twice(cell) => write!(f, "the object of cell {cell} is there twice"),
            Self::Beyond(cell) => write!(f, "the mapping of cell {cell} ends behind its buffer"),
            Self::Overlap(iova) => write!(f, "two mappings overlap at {iova:#x}"),
        }
    }
}

/// Reads what an earlier server left; `None` when there was none. Changes nothing.
///
/// # Errors
/// The store cannot be relied on.
pub fn read(memory: &dyn CellMemory) -> Result<Option<Left>, Unreadable> {
    let [format, ..] = memory.read(0);
    match format {
        0 => return Ok(None),
        FORMAT => {}
        other => return Err(Unreadable::Format(other)),
    }
    let header = memory.read(0);
    let layout = Layout::of(memory.count());
    let (places, state) = (header[PLACES], header[STATE]);
    if places == 0 || places != u64::from(layout.places) {
        return Err(Unreadable::Places(places));
    }
    if state & VOID != 0 {
        return Err(Unreadable::Void);
    }
    let (commits, count) = unmark(header[MARK]);
    let redone = record(memory, layout, (commits, count))?;
    let mut facts = Facts::default();
    for number in layout.first..layout.end {
        let cell = redone.get(&number).copied().unwrap_or_else(|| memory.read(number));
        let fact = decode(&cell, number).map_err(|_| Unreadable::Damaged(number))?;
        fact.map_or(Ok(()), |fact| facts.add(number, fact))?;
    }
    Ok(Some(Left { commits, missed: state, sessions: facts.sessions(state > 0)? }))
}

/// The cells of the last commit, which may not all have been written.
fn record(
    memory: &dyn CellMemory,
    layout: Layout,
    (commit, count): (u64, u64),
) -> Result<BTreeMap<u32, Cell>, Unreadable> {
    let count = u32::try_from(count).ok().filter(|count| *count <= layout.places);
    let count = count.ok_or(Unreadable::Places(u64::from(layout.places)))?;
    let first = layout.record_of(commit);
    let cells = (first..first + count).map(|place| {
        let cell = memory.read(place);
        let number = number_of(&cell).map_err(|_| Unreadable::Damaged(place))?;
        let inside = (layout.first..layout.end).contains(&number);
        if inside { Ok((number, cell)) } else { Err(Unreadable::Damaged(place)) }
    });
    cells.collect()
}

/// All facts, with their cells.
#[derive(Default)]
struct Facts {
    sessions: BTreeMap<SessionId, SessionFact>,
    slots: BTreeMap<u32, (u32, SlotFact)>,
    mappings: Vec<(u32, MappingFact)>,
}

impl Facts {
    fn add(&mut self, cell: u32, fact: ObjectFact) -> Result<(), Unreadable> {
        let twice = match fact {
            ObjectFact::Session(fact) => self.sessions.insert(fact.session, fact).is_some(),
            ObjectFact::Slot(fact) => self.slots.insert(fact.record, (cell, fact)).is_some(),
            ObjectFact::Mapping(fact) => {
                self.mappings.push((cell, fact));
                false
            }
        };
        if twice { Err(Unreadable::Twice(cell)) } else { Ok(()) }
    }

    /// Counts what each session has. Where facts were missed, some have no parent.
    fn sessions(self, missed: bool) -> Result<Vec<LostSession>, Unreadable> {
        let lost = |fact: &SessionFact| LostSession {
            device: fact.device,
            client: fact.client,
            attached: fact.attached,
            buffers: 0,
            buffer_bytes: 0,
            mappings: 0,
            mapped_bytes: 0,
        };
        let mut sessions: BTreeMap<_, _> =
            self.sessions.iter().map(|(id, fact)| (*id, lost(fact))).collect();
        for (cell, slot) in self.slots.values() {
            let Some(session) = sessions.get_mut(&slot.session) else {
                orphan(*cell, missed)?;
                continue;
            };
            session.buffers += 1;
            session.buffer_bytes = session.buffer_bytes.saturating_add(slot.length);
        }
        let mut ranges = Vec::with_capacity(self.mappings.len());
        for (cell, mapping) in &self.mappings {
            let Some((_, slot)) = self.slots.get(&mapping.record) else {
                orphan(*cell, missed)?;
                continue;
            };
            let length = mapping.range.length();
            let end = mapping.offset.saturating_add(length);
            if !mapping.list && end > slot.length {
                return Err(Unreadable::Beyond(*cell));
            }
            if let Some(session) = sessions.get_mut(&slot.session) {
                session.mappings += 1;
                session.mapped_bytes = session.mapped_bytes.saturating_add(length);
            }
            ranges.push((slot.session, mapping.range.first().0, mapping.range.last().0));
        }
        check_apart(ranges)?;
        let mut sessions: Vec<_> = sessions.into_values().collect();
        sessions.sort_by_key(|session| session.device);
        Ok(sessions)
    }
}

/// Refuses a cell without its parent, unless facts were missed.
const fn orphan(cell: u32, missed: bool) -> Result<(), Unreadable> {
    if missed { Ok(()) } else { Err(Unreadable::Orphan(cell)) }
}

/// Checks that no two mappings of a session overlap.
fn check_apart(mut ranges: Vec<(SessionId, u64, u64)>) -> Result<(), Unreadable> {
    ranges.sort_unstable();
    for (before, after) in ranges.iter().zip(ranges.iter().skip(1)) {
        if before.0 == after.0 && before.2 >= after.1 {
            return Err(Unreadable::Overlap(after.1));
        }
    }
    Ok(())
}
