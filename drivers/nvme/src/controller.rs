//! Start, identification, reset and end of a controller.

use std::time::{Duration, Instant};

use iommu_client::{BufferOptions, Device, DeviceMemory, DmaBuffer, DmaPool, PoolOptions};

use crate::error::{Error, Status};
use crate::queue::{Done, Queue, Request};
use crate::registers::Registers;
use crate::rings::Rings;
use crate::spec::{self, Capabilities, Command, PAGE};

/// Entries of the admin queue.
const ADMIN_ENTRIES: u16 = 16;

/// How long an admin command may take.
const ADMIN_PATIENCE: Duration = Duration::from_secs(5);

/// The most bytes of one transfer, whatever the controller takes.
const MOST_BYTES: u64 = 4 << 20;

/// What a controller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Serial number.
    pub serial: String,
    /// Model.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// The most bytes of one transfer.
    pub most_bytes: u64,
    /// Namespaces that can be used.
    pub namespaces: Vec<NamespaceInfo>,
}

/// What it says of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Identifier, from 1.
    pub id: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes of a block, a power of two from 512 on.
    pub block_size: u64,
    /// The most blocks of one transfer.
    pub most_blocks: u64,
}

/// A controller that runs. `D` is the memory of its requests: it is held until the controller has done with it.
pub struct Controller<R: Registers, D: DeviceMemory> {
    registers: R,
    capabilities: Capabilities,
    admin: Rings,
    queue: Queue<D>,
    /// What Identify writes.
    page: DmaBuffer<[u8; 4096]>,
    pool: DmaPool,
    info: Info,
}

impl<R: Registers, D: DeviceMemory> Controller<R, D> {
    /// Keeps a controller from using memory, whatever it was doing for whoever had it before. To be called
    /// before its device is attached: what it was told to do then never meets this driver's memory.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Gone`].
    pub fn quiesce(registers: &mut R) -> Result<(), Error> {
        let capabilities = Capabilities(registers.read64(spec::CAPABILITIES).ok_or(Error::Gone)?);
        disable(registers, capabilities)
    }

    /// Starts a controller whose device is attached and may master the bus, with room for `depth` requests
    /// under way, 1 to 65534 (fewer if the controller takes fewer).
    ///
    /// Controllers take addresses of 64 bits. Below 4 GiB some (QEMU's) refuse one that equals an address of
    /// their own registers, which an I/O virtual address may: memory of requests is best above, too.
    ///
    /// # Errors
    /// The controller does not start, is refused memory, or cannot do what this driver needs.
    pub fn start(mut registers: R, device: &Device, depth: u16) -> Result<Self, Error> {
        let capabilities = Capabilities(registers.read64(spec::CAPABILITIES).ok_or(Error::Gone)?);
        if capabilities.smallest_page() > PAGE {
            let value = capabilities.smallest_page();
            return Err(Error::Unsupported { what: "a smallest page of", value });
        }
        disable(&mut registers, capabilities)?;
        let entries = u64::from(depth.max(1)) + 1;
        let entries = u16::try_from(entries.min(capabilities.entries())).unwrap_or(u16::MAX);
        let info = Info {
            serial: String::new(),
            model: String::new(),
            firmware: String::new(),
            most_bytes: 0,
            namespaces: Vec::new(),
        };
        let lists = PoolOptions { largest: PAGE, above_4g: true, ..PoolOptions::default() };
        let options = BufferOptions { above_4g: true, ..BufferOptions::default() };
        let mut controller = Self {
            registers,
            capabilities,
            admin: Rings::new(device, ADMIN_ENTRIES, options)?,
            queue: Queue::new(Rings::new(device, entries, options)?),
            page: DmaBuffer::zeroed_with(device, options)?,
            pool: DmaPool::new(device, lists)?,
            info,
        };
        controller.enable()?;
        controller.identify()?;
        controller.create_queue()?;
        Ok(controller)
    }

    /// What the controller says of itself.
    #[must_use]
    pub const fn info(&self) -> &Info {
        &self.info
    }

    /// What it says of a namespace.
    ///
    /// # Errors
    /// [`Error::NoNamespace`].
    pub fn namespace(&self, id: u32) -> Result<NamespaceInfo, Error> {
        let found = self.info.namespaces.iter().find(|namespace| namespace.id == id);
        found.copied().ok_or(Error::NoNamespace(id))
    }

