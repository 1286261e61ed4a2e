//! Physical memory in frames of 4096 bytes, each seen twice: as the CPU sees it and as it stands in memory.
//! A store changes the CPU's view; memory follows when the cache line is cleaned (or evicted).

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use super::Violation;

/// Bytes of a frame.
pub const FRAME: u64 = 4096;
/// 64-bit words of a frame.
pub const WORDS: usize = 512;
/// 64-bit words of a cache line of 64 bytes.
const LINE: usize = 8;

/// The purpose of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// System memory.
    Ram,
    /// A table, ring or status word of the server.
    Table,
    /// A frame of table memory that the server freed or never took.
    FreeTable,
    /// Tables of the units' previous owner.
    Firmware,
    /// Part of the buffer with this number.
    Buffer(u32),
}

static NOTHING: [u64; WORDS] = [0; WORDS];

#[derive(Clone)]
struct Frame {
    cpu: [u64; WORDS],
    memory: [u64; WORDS],
    purpose: Use,
}

/// How a unit sees memory.
#[derive(Clone)]
struct View {
    coherent: bool,
    /// Old values that the unit still sees of words written since the last write-buffer flush. `None` for a unit
    /// without a write buffer.
    buffered: Option<Map<u64, u64>>,
}

/// When stored cache lines reach memory without a `clean`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// Never: only `clean` writes them back. Exposes a missing clean.
    Never,
    /// With a chance of one in two at each store, from this seed. Exposes stores in an unsafe order.
    Random(u64),
}

/// Hashes addresses. The standard hasher costs more than the rest of a walk.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }
}

/// A map keyed by addresses.
pub type Map<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// All physical memory.
#[derive(Clone)]
pub struct Memory {
    /// Frames are shared with copies of the machine's state until written.
    frames: Map<u64, Rc<Frame>>,
    ram: Vec<(u64, u64)>,
    views: Vec<View>,
    eviction: Eviction,
    pub(super) violations: Vec<Violation>,
}

impl Memory {
    /// Memory that exists in the given ranges (first byte, length in bytes).
    #[must_use]
    pub fn new(ram: Vec<(u64, u64)>) -> Self {
        Self {
            frames: Map::default(),
            ram,
            views: Vec::new(),
            eviction: Eviction::Never,
            violations: Vec::new(),
        }
    }

    /// Adds the view of the next unit.
    pub(super) fn add_view(&mut self, coherent: bool, write_buffer: bool) {
        self.views.push(View { coherent, buffered: write_buffer.then(Map::default) });
    }

    /// Sets when lines are evicted.
    pub fn set_eviction(&mut self, eviction: Eviction) {
        self.eviction = eviction;
    }

    /// Whether there is memory at `address`.
    #[must_use]
    pub fn exists(&self, address: u64) -> bool {
        self.ram.iter().any(|(start, length)| address >= *start && address - start < *length)
    }

    fn frame(&mut self, address: u64) -> Option<&mut Frame> {
        if !self.exists(address) {
            return None;
        }
        let new = || Rc::new(Frame { cpu: [0; WORDS], memory: [0; WORDS], purpose: Use::Ram });
        Some(Rc::make_mut(self.frames.entry(address / FRAME).or_insert_with(new)))
    }

    /// Returns the purpose of the frame around `address`; `None` where there is no memory.
    #[must_use]
    pub fn purpose(&self, address: u64) -> Option<Use> {
        self.exists(address)
            .then(|| self.frames.get(&(address / FRAME)).map_or(Use::Ram, |frame| frame.purpose))
    }

    /// Whether the frame around `address` belongs to the table memory.
    #[must_use]
    pub(super) fn serves_tables(&self, address: u64) -> bool {
        matches!(self.purpose(address), Some(Use::Table | Use::FreeTable))
    }

    /// Sets the purpose of a frame.
    pub fn set_purpose(&mut self, address: u64, purpose: Use) {
        if let Some(frame) = self.frame(address) {
            frame.purpose = purpose;
        }
    }

