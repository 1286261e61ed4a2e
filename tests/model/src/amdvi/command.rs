//! The command ring (48882 section 2.4). Commands before a wait are executed one by one in reverse order, because the
//! specification allows any order.

use super::{Amdvi, bits};
use crate::machine::{Bus, Use, Violation};
use crate::paging::Pages;
use bits::{command, event, register};

/// State of the ring.
#[derive(Clone, Default)]
pub(super) struct Ring {
    /// The base register: address, and log2 of the number of entries in bits 59:56.
    pub(super) base: u64,
    /// Byte offsets.
    pub(super) head: u64,
    pub(super) tail: u64,
    pub(super) running: bool,
    /// Commands until the ring stalls.
    pub(super) left: Option<u64>,
    /// Commands fetched and not yet executed.
    held: Vec<[u64; 2]>,
    due: Option<u64>,
    counts: Counts,
    break_after: Option<(u64, u16)>,
    broken: Option<u16>,
}

/// Commands executed, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Invalidations of device table entries.
    pub devices: u64,
    /// Invalidations of pages.
    pub pages: u64,
    /// Invalidations of everything.
    pub all: u64,
    /// Waits.
    pub waits: u64,
    /// Page requests answered.
    pub answers: u64,
}

impl Ring {
    pub(super) fn size(&self) -> u64 {
        16 << (self.base >> 56 & 0xf)
    }

    /// Starts or stops the ring.
    pub(super) fn switch(&mut self, on: bool) {
        self.running = on;
        self.due = None;
        if !on {
            self.held.clear();
        }
    }

    /// Bytes of commands that wait.
    fn waiting(&self) -> u64 {
        (self.tail + self.size() - self.head) % self.size()
    }
}

