//! Units that work until the input makes them fail. Then a register returns any value, a wait does not complete, or
//! the unit writes anything to its logs and status words. The driver must not panic, hang, or write to memory that is
//! not its own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use iommu_protocol::ids::RequesterId;
use iommud::addr::{Iova, IovaRange, PhysAddr, PhysRange};
use iommud::hw::amdvi::{AmdUnit, Capability};
use iommud::hw::vtd::VtdUnit;
use iommud::hw::{
    Clock, Entry, HardwareFault, MemoryError, Nanos, RegisterIo, TableMemory, Unit, UnitError,
};
use iommud::topology::capabilities::DomainTag;
use iommud::topology::firmware::{EntryRange, UnitDescription, UnitKind};

use super::Bytes;

/// Address of the first frame.
const BASE: u64 = 0x10_0000;
/// Number of frames. A device table takes 512.
const FRAMES: u64 = 768;
/// Words of a frame.
const WORDS: usize = 512;
/// Faults taken in one call.
const LIMIT: usize = 16;

/// The parts of a vendor's unit that a driver waits for. Offsets and bits come from the specifications: VT-d 4.1
/// section 10.4, 48882 rev 3.10 section 3.4.
struct Vendor {
    /// Register that holds the base of the invalidation queue or command ring.
    queue: u32,
    /// Bytes of the queue, computed from that register.
    size: fn(u64) -> u64,
    /// Registers that hold its tail and its head, in bytes.
    pointers: (u32, u32),
    /// Registers that hold the bases of logs that the unit fills. Bits 59:56 are the length as a power of two of 16
    /// bytes.
    logs: &'static [u32],
    /// Registers that do not start at 0, and their values.
    initial: &'static [(u32, u64)],
    /// Returns the address and the value that a wait command stores, if the two words of a command are a wait.
    wait: fn(u64, u64) -> Option<(u64, u64)>,
    /// A status register, the control register that it follows, and the conversion.
    status: (u32, u32, fn(u64) -> u64),
}

/// GSTS (1ch) follows GCMD (18h) bit for bit. CAP and ECAP are those of QEMU's unit with 48 bits. Wait
/// descriptors have type 5; SW is bit 5, status data are bits 63:32 (section 6.5.2.8).
const VTD: Vendor = Vendor {
    queue: 0x90,
    size: |base| 4096 << (base & 7),
    pointers: (0x88, 0x80),
    logs: &[],
    initial: &[(0x00, 0x10), (0x08, 0x00d2_008c_222f_0686), (0x10, 0x00f0_0f5a)],
    wait: |low, high| (low & 0x2f == 0x25).then_some((high & !3, low >> 32)),
    status: (0x1c, 0x18, |command| command),
};

/// Status (2020h) shows the running parts: commands (bit 4), events (3), page requests (7), controlled by bits 12, 2
/// and 13 of 18h. COMPLETION_WAIT has opcode 1 in bits 63:60; S is bit 0, the address bits 51:3 (section 2.4.1).
const AMDVI: Vendor = Vendor {
    queue: 0x08,
    size: |base| 16 << (base >> 56 & 0xf),
    pointers: (0x2008, 0x2000),
    logs: &[0x10, 0x38],
    initial: &[(0x30, 0x29d3)],
    wait: |low, high| (low >> 60 == 1 && low & 1 != 0).then_some((low & 0xf_ffff_ffff_fff8, high)),
    status: (0x2020, 0x18, |control| {
        (control >> 12 & 1) << 4 | (control >> 2 & 1) << 3 | (control >> 13 & 1) << 7
    }),
};

/// The machine of a hostile unit.
struct Machine<'a> {
    vendor: &'static Vendor,
    input: Bytes<'a>,
    words: Vec<u64>,
    next: u64,
    now: u64,
    /// The last value written to each register.
    registers: BTreeMap<u32, u64>,
    queue: u64,
    /// Status words of pending waits, and the values that mean completion.
    waits: Vec<(u64, u64)>,
    /// Logs: first address and words.
    logs: Vec<(u64, u64)>,
}