    /// Requests under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.queue.under_way()
    }

    /// Requests that may be under way at once.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.queue.depth()
    }

    /// Sends a request. Its memory is the controller's until the request comes out of [`Controller::poll`] or
    /// [`Controller::reset`].
    ///
    /// # Errors
    /// Nothing was sent; the memory comes back.
    pub fn submit(&mut self, request: Request, data: D) -> Result<(), (Error, D)> {
        let namespace = match self.namespace(request.namespace) {
            Ok(namespace) => namespace,
            Err(error) => return Err((error, data)),
        };
        let tail = self.queue.submit(request, data, &namespace, &self.pool)?;
        // A controller that is gone completes nothing, which is noticed there.
        let _ = self.ring(1, false, tail);
        Ok(())
    }

    /// The next request that has ended, if one has.
    ///
    /// # Errors
    /// [`Error::Breach`]: the controller is to be reset.
    pub fn poll(&mut self) -> Result<Option<Done<D>>, Error> {
        let Some((completion, head)) = self.queue.rings.pop() else { return Ok(None) };
        self.ring(1, true, head)?;
        self.queue.complete(completion).map(Some)
    }

    /// The next request that has ended, waited for at most `timeout`.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Fatal`], [`Error::Gone`], [`Error::Breach`]: the controller is to be reset.
    pub fn wait(&mut self, timeout: Duration) -> Result<Done<D>, Error> {
        let deadline = Instant::now() + timeout;
        let mut looks = 0_u32;
        loop {
            if let Some(done) = self.poll()? {
                return Ok(done);
            }
            looks += 1;
            if looks.is_multiple_of(1024) {
                self.alive()?;
                if Instant::now() > deadline {
                    return Err(timed_out("completion", timeout));
                }
            }
            std::hint::spin_loop();
        }
    }

    /// Sends one request and waits for it; returns its memory.
    ///
    /// # Errors
    /// As [`Controller::submit`] and [`Controller::wait`]; [`Error::Status`]; [`Error::Full`] when another
    /// request is under way.
    pub fn run(&mut self, request: Request, data: D, timeout: Duration) -> Result<D, Error> {
        if self.under_way() > 0 {
            return Err(Error::Full);
        }
        self.submit(request, data).map_err(|(error, _)| error)?;
        let done = self.wait(timeout)?;
        match done.result {
            Some(Err(status)) => Err(Error::Status(status)),
            _ => Ok(done.data),
        }
    }

    /// Sends a read to an address that need not be the driver's own, and waits for its end: what a driver
    /// with a wrong pointer does. Confinement does not rest on the driver.
    ///
    /// # Errors
    /// As [`Controller::wait`]; [`Error::Status`]; [`Error::Full`] when a request is under way.
    pub fn read_to_address(&mut self, namespace: u32, first: u32, iova: u64) -> Result<(), Error> {
        if self.under_way() > 0 {
            return Err(Error::Full);
        }
        let command = spec::command(spec::READ, namespace, iova, 0, [first, 0, 0]);
        let tail = self.queue.rings.push(u16::MAX, &command);
        self.ring(1, false, tail)?;
        let deadline = Instant::now() + ADMIN_PATIENCE;
        loop {
            if let Some((completion, head)) = self.queue.rings.pop() {
                self.ring(1, true, head)?;
                return succeeded(completion.status);
            }
            self.alive()?;
            if Instant::now() > deadline {
                return Err(timed_out("completion", ADMIN_PATIENCE));
            }
        }
    }

    /// Stops the controller and starts it again. Requests that were under way end, and come back with their
    /// memory: the controller uses it no more.
    ///
    /// # Errors
    /// The controller does not stop or start. If it did not stop, what was under way stays the controller's.
    pub fn reset(&mut self) -> Result<Vec<Done<D>>, Error> {
        disable(&mut self.registers, self.capabilities)?;
        let ended = self.queue.abort();
        self.admin.clear();
        self.enable()?;
        self.create_queue()?;
        Ok(ended)
    }

    fn enable(&mut self) -> Result<(), Error> {
        let size = u32::from(self.admin.entries() - 1);
        let (submission, completion) = self.admin.addresses();
        let registers = &mut self.registers;
        registers.write32(spec::ADMIN_ATTRIBUTES, size << 16 | size).ok_or(Error::Gone)?;
        registers.write64(spec::ADMIN_SUBMISSION, submission).ok_or(Error::Gone)?;
        registers.write64(spec::ADMIN_COMPLETION, completion).ok_or(Error::Gone)?;
        registers.write32(spec::CONFIGURATION, spec::ENABLED).ok_or(Error::Gone)?;
        wait_ready(registers, self.capabilities, true)
    }

    fn create_queue(&mut self) -> Result<(), Error> {
        let (submission, completion) = self.queue.rings.addresses();
        let size = u32::from(self.queue.rings.entries() - 1) << 16 | 1;
        let words = [size, spec::CONTIGUOUS, 0];
        self.admin_command(&spec::command(spec::CREATE_COMPLETION, 0, completion, 0, words))?;
        // The completion queue's identifier is in the high half.
        let words = [size, 1 << 16 | spec::CONTIGUOUS, 0];
        self.admin_command(&spec::command(spec::CREATE_SUBMISSION, 0, submission, 0, words))
    }

    fn admin_command(&mut self, command: &Command) -> Result<(), Error> {
        let tail = self.admin.push(0, command);
        self.ring(0, false, tail)?;
        let deadline = Instant::now() + ADMIN_PATIENCE;
        loop {
            if let Some((completion, head)) = self.admin.pop() {
                self.ring(0, true, head)?;
                return succeeded(completion.status);
            }
            self.alive()?;
            if Instant::now() > deadline {
                return Err(timed_out("completion of an admin command", ADMIN_PATIENCE));
            }
        }
    }

    fn identify_page(&mut self, namespace: u32, what: u32) -> Result<[u8; 4096], Error> {
        let words = [what, 0, 0];
        self.admin_command(&spec::command(spec::IDENTIFY, namespace, self.page.iova(), 0, words))?;
        let mut page = [0; 4096];
        self.page.read(0, &mut page)?;
        Ok(page)
    }

    /// Sections 5.17.2.1 (controller), 5.17.2.2 (active namespaces); NVM Command Set 4.1.5.1 (namespace).
    fn identify(&mut self) -> Result<(), Error> {
        let page = self.identify_page(0, spec::CONTROLLER)?;
        let [transfer] = spec::field(&page, 77);
        let most_bytes = match transfer {
            0 => MOST_BYTES,
            shift => PAGE.checked_shl(shift.into()).unwrap_or(MOST_BYTES).min(MOST_BYTES),
        };
        self.info = Info {
            serial: spec::text::<20>(&page, 4),
            model: spec::text::<40>(&page, 24),
            firmware: spec::text::<8>(&page, 64),
            most_bytes,
            namespaces: Vec::new(),
        };
        let list = self.identify_page(0, spec::ACTIVE_NAMESPACES)?;
        let (ids, _) = list.as_chunks::<4>();
        for id in ids.iter().map(|id| u32::from_le_bytes(*id)).take_while(|id| *id != 0) {
            let page = self.identify_page(id, spec::NAMESPACE)?;
            self.info.namespaces.extend(namespace(&page, id, most_bytes));
        }
        Ok(())
    }

    /// Tells the controller the tail of a submission or the head of a completion ring.
    fn ring(&mut self, queue: u64, completion: bool, value: u16) -> Result<(), Error> {
        let index = 2 * queue + u64::from(completion);
        let doorbell = spec::DOORBELLS + index * self.capabilities.stride();
        self.registers.write32(doorbell, value.into()).ok_or(Error::Gone)
    }

    fn alive(&self) -> Result<(), Error> {
        match self.registers.read32(spec::STATUS) {
            None | Some(u32::MAX) => Err(Error::Gone),
            Some(status) if status & spec::FATAL != 0 => Err(Error::Fatal),
            Some(_) => Ok(()),
        }
    }
}