impl Amdvi {
    /// Commands executed so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.ring.counts
    }

    /// Stops once, after the next `after` commands, with an event of this code. 5: the command is illegal; 6: it
    /// cannot be read.
    pub fn break_command(&mut self, after: u64, code: u16) {
        self.ring.break_after = Some((after, code));
    }

    /// The same as [`Amdvi::break_command`], at every command from now on.
    pub fn break_every_command(&mut self, code: u16) {
        self.ring.broken = Some(code);
    }

    /// Ends [`Amdvi::break_every_command`].
    pub fn mend_commands(&mut self) {
        self.ring.broken = None;
    }

    pub(super) fn write_tail(&mut self, bus: &mut Bus<'_>, value: u64) {
        let (old, size) = (self.ring.waiting(), self.ring.size());
        if value & !bits::POINTER != 0 || value >= size {
            bus.misused(register::COMMAND_TAIL, value, "misaligned or outside the ring");
            return;
        }
        self.ring.tail = value;
        let new = self.ring.waiting();
        if self.ring.running && new < old {
            bus.misused(register::COMMAND_TAIL, value, "the tail passed the head or went back");
        }
        if new + 0x20 > size {
            bus.misused(register::COMMAND_TAIL, value, "fewer than 32 bytes stay free");
        }
        self.schedule(bus.now);
    }

    pub(super) fn schedule(&mut self, now: u64) {
        let ring = &mut self.ring;
        if ring.running && ring.due.is_none() && ring.head != ring.tail {
            ring.due = Some(now + self.config.command_time);
        }
    }

    /// Checks that no command waiting in the ring changes.
    pub(super) fn check_overwrite(&self, bus: &mut Bus<'_>, address: u64) {
        let ring = &self.ring;
        let base = ring.base & bits::ADDRESS;
        if !ring.running || self.dead || address < base || address - base >= ring.size() {
            return;
        }
        let slot = (address - base) & !15;
        if (slot + ring.size() - ring.head) % ring.size() < ring.waiting() {
            let rule = "a command is overwritten that was not fetched yet";
            bus.report(Violation::Queue { unit: bus.unit, value: slot, rule });
        }
    }

    /// Executes or fetches one command if it is due; false when none is due.
    pub(super) fn step_ring(&mut self, bus: &mut Bus<'_>) -> bool {
        let due = self.ring.due.is_some_and(|due| due <= bus.now);
        if !due || !self.ring.running || self.ring.left == Some(0) {
            return false;
        }
        self.ring.due = None;
        let address = (self.ring.base & bits::ADDRESS) + self.ring.head;
        match self.fetch(bus, address) {
            // Held commands are executed before the wait, newest first.
            Ok([first, _]) if first >> 60 == command::WAIT && !self.ring.held.is_empty() => {
                if let Some(held) = self.ring.held.pop() {
                    self.carry_out(bus, held);
                }
            }
            Ok(words) => {
                if words[0] >> 60 == command::WAIT {
                    self.wait(bus, words);
                } else {
                    self.ring.held.push(words);
                }
                self.ring.head = (self.ring.head + 16) % self.ring.size();
                if let Some(left) = &mut self.ring.left {
                    *left -= 1;
                }
                if let Some((after, _)) = &mut self.ring.break_after {
                    *after = after.saturating_sub(1);
                }
            }
            Err(code) => {
                self.ring.switch(false);
                self.log_event(bus.now, [u64::from(code) << 60, address]);
            }
        }
        self.schedule(bus.now);
        true
    }

    /// Returns the next command, or the code of the event that stops the ring.
    fn fetch(&mut self, bus: &mut Bus<'_>, address: u64) -> Result<[u64; 2], u16> {
        if !matches!(bus.memory.purpose(address), Some(Use::Table | Use::Firmware)) {
            bus.report(Violation::WalkedForeign { unit: bus.unit, address });
            return Err(event::COMMAND_ERROR);
        }
        if let Some((_, code)) = self.ring.break_after.take_if(|(after, _)| *after == 0) {
            return Err(code);
        }
        if let Some(code) = self.ring.broken {
            return Err(code);
        }
        let words = [address, address + 8].map(|at| bus.memory.walk_load(bus.unit, at));
        let reserved = match words[0] >> 60 {
            command::WAIT => command::WAIT_RESERVED,
            command::DEVICE | command::INTERRUPTS => command::DEVICE_RESERVED,
            command::PAGES => command::PAGES_RESERVED,
            command::COMPLETE_PPR if self.config.page_requests => command::COMPLETE_PPR_RESERVED,
            command::ALL if self.config.invalidate_all => command::ALL_RESERVED,
            // The unit has no device TLBs and no prefetching.
            _ => return Err(event::ILLEGAL_COMMAND),
        };
        if words[0] & reserved[0] != 0 || words[1] & reserved[1] != 0 {
            return Err(event::ILLEGAL_COMMAND);
        }
        Ok(words)
    }

    fn carry_out(&mut self, bus: &mut Bus<'_>, [first, second]: [u64; 2]) {
        let part = |at: u32| u16::try_from(first >> at & 0xffff).unwrap();
        match first >> 60 {
            command::DEVICE => {
                self.ring.counts.devices += 1;
                self.devices.remove(&part(0));
            }
            command::PAGES => {
                self.ring.counts.pages += 1;
                self.caches.drop_pages(pages(part(32), second));
            }
            command::ALL => {
                self.ring.counts.all += 1;
                self.caches.drop_pages(Pages::Global);
                if !self.config.all_keeps_devices {
                    self.devices.clear();
                }
            }
            command::COMPLETE_PPR => {
                self.ring.counts.answers += 1;
                // Bits 40:32 of the second word are the tag, 47:44 the answer.
                self.answers.push((
                    part(0),
                    u16::try_from(second >> 32 & 0x1ff).unwrap(),
                    u8::try_from(second >> 44 & 0xf).unwrap(),
                ));
            }
            command::INTERRUPTS => {}
            _ => bus.report(Violation::Queue {
                unit: bus.unit,
                value: first,
                rule: "a command that the model does not know",
            }),
        }
    }

    fn wait(&mut self, bus: &mut Bus<'_>, [first, second]: [u64; 2]) {
        let unit = bus.unit;
        self.ring.counts.waits += 1;
        if first & 7 != command::STORE {
            let rule = "a wait that does not store its data and nothing else is not noticed";
            bus.report(Violation::Queue { unit, value: first, rule });
            return;
        }
        let address = first & 0x000f_ffff_ffff_fff8;
        if !matches!(bus.memory.purpose(address), Some(Use::Table | Use::Firmware)) {
            bus.report(Violation::StatusForeign { unit, address });
        }
        bus.memory.write_bytes(address, &second.to_le_bytes());
    }
}

/// Returns the range of INVALIDATE_IOMMU_PAGES: one page, or with S a larger range. The lowest clear bit from bit 12
/// on, bit n, stands for 2^(n+1) bytes.
fn pages(domain: u16, second: u64) -> Pages {
    let address = second & !0xfff;
    let bits = match second & command::SIZED {
        0 => 12,
        _ => (address | 0xfff).trailing_ones() + 1,
    };
    let first = address & !bits::below(bits);
    let leaves_only = second & command::ALL_LEVELS == 0;
    Pages::Selective { domain, first, last: first | bits::below(bits), leaves_only }
}