impl Machine<'_> {
    fn place(&self, frame: PhysAddr, index: usize) -> Option<usize> {
        let number = frame.0.checked_sub(BASE)? / 4096;
        let used = frame.is_aligned(4096) && number < self.next && index < WORDS;
        used.then(|| usize::try_from(number).unwrap() * WORDS + index)
    }

    fn word(&mut self, address: u64) -> &mut u64 {
        let index = usize::try_from(address % 4096 / 8).unwrap();
        let place = self.place(PhysAddr(address & !4095), index);
        &mut self.words[place.unwrap_or_else(|| panic!("the unit was sent to {address:#x}"))]
    }

    /// Lets the unit act at an access of the driver, correctly or with any fault that it could have. Returns the
    /// value that a register reads as, if it is a wrong one.
    fn act(&mut self) -> Option<u64> {
        let choice = self.input.byte();
        if choice & 1 == 0 {
            for (address, value) in std::mem::take(&mut self.waits) {
                *self.word(address) = value;
            }
        }
        if choice & 2 != 0 && !self.logs.is_empty() {
            let [log, low, high] = self.input.take();
            let (base, words) = self.logs[usize::from(log) % self.logs.len()];
            let value = u64::from_le_bytes(self.input.take());
            *self.word(base + u64::from(u16::from_le_bytes([low, high])) % words * 8) = value;
        }
        if choice & 4 != 0
            && let Some((address, _)) = self.waits.first().copied()
        {
            *self.word(address) = u64::from_le_bytes(self.input.take());
        }
        (choice & 8 != 0).then(|| u64::from_le_bytes(self.input.take()))
    }

    fn read(&mut self, offset: u32) -> u64 {
        self.act().unwrap_or_else(|| {
            let (status, control, follows) = self.vendor.status;
            let (tail, head) = self.vendor.pointers;
            let written = |register| self.registers.get(&register).copied().unwrap_or(0);
            match offset {
                _ if offset == status => follows(written(control)),
                _ if offset == head => written(tail),
                _ => written(offset),
            }
        })
    }

    fn written(&mut self, offset: u32, value: u64) {
        self.registers.insert(offset, value);
        let base = value & 0xf_ffff_ffff_f000;
        if offset == self.vendor.queue {
            self.queue = base;
        } else if self.vendor.logs.contains(&offset) {
            self.logs.push((base, 2 << (value >> 56 & 0xf)));
        } else if offset == self.vendor.pointers.0 {
            self.last_command(value);
        }
        self.act();
    }

    /// Records the last command before the tail, if it is a wait.
    fn last_command(&mut self, tail: u64) {
        let size = (self.vendor.size)(self.registers.get(&self.vendor.queue).copied().unwrap_or(0));
        let at = self.queue + tail.checked_sub(16).unwrap_or(size - 16);
        // The driver may drain the previous owner's queue before it installs its own.
        let index = usize::try_from(at % 4096 / 8).unwrap();
        if let Some(place) = self.place(PhysAddr(at & !4095), index) {
            self.waits.extend((self.vendor.wait)(self.words[place], self.words[place + 1]));
        }
    }
}

#[derive(Clone)]
struct Seam<'a>(Rc<RefCell<Machine<'a>>>);

impl<'a> Seam<'a> {
    fn new(vendor: &'static Vendor, input: Bytes<'a>) -> Self {
        let words = vec![0; usize::try_from(FRAMES).unwrap() * WORDS];
        let (waits, logs) = (Vec::new(), Vec::new());
        let registers = vendor.initial.iter().copied().collect();
        let (next, now, queue) = (0, 0, 0);
        let machine = Machine { vendor, input, words, next, now, registers, queue, waits, logs };
        Self(Rc::new(RefCell::new(machine)))
    }
}

impl RegisterIo for Seam<'_> {
    fn read32(&mut self, offset: u32) -> u32 {
        let [a, b, c, d, ..] = self.0.borrow_mut().read(offset).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    fn read64(&mut self, offset: u32) -> u64 {
        self.0.borrow_mut().read(offset)
    }

    fn write32(&mut self, offset: u32, value: u32) {
        self.0.borrow_mut().written(offset, value.into());
    }

    fn write64(&mut self, offset: u32, value: u64) {
        self.0.borrow_mut().written(offset, value);
    }
}

