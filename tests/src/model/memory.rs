//! Buffer memory that a client in this process and the devices of a software unit share. Each buffer is a file of its
//! own, with invented physical addresses.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use iommud::addr::{PhysAddr, PhysRange};
use iommud::hw::{BufferMemory, BufferPool, Constraints, MemoryError};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::machine::{FRAME, Machine, Through, Violation};

/// Bytes of the longest piece of a non-contiguous buffer.
const PIECE: u64 = 16 << 10;

/// File lengths are multiples of this many bytes, like those of huge pages. So a process maps more than its device
/// reaches.
const WHOLE: u64 = 2 << 20;

/// Numbers files throughout the process. Their names, which include the buffer's length, appear in the process's list
/// of mappings.
static NUMBER: AtomicU64 = AtomicU64::new(0);

struct Held {
    file: File,
    segments: Vec<PhysRange>,
}

/// `BufferMemory` over files; clones share them.
#[derive(Clone)]
pub(super) struct Shared {
    machine: Machine,
    units: usize,
    held: Rc<RefCell<BTreeMap<u32, Held>>>,
    next: Rc<RefCell<u64>>,
    end: u64,
}

impl Shared {
    pub(super) fn new(machine: &Machine, units: usize) -> Self {
        let (start, length) = machine.layout().buffers;
        Self {
            machine: machine.clone(),
            units,
            held: Rc::default(),
            next: Rc::new(RefCell::new(start)),
            end: start + length,
        }
    }

    /// Takes fresh addresses. They are never reused, and a hole behind them keeps pieces from joining by chance.
    fn fresh(&self, length: u64, alignment: u64) -> Result<PhysRange, MemoryError> {
        let mut next = self.next.borrow_mut();
        let start = next.next_multiple_of(alignment.max(FRAME));
        let end = start + length;
        if end > self.end {
            return Err(MemoryError::Exhausted);
        }
        *next = end + FRAME;
        PhysRange::new(PhysAddr(start), length).ok_or(MemoryError::Exhausted)
    }

    /// Returns the file that holds a physical address, and the offset in it.
    fn find(&self, physical: u64) -> Option<(File, u64)> {
        let held = self.held.borrow();
        held.values().find_map(|buffer| {
            let mut offset = 0;
            for segment in &buffer.segments {
                if physical >= segment.first().0 && physical <= segment.last().0 {
                    let at = offset + physical - segment.first().0;
                    return Some((buffer.file.try_clone().unwrap(), at));
                }
                offset += segment.length();
            }
            None
        })
    }

    pub(super) fn read(&self, physical: u64, out: &mut [u8]) {
        match self.find(physical) {
            Some((file, offset)) => file.read_exact_at(out, offset).unwrap(),
            None => self.machine.with_memory(|memory| memory.read_bytes(physical, out)),
        }
    }

    pub(super) fn write(&self, physical: u64, bytes: &[u8]) {
        match self.find(physical) {
            Some((file, offset)) => file.write_all_at(bytes, offset).unwrap(),
            None => self.machine.with_memory(|memory| memory.write_bytes(physical, bytes)),
        }
    }

    /// Reports every unit through which a device still reaches memory that is being freed.
    fn audit(&self, segments: &[PhysRange]) {
        for unit in 0..self.units {
            for source in self.machine.sources(unit, Through::TablesAndCaches) {
                for run in self.machine.reach(unit, source, Through::TablesAndCaches) {
                    let last = run.physical + (run.last - run.iova);
                    let hit = segments
                        .iter()
                        .find(|part| run.physical <= part.last().0 && last >= part.first().0);
                    if let Some(part) = hit {
                        let how = format!("requester {source:#06x} by {run:x?}");
                        let violation =
                            Violation::FreedInUse { unit, address: part.first().0, how };
                        self.machine.with_memory(|memory| memory.report(violation));
                    }
                }
            }
        }
    }
}

impl BufferMemory for Shared {
    type Share = File;

    fn allocate(
        &mut self,
        id: u32,
        length: u64,
        constraints: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError> {
        let mut segments = Vec::new();
        if constraints.contiguous || constraints.boundary != 0 {
            let alignment = constraints.alignment.max(length.next_power_of_two());
            segments.push(self.fresh(length, alignment)?);
        } else {
            for start in (0..length).step_by(usize::try_from(PIECE).unwrap()) {
                segments.push(self.fresh(PIECE.min(length - start), constraints.alignment)?);
            }
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = memfd_create(format!("dma-{number}-{length}"), MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, length.next_multiple_of(WHOLE)).unwrap();
        let held = Held { file: file.into(), segments: segments.clone() };
        let old = self.held.borrow_mut().insert(id, held);
        assert!(old.is_none(), "buffer {id} is in use already");
        Ok(segments)
    }

    fn release(&mut self, id: u32) {
        let Some(held) = self.held.borrow_mut().remove(&id) else { return };
        self.audit(&held.segments);
        // A process that still maps the buffer loses access to it.
        ftruncate(&held.file, 0).unwrap();
    }

    fn pool(&self) -> BufferPool {
        BufferPool::UNLIMITED
    }

    fn share(&mut self, id: u32) -> Option<File> {
        self.held.borrow().get(&id).map(|held| held.file.try_clone().unwrap())
    }
}
