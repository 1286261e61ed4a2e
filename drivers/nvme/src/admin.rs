//! The admin queue: start and stop of the controller, identification, and the creation of queues of requests.

use std::time::{Duration, Instant};

use iommu_client::{BufferOptions, Device, DmaBuffer};

use crate::error::{Error, Status};
use crate::registers::Registers;
use crate::rings::Rings;
use crate::spec::{self, Capabilities, Command, PAGE};

/// Entries of the admin queue.
const ENTRIES: u16 = 16;

/// Deadline of an admin command.
const PATIENCE: Duration = Duration::from_secs(5);

/// The registers, and the queue that exists before all others. Its completions are always polled.
pub(crate) struct Admin<R> {
    registers: R,
    capabilities: Capabilities,
    rings: Rings,
    /// Identifier of the last command.
    identifier: u16,
    /// The page that Identify writes.
    page: DmaBuffer<[u8; 4096]>,
}

impl<R: Registers> Admin<R> {
    /// Stops the controller, whatever it was doing, and allocates memory for the admin queue.
    pub(crate) fn new(
        mut registers: R,
        device: &Device,
        options: BufferOptions,
    ) -> Result<Self, Error> {
        let capabilities = disable(&mut registers)?;
        if capabilities.smallest_page() > PAGE {
            let value = capabilities.smallest_page();
            return Err(Error::Unsupported { what: "a smallest page of", value });
        }
        let rings = Rings::new(device, ENTRIES, options)?;
        let page = DmaBuffer::zeroed_with(device, options)?;
        Ok(Self { registers, capabilities, rings, identifier: 0, page })
    }

    pub(crate) const fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Starts the controller. It has no queue but this one.
    pub(crate) fn enable(&mut self) -> Result<(), Error> {
        self.rings.clear();
        let size = u32::from(self.rings.entries() - 1);
        let (submission, completion) = self.rings.addresses();
        let registers = &mut self.registers;
        registers.write32(spec::ADMIN_ATTRIBUTES, size << 16 | size).ok_or(Error::Gone)?;
        registers.write64(spec::ADMIN_SUBMISSION, submission).ok_or(Error::Gone)?;
        registers.write64(spec::ADMIN_COMPLETION, completion).ok_or(Error::Gone)?;
        registers.write32(spec::CONFIGURATION, spec::ENABLED).ok_or(Error::Gone)?;
        wait_ready(registers, self.capabilities, true)
    }

    /// Stops the controller. It uses no memory afterwards.
    pub(crate) fn disable(&mut self) -> Result<(), Error> {
        disable(&mut self.registers).map(|_| ())
    }

    /// Requests this many queues of requests. Returns how many there may be.
    pub(crate) fn set_queues(&mut self, count: u16) -> Result<u16, Error> {
        let wanted = u32::from(count.saturating_sub(1));
        let words = [spec::NUMBER_OF_QUEUES, wanted << 16 | wanted, 0];
        let granted = self.command(&spec::command(spec::SET_FEATURES, 0, 0, 0, words))?;
        let [s0, s1, c0, c1] = granted.to_le_bytes();
        let fewest = u16::from_le_bytes([s0, s1]).min(u16::from_le_bytes([c0, c1]));
        Ok(count.min(fewest.saturating_add(1)))
    }

    /// Creates a queue of requests. Both of its rings have this number, from 1 on.
    pub(crate) fn create_queue(
        &mut self,
        number: u16,
        rings: &Rings,
        interrupts: bool,
    ) -> Result<(), Error> {
        let (submission, completion) = rings.addresses();
        let size = u32::from(rings.entries() - 1) << 16 | u32::from(number);
        // Interrupts are those of vector 0.
        let how = if interrupts { spec::INTERRUPTS } else { 0 } | spec::CONTIGUOUS;
        let words = [size, how, 0];
        self.command(&spec::command(spec::CREATE_COMPLETION, 0, completion, 0, words))?;
        // The completion queue's identifier is in the high half.
        let words = [size, u32::from(number) << 16 | spec::CONTIGUOUS, 0];
        self.command(&spec::command(spec::CREATE_SUBMISSION, 0, submission, 0, words)).map(|_| ())
    }

