//! Devices: accesses through a unit, and accesses that are tried after every step of the server.

use super::{Denied, FRAME, Machine, Reach, Request, State, Through, Violation};

/// An access tried after every step. It leaves no fault record but fills the unit's caches, as a device that never
/// stops would.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The unit.
    pub unit: usize,
    /// The requester.
    pub source: u16,
    /// The address.
    pub iova: u64,
    /// A write; else a read.
    pub write: bool,
    /// Physical memory that the access may reach: first byte and length. When empty, the access must be denied.
    pub granted: Vec<(u64, u64)>,
    /// The access must also not be denied.
    pub must_pass: bool,
}

impl Machine {
    /// Returns where a device's write to `iova` lands; `None` when it is denied. It leaves no fault record and fills
    /// the unit's caches.
    #[must_use]
    pub fn attempt(&self, unit: usize, source: u16, iova: u64) -> Option<u64> {
        let request = Request { source, iova, write: true, record: false };
        self.state().translate(unit, request).ok()
    }
}

impl State {
    /// Ends a step that cannot make any unit's work due.
    pub(super) fn observe(&mut self) {
        self.count_step();
        self.try_watches();
        self.glimpse();
    }

    pub(super) fn try_watches(&mut self) {
        let watches = std::mem::take(&mut self.watches);
        for watch in &watches {
            let Watch { unit, source, iova, write, .. } = *watch;
            let request = Request { source, iova, write, record: false };
            let step = self.steps;
            let (device, mut bus) = self.unit(unit);
            match device.translate(&mut bus, request) {
                Ok(physical) => {
                    let fine = |(start, length): &(u64, u64)| {
                        physical >= *start && physical - start < *length
                    };
                    if !watch.granted.iter().any(fine) {
                        bus.report(Violation::Passed { step, unit, source, iova, physical });
                    }
                    if bus.memory.serves_tables(physical) {
                        bus.report(Violation::DeviceInTables { source, iova, physical });
                    }
                }
                Err(Denied { reason, .. }) if watch.must_pass => {
                    bus.report(Violation::Denied { step, unit, source, iova, reason });
                }
                Err(_) => {}
            }
        }
        self.watches = watches;
    }

    fn translate(&mut self, unit: usize, request: Request) -> Result<u64, Denied> {
        let (device, mut bus) = self.unit(unit);
        let physical = device.translate(&mut bus, request)?;
        if bus.memory.serves_tables(physical) {
            let Request { source, iova, .. } = request;
            bus.report(Violation::DeviceInTables { source, iova, physical });
        }
        Ok(physical)
    }

    /// Translates an access page by page, like a device whose transfer stops at the first denial.
    fn access(
        &mut self,
        unit: Option<usize>,
        mut request: Request,
        length: u64,
    ) -> (Vec<(u64, u64)>, Option<Denied>) {
        let mut pieces = Vec::new();
        let mut left = length;
        while left > 0 {
            let piece = left.min(FRAME - request.iova % FRAME);
            let physical = match unit {
                Some(unit) => self.translate(unit, request),
                None => Ok(request.iova),
            };
            match physical {
                Ok(physical) => pieces.push((physical, piece)),
                Err(denied) => return (pieces, Some(denied)),
            }
            request.iova = request.iova.wrapping_add(piece);
            left -= piece;
        }
        (pieces, None)
    }
}

impl Machine {
    /// Returns where an access of `length` bytes leads, page by page. `unit` is `None` for a device without a unit in
    /// front of it.
    ///
    /// # Errors
    /// The first denial; the unit has recorded the fault.
    pub fn access(
        &self,
        unit: impl Into<Option<usize>>,
        source: u16,
        iova: u64,
        length: u64,
        write: bool,
    ) -> Result<Vec<(u64, u64)>, Denied> {
        let request = Request { source, iova, write, record: true };
        let (pieces, denied) = self.state().access(unit.into(), request, length);
        denied.map_or(Ok(pieces), Err)
    }