    /// Fills a frame with `value`, in the CPU's view and in memory.
    pub fn fill(&mut self, address: u64, value: u64) {
        if let Some(frame) = self.frame(address) {
            frame.cpu = [value; WORDS];
            frame.memory = [value; WORDS];
        }
        for view in &mut self.views {
            if let Some(buffered) = view.buffered.as_mut().filter(|buffered| !buffered.is_empty()) {
                let first = address / FRAME * FRAME;
                for word in (first..first + FRAME).step_by(8) {
                    buffered.remove(&word);
                }
            }
        }
    }

    /// Fills a frame with `value` in the CPU's view only. Units that do not snoop keep seeing the old content.
    pub fn fill_cached(&mut self, address: u64, value: u64) {
        if let Some(frame) = self.frame(address) {
            frame.cpu = [value; WORDS];
        }
    }

    /// The word at `address` (a multiple of 8) as the CPU sees it; all ones where there is no memory.
    #[must_use]
    pub fn cpu_load(&self, address: u64) -> u64 {
        if !self.exists(address) {
            return u64::MAX;
        }
        self.frames.get(&(address / FRAME)).map_or(0, |frame| frame.cpu[word(address)])
    }

    /// The word at `address` as it stands in memory.
    #[must_use]
    pub fn memory_load(&self, address: u64) -> u64 {
        if !self.exists(address) {
            return u64::MAX;
        }
        self.frames.get(&(address / FRAME)).map_or(0, |frame| frame.memory[word(address)])
    }

    /// Stores a word from the CPU.
    pub fn cpu_store(&mut self, address: u64, value: u64) {
        let Some(frame) = self.frame(address) else { return };
        let old = std::mem::replace(&mut frame.cpu[word(address)], value);
        self.buffer(address, old, true);
        if self.evicts() {
            self.clean(address);
        }
    }

    fn evicts(&mut self) -> bool {
        let Eviction::Random(seed) = &mut self.eviction else { return false };
        // xorshift64 (Marsaglia 2003).
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed & 1 == 1
    }

    /// Writes the cache line around `address` to memory.
    pub fn clean(&mut self, address: u64) {
        let Some(frame) = self.frame(address) else { return };
        let line = word(address) / LINE * LINE;
        let mut changed = Vec::new();
        for index in line..line + LINE {
            if frame.memory[index] != frame.cpu[index] {
                changed.push((index, frame.memory[index]));
                frame.memory[index] = frame.cpu[index];
            }
        }
        let base = address & !(FRAME - 1);
        for (index, old) in changed {
            self.buffer(base + 8 * u64::try_from(index).unwrap(), old, false);
        }
    }

    /// Keeps the old value of a changed word for units with a write buffer.
    fn buffer(&mut self, address: u64, old: u64, coherent: bool) {
        for view in self.views.iter_mut().filter(|view| view.coherent == coherent) {
            if let Some(buffered) = &mut view.buffered {
                buffered.entry(address & !7).or_insert(old);
            }
        }
    }

    /// Empties the write buffer in front of a unit.
    pub fn flush_write_buffer(&mut self, unit: usize) {
        if let Some(buffered) = &mut self.views[unit].buffered {
            buffered.clear();
        }
    }

    /// The word at `address` (a multiple of 8) as the page walks of a unit see it; all ones where there
    /// is no memory.
    #[must_use]
    pub fn walk_load(&self, unit: usize, address: u64) -> u64 {
        let view = &self.views[unit];
        if let Some(old) = view.buffered.as_ref().and_then(|words| words.get(&address)) {
            return *old;
        }
        if view.coherent { self.cpu_load(address) } else { self.memory_load(address) }
    }

