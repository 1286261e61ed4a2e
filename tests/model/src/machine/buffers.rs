//! Memory for buffers.

use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::{BufferMemory, BufferPool, Constraints, MemoryError};

use super::{FRAME, Machine, Map, State, Through, Use, Violation};

/// Poison: the last user's bytes, which a buffer's memory still holds in memory behind the caches.
const POISON: u64 = 0xdbdb_dbdb_dbdb_dbdb;

/// The pool of buffer memory. A freed frame is handed out again at once, last in first out.
#[derive(Clone)]
pub(super) struct Pool {
    next: u64,
    end: u64,
    segment: u64,
    free: Vec<u64>,
    /// Bytes added after the start.
    added: u64,
    held: Map<u64, Vec<PhysRange>>,
    allocations: u64,
    fail_from: Option<(u64, u64)>,
}

impl Pool {
    pub(super) fn new((start, length): (u64, u64), segment: u64) -> Self {
        Self {
            next: start,
            end: start + length,
            segment,
            free: Vec::new(),
            added: 0,
            held: Map::default(),
            allocations: 0,
            fail_from: None,
        }
    }

    /// Drops the record of which buffer holds which memory. The memory stays in use.
    pub(super) fn orphan(&mut self) {
        self.held.clear();
    }

    /// Numbers of the buffers whose memory is in use, ascending.
    pub(super) fn in_use(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.held.keys().map(|id| u32::try_from(*id).unwrap()).collect();
        ids.sort_unstable();
        ids
    }

    fn fails(&mut self) -> bool {
        self.allocations += 1;
        let index = self.allocations - 1;
        self.fail_from.is_some_and(|(first, count)| index >= first && index - first < count)
    }

    /// Takes fresh memory. A hole of one frame behind each run keeps segments from joining by chance.
    fn fresh(&mut self, length: u64, alignment: u64) -> Result<u64, MemoryError> {
        let start = self.next.next_multiple_of(alignment.max(FRAME));
        let end = start.checked_add(length).ok_or(MemoryError::Exhausted)?;
        if end > self.end {
            return Err(MemoryError::Exhausted);
        }
        self.next = end + FRAME;
        Ok(start)
    }

    fn segments(
        &mut self,
        length: u64,
        constraints: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError> {
        let range = |start, length| PhysRange::new(PhysAddr(start), length).unwrap();
        if length == 0 || !length.is_multiple_of(FRAME) {
            return Err(MemoryError::Constraints);
        }
        if constraints.contiguous || constraints.boundary != 0 {
            let alignment = constraints.alignment.max(length.next_power_of_two());
            return Ok(vec![range(self.fresh(length, alignment)?, length)]);
        }
        let mut out = Vec::new();
        let mut left = length;
        while left > 0 {
            let recycled = if constraints.alignment > FRAME { None } else { self.free.pop() };
            let (start, piece) = match recycled {
                Some(frame) => (frame, FRAME),
                None => {
                    let piece = left.min(self.segment);
                    let fresh = self.fresh(piece, constraints.alignment);
                    if fresh.is_err() {
                        self.free.extend(out.iter().flat_map(frames));
                    }
                    (fresh?, piece)
                }
            };
            out.push(range(start, piece));
            left -= piece;
        }
        Ok(out)
    }
}

fn frames(range: &PhysRange) -> impl Iterator<Item = u64> + use<> {
    (range.first().0..=range.last().0).step_by(4096)
}

impl State {
    /// Reports every unit through which a device still reaches memory that is being freed.
    fn audit_buffer(&mut self, segments: &[PhysRange]) {
        let returns = self.returns;
        for unit in 0..self.units.len() {
            if !self.audit || !self.units[unit].translating() {
                continue;
            }
            let (device, view) = self.view(unit);
            let mut hits = Vec::new();
            for source in device.sources(view, Through::TablesAndCaches) {
                for run in device.reach(view, source, Through::TablesAndCaches) {
                    if returns && run.iova == run.physical {
                        continue;
                    }
                    let last = run.physical + (run.last - run.iova);
                    let hit = segments.iter().find(|segment| {
                        run.physical <= segment.last().0 && last >= segment.first().0
                    });
                    if let Some(segment) = hit {
                        let how = format!("requester {source:#06x} by {run:x?}");
                        hits.push((segment.first().0, how));
                        break;
                    }
                }
            }
            for (address, how) in hits {
                self.memory.report(Violation::FreedInUse { unit, address, how });
            }
        }
    }
}

/// A client's view of a buffer's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferShare {
    /// The buffer's number.
    pub id: u32,
    /// Its memory, in order.
    pub segments: Vec<PhysRange>,
}

/// `BufferMemory` over a machine.
#[derive(Clone)]
pub struct Buffers {
    machine: Machine,
}