impl Clock for Seam<'_> {
    fn now(&mut self) -> Nanos {
        Nanos(self.0.borrow().now)
    }

    /// Passes a tenth of a second, so that no wait takes long.
    fn relax(&mut self) {
        self.0.borrow_mut().now += 100_000_000;
    }
}

/// Frames. They are never reused: a hostile unit may keep their addresses.
struct Frames<'a> {
    machine: Seam<'a>,
    /// The counter of page tables; units have none.
    counter: u16,
}

impl TableMemory for Frames<'_> {
    fn allocate(&mut self) -> Result<PhysAddr, MemoryError> {
        self.allocate_run(1)
    }

    fn allocate_run(&mut self, count: usize) -> Result<PhysAddr, MemoryError> {
        let mut machine = self.machine.0.borrow_mut();
        let count = u64::try_from(count).unwrap();
        let first = machine.next.next_multiple_of(count);
        if first + count > FRAMES {
            return Err(MemoryError::Exhausted);
        }
        machine.next = first + count;
        Ok(PhysAddr(BASE + first * 4096))
    }

    fn free(&mut self, frame: PhysAddr, _: bool) {
        assert!(self.machine.0.borrow().place(frame, 0).is_some(), "{frame:?} freed");
    }

    /// A driver may look where a register points for an earlier driver's tables; it reads zeros.
    fn load(&self, frame: PhysAddr, index: usize) -> u64 {
        let machine = self.machine.0.borrow();
        machine.place(frame, index).map_or(0, |place| machine.words[place])
    }

    fn store(&mut self, frame: PhysAddr, index: usize, value: u64) {
        let mut machine = self.machine.0.borrow_mut();
        let place = machine.place(frame, index);
        machine.words[place.unwrap_or_else(|| panic!("store to {frame:?} {index}"))] = value;
    }

    fn clean(&mut self, frame: PhysAddr, first: usize, count: usize) {
        assert!(self.machine.0.borrow().place(frame, first).is_some() && first + count <= WORDS);
    }

    fn live(&mut self, _: PhysAddr) -> &mut u16 {
        &mut self.counter
    }

    fn frames_in_use(&self) -> usize {
        usize::try_from(self.machine.0.borrow().next).unwrap()
    }

    fn frames_free(&self) -> usize {
        usize::try_from(FRAMES - self.machine.0.borrow().next).unwrap()
    }
}

/// Brings up a VT-d unit, then runs operations chosen by the input.
pub fn vtd(data: &[u8]) {
    let _ = run_vtd(data);
}

/// The same as [`vtd`]. Returns the number of successful operations.
///
/// # Errors
/// The unit did not come up.
pub fn run_vtd(data: &[u8]) -> Result<usize, UnitError> {
    let seam = Seam::new(&VTD, Bytes(data));
    let mut memory = Frames { machine: seam.clone(), counter: 0 };
    // 39 bits when the input byte is zero.
    let bits = seam.0.borrow_mut().input.byte() ^ 39;
    let unit = VtdUnit::bring_up(seam.clone(), seam.clone(), &mut memory, bits)?;
    Ok(use_unit(&seam, unit, &mut memory))
}

/// Brings up an AMD-Vi unit, then runs operations chosen by the input.
pub fn amdvi(data: &[u8]) {
    let _ = run_amdvi(data);
}