    /// A whole frame as the page walks of a unit see it; `None` where there is no memory.
    #[must_use]
    pub fn walk_frame(&self, unit: usize, address: u64) -> Option<Cow<'_, [u64]>> {
        if !self.exists(address) {
            return None;
        }
        let view = &self.views[unit];
        let Some(frame) = self.frames.get(&(address / FRAME)) else {
            return Some(Cow::Borrowed(&NOTHING));
        };
        let words = if view.coherent { &frame.cpu } else { &frame.memory };
        match &view.buffered {
            Some(buffered) if !buffered.is_empty() => {
                let mut words = words.to_vec();
                for (at, old) in buffered.iter().filter(|(at, _)| *at / FRAME == address / FRAME) {
                    words[word(*at)] = *old;
                }
                Some(Cow::Owned(words))
            }
            _ => Some(Cow::Borrowed(words)),
        }
    }

    /// A whole frame as it stands in memory; `None` where there is no memory.
    #[must_use]
    pub fn unsnooped_frame(&self, address: u64) -> Option<Cow<'_, [u64]>> {
        let frame = || self.frames.get(&(address / FRAME)).map_or(&NOTHING, |frame| &frame.memory);
        self.exists(address).then(|| Cow::Borrowed(&frame()[..]))
    }

    /// Stores like a device's DMA or a unit's status write, which snoop. The line is written back first.
    pub fn snooped_store(&mut self, address: u64, value: u64) {
        self.clean(address);
        let Some(frame) = self.frame(address) else { return };
        frame.cpu[word(address)] = value;
        frame.memory[word(address)] = value;
        for view in &mut self.views {
            if let Some(buffered) = &mut view.buffered {
                buffered.remove(&(address & !7));
            }
        }
    }

    /// Writes bytes like a device.
    pub fn write_bytes(&mut self, address: u64, bytes: &[u8]) {
        for (at, byte) in (address..).zip(bytes) {
            let shift = at % 8 * 8;
            let old = self.cpu_load(at & !7);
            self.snooped_store(at & !7, old & !(0xff << shift) | u64::from(*byte) << shift);
        }
    }

    /// Reads bytes like a device or the CPU.
    pub fn read_bytes(&self, address: u64, out: &mut [u8]) {
        for (at, byte) in (address..).zip(out) {
            *byte = self.cpu_load(at & !7).to_le_bytes()[usize::try_from(at % 8).unwrap()];
        }
    }

    /// Reads bytes from memory behind the caches, like a device's read that does not snoop.
    pub fn read_unsnooped(&self, address: u64, out: &mut [u8]) {
        for (at, byte) in (address..).zip(out) {
            *byte = self.memory_load(at & !7).to_le_bytes()[usize::try_from(at % 8).unwrap()];
        }
    }

    /// Records a broken rule.
    pub fn report(&mut self, violation: Violation) {
        if self.violations.len() < 1000 {
            self.violations.push(violation);
        }
    }

    /// Returns the first word in which a frame differs from `before`: index, old value, new value.
    #[must_use]
    pub(super) fn differs(&self, before: &Self, address: u64) -> Option<(usize, u64, u64)> {
        let key = address / FRAME;
        let (now, then) = (self.frames.get(&key), before.frames.get(&key));
        if let (Some(now), Some(then)) = (now, then)
            && Rc::ptr_eq(now, then)
        {
            return None;
        }
        let now = now.map_or(&NOTHING, |frame| &frame.cpu);
        let then = then.map_or(&NOTHING, |frame| &frame.cpu);
        (0..WORDS).find(|at| now[*at] != then[*at]).map(|at| (at, then[at], now[at]))
    }

    /// The words of a frame as the CPU sees them.
    #[must_use]
    pub fn content(&self, address: u64) -> Vec<u64> {
        self.frames.get(&(address / FRAME)).map_or(vec![0; WORDS], |frame| frame.cpu.to_vec())
    }

    /// Returns the first word of a frame that is not 0 for the CPU.
    #[must_use]
    pub fn nonzero(&self, address: u64) -> Option<(usize, u64)> {
        let frame = self.frames.get(&(address / FRAME))?;
        let find = |words: &[u64; WORDS]| {
            words.iter().enumerate().find(|(_, word)| **word != 0).map(|(at, word)| (at, *word))
        };
        find(&frame.cpu)
    }
}

fn word(address: u64) -> usize {
    usize::try_from(address % FRAME / 8).unwrap()
}