/// A namespace without metadata and with blocks that fit in a page; `None` for another.
fn namespace(page: &[u8; 4096], id: u32, most_bytes: u64) -> Option<NamespaceInfo> {
    let blocks = u64::from_le_bytes(spec::field(page, 0));
    let [format] = spec::field(page, 26);
    let format: [u8; 4] = spec::field(page, 128 + 4 * usize::from(format & 0xf));
    let [metadata0, metadata1, shift, _] = format;
    let usable = (9..=12).contains(&shift) && (metadata0, metadata1) == (0, 0);
    usable.then(|| {
        let block_size = 1 << shift;
        let most_blocks = (most_bytes / block_size).min(1 << 16);
        NamespaceInfo { id, blocks, block_size, most_blocks }
    })
}

fn succeeded(status: u16) -> Result<(), Error> {
    if status == 0 { Ok(()) } else { Err(Error::Status(Status(status))) }
}

fn timed_out(what: &'static str, timeout: Duration) -> Error {
    Error::Timeout { what, ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) }
}

fn disable(registers: &mut impl Registers, capabilities: Capabilities) -> Result<(), Error> {
    registers.write32(spec::CONFIGURATION, 0).ok_or(Error::Gone)?;
    wait_ready(registers, capabilities, false)
}

/// Waits until the controller is ready, or is not. It has the time that it says it needs.
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
                return Err(timed_out(if ready { "readiness" } else { "end" }, timeout));
            }
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

impl<R: Registers, D: DeviceMemory> Drop for Controller<R, D> {
    /// The controller stops before its memory goes. If it does not stop, memory of a pool, which others would
    /// be given while the device still reaches it, is never used again.
    fn drop(&mut self) {
        if disable(&mut self.registers, self.capabilities).is_err() {
            self.queue.leak();
        }
    }
}