impl Machine {
    /// The memory for buffers.
    #[must_use]
    pub fn buffers(&self) -> Buffers {
        Buffers { machine: self.clone() }
    }

    /// Gives a buffer this memory, as a server elsewhere gave it. Its content stays unknown. False when the buffer has
    /// memory already.
    #[must_use]
    pub fn adopt_buffer(&self, id: u32, segments: Vec<PhysRange>) -> bool {
        self.state().buffers.held.insert(u64::from(id), segments).is_none()
    }

    /// Lets allocations of buffers fail: `count` of them, after `after` more have succeeded.
    pub fn fail_buffer_allocations(&self, after: u64, count: u64) {
        let mut state = self.state();
        let first = state.buffers.allocations + after;
        state.buffers.fail_from = (count > 0).then_some((first, count));
    }

    /// Numbers of the buffers whose memory is in use, ascending.
    #[must_use]
    pub fn buffers_in_use(&self) -> Vec<u32> {
        self.state().buffers.in_use()
    }

    /// Returns the memory of a buffer, in order; empty when there is no such buffer.
    #[must_use]
    pub fn buffer_segments(&self, id: u32) -> Vec<PhysRange> {
        self.state().buffers.held.get(&u64::from(id)).cloned().unwrap_or_default()
    }

    /// A process writes to a buffer it has mapped.
    pub fn share_write(&self, share: &BufferShare, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        for (at, byte) in (offset..).zip(bytes) {
            if let Some(physical) = byte_of(&share.segments, at) {
                state.memory.write_bytes(physical, &[*byte]);
            }
        }
    }

    /// A process reads from a buffer it has mapped.
    #[must_use]
    pub fn share_read(&self, share: &BufferShare, offset: u64, length: u64) -> Vec<u8> {
        let state = self.state();
        let mut out = Vec::new();
        for at in offset..offset + length {
            let mut byte = [0];
            if let Some(physical) = byte_of(&share.segments, at) {
                state.memory.read_bytes(physical, &mut byte);
            }
            out.push(byte[0]);
        }
        out
    }
}

impl Buffers {
    /// Adds system memory (first byte, length) to the pool. Unclaimed devices may no longer reach it.
    pub fn add(&mut self, (start, length): (u64, u64)) {
        let mut state = self.machine.state();
        let frames = (start..start + length).step_by(4096);
        state.buffers.free.extend(frames);
        state.buffers.added += length;
        state.observe();
    }
}

fn byte_of(segments: &[PhysRange], mut offset: u64) -> Option<u64> {
    for segment in segments {
        if offset < segment.length() {
            return Some(segment.first().0 + offset);
        }
        offset -= segment.length();
    }
    None
}

impl BufferMemory for Buffers {
    type Share = BufferShare;

    fn allocate(
        &mut self,
        id: u32,
        length: u64,
        constraints: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError> {
        let mut state = self.machine.state();
        if state.buffers.fails() {
            return Err(MemoryError::Exhausted);
        }
        let segments = state.buffers.segments(length, constraints)?;
        for frame in segments.iter().flat_map(frames) {
            // Clears through the caches only: memory behind them keeps its old content.
            state.memory.fill(frame, POISON);
            state.memory.fill_cached(frame, 0);
            if constraints.written_back {
                (frame..frame + FRAME).step_by(64).for_each(|line| state.memory.clean(line));
            }
            state.memory.set_purpose(frame, Use::Buffer(id));
        }
        let old = state.buffers.held.insert(u64::from(id), segments.clone());
        assert_eq!(old, None, "buffer {id} is in use already");
        Ok(segments)
    }

    fn release(&mut self, id: u32) {
        let mut state = self.machine.state();
        let segments = state.buffers.held.remove(&u64::from(id)).unwrap_or_default();
        state.audit_buffer(&segments);
        for segment in segments {
            // Nobody reads memory that was adopted.
            if state.memory.purpose(segment.first().0) != Some(Use::Buffer(id)) {
                continue;
            }
            for frame in frames(&segment) {
                state.memory.fill(frame, POISON);
                state.memory.set_purpose(frame, Use::Ram);
                state.buffers.free.push(frame);
            }
        }
    }

    /// Each piece of 16 KiB loses one frame behind it; so three quarters count as capacity.
    fn pool(&self) -> BufferPool {
        let state = self.machine.state();
        let capacity = state.layout.buffers.1 / 4 * 3 + state.buffers.added;
        BufferPool { capacity, granule: FRAME }
    }

    fn share(&mut self, id: u32) -> Option<BufferShare> {
        let segments = self.machine.state().buffers.held.get(&u64::from(id)).cloned()?;
        Some(BufferShare { id, segments })
    }
}