    /// Requests the end of a command. Returns whether the controller has ended it (5.1).
    pub(crate) fn abort(&mut self, queue: u16, identifier: u16) -> Result<bool, Error> {
        let words = [u32::from(identifier) << 16 | u32::from(queue), 0, 0];
        Ok(self.command(&spec::command(spec::ABORT, 0, 0, 0, words))? & 1 == 0)
    }

    pub(crate) fn identify(&mut self, namespace: u32, what: u32) -> Result<[u8; 4096], Error> {
        let words = [what, 0, 0];
        self.command(&spec::command(spec::IDENTIFY, namespace, self.page.iova(), 0, words))?;
        Ok(self.page.snapshot_at::<[u8; 4096]>(0)?.into_inner())
    }

    /// Runs a command, and returns the first word of its completion. The completion of an earlier command, which was
    /// given up, is an error.
    fn command(&mut self, command: &Command) -> Result<u32, Error> {
        self.identifier = self.identifier.wrapping_add(1);
        let tail = self.rings.push(self.identifier, command);
        self.ring_doorbell(0, false, tail)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((completion, head)) = self.rings.pop() {
                self.ring_doorbell(0, true, head)?;
                return match (completion.command, completion.status) {
                    (command, _) if command != self.identifier => {
                        Err(Error::ProtocolError { command })
                    }
                    (_, 0) => Ok(completion.result),
                    (_, status) => Err(Error::Status(Status(status))),
                };
            }
            self.alive()?;
            if Instant::now() > deadline {
                return Err(Error::timeout("completion of an admin command", PATIENCE));
            }
        }
    }

    /// Writes the tail of a submission ring, or the head of a completion ring, to the controller's doorbell.
    pub(crate) fn ring_doorbell(
        &mut self,
        queue: u16,
        completion: bool,
        value: u16,
    ) -> Result<(), Error> {
        let index = 2 * u64::from(queue) + u64::from(completion);
        let doorbell = spec::DOORBELLS + index * self.capabilities.stride();
        self.registers.write32(doorbell, value.into()).ok_or(Error::Gone)
    }

    /// Checks that the controller is present and has not failed.
    pub(crate) fn alive(&self) -> Result<(), Error> {
        match self.registers.read32(spec::STATUS) {
            None | Some(u32::MAX) => Err(Error::Gone),
            Some(status) if status & spec::FATAL != 0 => Err(Error::Fatal),
            Some(_) => Ok(()),
        }
    }
}

/// Stops a controller, and returns its capabilities.
pub(crate) fn disable(registers: &mut impl Registers) -> Result<Capabilities, Error> {
    let capabilities = Capabilities(registers.read64(spec::CAPABILITIES).ok_or(Error::Gone)?);
    registers.write32(spec::CONFIGURATION, 0).ok_or(Error::Gone)?;
    wait_ready(registers, capabilities, false).map(|()| capabilities)
}

/// Waits until the controller is ready, or not ready. The deadline is the time that the controller states it needs.
fn wait_ready(
    registers: &impl Registers,
    capabilities: Capabilities,
    ready: bool,
) -> Result<(), Error> {
    let timeout = Duration::from_millis(capabilities.timeout_ms());
    let deadline = Instant::now() + timeout;
    loop {
        let status = registers.read32(spec::STATUS).ok_or(Error::Gone)?;
        match status {
            u32::MAX => return Err(Error::Gone),
            _ if (status & spec::READY != 0) == ready => return Ok(()),
            _ if ready && status & spec::FATAL != 0 => return Err(Error::Fatal),
            _ if Instant::now() > deadline => {
                return Err(Error::timeout(if ready { "readiness" } else { "end" }, timeout));
            }
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