/// The same as [`amdvi`]. Returns the number of successful operations.
///
/// # Errors
/// The unit did not come up.
pub fn run_amdvi(data: &[u8]) -> Result<usize, UnitError> {
    let mut input = Bytes(data);
    let [flags, with_features, with_capability] = input.take::<3>();
    let features = (with_features & 1 == 0).then(|| u64::from_le_bytes(input.take()) ^ 0x29d3);
    let registers = PhysRange::new(PhysAddr(0xfeb8_0000), 0x4000).unwrap();
    let capability = (with_capability & 1 != 0).then(|| {
        let mut next = || u32::from_le_bytes(input.take());
        let (header, low, miscellaneous) = (next(), next(), next());
        // A capability with another base address would be rejected, and most inputs would end here.
        Capability::new(header, 0xfeb8_0000 | low & 1, 0, miscellaneous)
    });
    let mut entries = Vec::new();
    for _ in 0..input.byte() % 4 {
        let [a, b] = [u16::from_le_bytes(input.take()), u16::from_le_bytes(input.take())];
        let alias = RequesterId(u16::from_le_bytes(input.take()));
        let (first, last) = (RequesterId(a.min(b)), RequesterId(a.max(b)));
        entries.push(EntryRange { first, last, alias: Some(alias), settings: input.byte() });
    }
    let function = RequesterId(2);
    let kind = UnitKind::AmdVi { function, capability: 0x40, flags, features };
    let description = UnitDescription {
        kind,
        segment: 0,
        registers: Ok(registers),
        include_all: false,
        scopes: Vec::new(),
        entries,
    };
    let seam = Seam::new(&AMDVI, input);
    let mut memory = Frames { machine: seam.clone(), counter: 0 };
    let (registers, clock) = (seam.clone(), seam.clone());
    let unit = AmdUnit::bring_up(registers, clock, &mut memory, &description, capability)?;
    Ok(use_unit(&seam, unit, &mut memory))
}

fn use_unit<'a, U: Unit<Memory = Frames<'a>>>(
    seam: &Seam<'a>,
    mut unit: U,
    memory: &mut Frames<'a>,
) -> usize {
    let capabilities = unit.capabilities();
    assert!(!capabilities.levels.is_empty());
    let mut done = 0;
    while !seam.0.borrow().input.is_empty() {
        let chosen = seam.0.borrow_mut().input.take();
        match operate(&mut unit, memory, capabilities.last_tag, chosen) {
            Ok(()) => done += 1,
            // After a failure the engine only reads the unit's faults.
            Err(UnitError::Timeout { .. } | UnitError::Queue { .. } | UnitError::Dead) => {
                let _ = faults(&mut unit, memory);
                return done;
            }
            Err(UnitError::Memory(_) | UnitError::Unsupported { .. }) => {}
        }
    }
    done
}

fn operate<M: TableMemory, U: Unit<Memory = M>>(
    unit: &mut U,
    memory: &mut M,
    last_tag: u16,
    [operation, low, high, pages]: [u8; 4],
) -> Result<(), UnitError> {
    let source = RequesterId(u16::from_le_bytes([low, high]));
    let tag = DomainTag(u16::from(low).max(1).min(last_tag));
    let start = Iova(u64::from(high) << 21);
    let range = IovaRange::new(start, (u64::from(pages) + 1) << 12).unwrap();
    let translate = Entry::Translate { tag, root: PhysAddr(BASE), levels: 3 + pages % 4 };
    match operation % 8 {
        0 => unit.enable(memory),
        1 => unit.write_entry(memory, source, translate),
        2 => unit.invalidate_entry(memory, source, (pages & 1 != 0).then_some(tag)),
        3 => unit.publish_pages(memory, tag, range),
        4 => unit.invalidate_pages(memory, tag, range, pages & 1 != 0),
        5 => unit.write_entry(memory, source, Entry::Blocked),
        6 => faults(unit, memory),
        _ => describe(unit),
    }
}

fn faults<M: TableMemory, U: Unit<Memory = M>>(
    unit: &mut U,
    memory: &mut M,
) -> Result<(), UnitError> {
    let mut count = 0;
    let mut sink = |fault: HardwareFault| {
        assert!(!fault.words.is_empty() && fault.words.len() <= iommu_protocol::fault::WORDS_SIZE);
        count += 1;
    };
    let result = unit.take_faults(memory, LIMIT, &mut sink);
    assert!(count <= LIMIT);
    result.map(drop)
}

fn describe<U: Unit>(unit: &mut U) -> Result<(), UnitError> {
    let mut text = String::new();
    unit.describe(&mut text).unwrap();
    assert!(!text.is_empty());
    Ok(())
}