    /// A device writes `bytes`. The part before a denied page is written.
    ///
    /// # Errors
    /// The first denial; the unit has recorded the fault.
    pub fn device_write(
        &self,
        unit: impl Into<Option<usize>>,
        source: u16,
        iova: u64,
        bytes: &[u8],
    ) -> Result<(), Denied> {
        let mut state = self.state();
        let request = Request { source, iova, write: true, record: true };
        let length = u64::try_from(bytes.len()).unwrap();
        let (pieces, denied) = state.access(unit.into(), request, length);
        let mut rest = bytes;
        for (physical, piece) in pieces {
            let (now, later) = rest.split_at(usize::try_from(piece).unwrap());
            state.memory.write_bytes(physical, now);
            rest = later;
        }
        denied.map_or(Ok(()), Err)
    }

    /// A device reads into `out`. The part before a denied page is read.
    ///
    /// # Errors
    /// The first denial; the unit has recorded the fault.
    pub fn device_read(
        &self,
        unit: impl Into<Option<usize>>,
        source: u16,
        iova: u64,
        out: &mut [u8],
    ) -> Result<(), Denied> {
        let mut state = self.state();
        let request = Request { source, iova, write: false, record: true };
        let length = u64::try_from(out.len()).unwrap();
        let (pieces, denied) = state.access(unit.into(), request, length);
        let mut rest = out;
        for (physical, piece) in pieces {
            let (now, later) = rest.split_at_mut(usize::try_from(piece).unwrap());
            state.memory.read_bytes(physical, now);
            rest = later;
        }
        denied.map_or(Ok(()), Err)
    }

    /// A device reads into `out` with the no-snoop attribute. The bytes come from memory behind the caches, except on
    /// pages where the unit forces snooping.
    ///
    /// # Errors
    /// The same as [`Machine::device_read`].
    pub fn device_read_no_snoop(
        &self,
        unit: impl Into<Option<usize>>,
        source: u16,
        iova: u64,
        out: &mut [u8],
    ) -> Result<(), Denied> {
        let unit = unit.into();
        let mut state = self.state();
        let request = Request { source, iova, write: false, record: true };
        let length = u64::try_from(out.len()).unwrap();
        let (pieces, denied) = state.access(unit, request, length);
        let (mut at, mut rest) = (iova, out);
        for (physical, piece) in pieces {
            let (now, later) = rest.split_at_mut(usize::try_from(piece).unwrap());
            let snoops = unit.is_some_and(|unit| {
                let (device, view) = state.view(unit);
                device.forces_snoop(view, source, at)
            });
            match snoops {
                true => state.memory.read_bytes(physical, now),
                false => state.memory.read_unsnooped(physical, now),
            }
            (at, rest) = (at + piece, later);
        }
        denied.map_or(Ok(()), Err)
    }

    /// Returns where an access leads. Leaves no fault record; fills the unit's caches.
    #[must_use]
    pub fn probe(&self, unit: usize, source: u16, iova: u64, write: bool) -> Option<u64> {
        self.state().translate(unit, Request { source, iova, write, record: false }).ok()
    }

    /// Tries an access after every step from now on.
    pub fn watch(&self, watch: Watch) {
        self.state().watches.push(watch);
    }

    /// Ends all watches.
    pub fn clear_watches(&self) {
        self.state().watches.clear();
    }

    /// Returns everything that a requester can reach.
    #[must_use]
    pub fn reach(&self, unit: usize, source: u16, through: Through) -> Vec<Reach> {
        let state = self.state();
        let (device, view) = state.view(unit);
        device.reach(view, source, through)
    }

    /// Returns the requesters that reach anything through a unit.
    #[must_use]
    pub fn sources(&self, unit: usize, through: Through) -> Vec<u16> {
        let state = self.state();
        let (device, view) = state.view(unit);
        device.sources(view, through)
    }

    /// Returns the frames that a unit reads as tables, with their content as the CPU sees it. A refused request must
    /// not change them.
    #[must_use]
    pub fn table_content(&self, unit: usize) -> Vec<(u64, Vec<u64>)> {
        let state = self.state();
        let (device, view) = state.view(unit);
        let tables = device.tables(view, Through::Tables).into_iter();
        let mut frames: Vec<u64> = tables.map(|(frame, _)| frame).collect();
        frames.sort_unstable();
        frames.dedup();
        frames.into_iter().map(|frame| (frame, state.memory.content(frame))).collect()
    }
}
