//! A controller that runs: requests, reset, end.

use std::time::{Duration, Instant};

use iommu_client::{BufferOptions, Device, DeviceMemory, DmaPool, PoolOptions};

use crate::admin::{self, Admin};
use crate::completion::CompletionMode;
use crate::error::{Error, Status};
use crate::identify::{Info, NamespaceInfo};
use crate::queue::{Done, Queue, Request};
use crate::registers::Registers;
use crate::rings::Rings;
use crate::spec::{self, PAGE};

/// How long a transfer to an address that need not be the driver's may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest wait, some 136 years: with more, the clock would overflow.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

/// How a controller is used.
#[derive(Default)]
pub struct Settings {
    /// Queues of requests; fewer if the controller has fewer, one at least.
    pub queues: u16,
    /// Requests under way at once in each, 1 to 65534; fewer if the controller takes fewer.
    pub depth: u16,
    /// How their ends are learned of.
    pub completion: CompletionMode,
}

/// A controller that runs. `D` is the memory of its requests: it is held until the controller has done with it.
pub struct Controller<R: Registers, D: DeviceMemory> {
    admin: Admin<R>,
    completion: CompletionMode,
    queues: Vec<Queue<D>>,
    /// Number of the queue that was given a request, or was looked at, last.
    turn: u16,
    /// Waits that an interrupt ended.
    woken: u64,
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
        admin::disable(registers).map(|_| ())
    }

    /// Starts a controller whose device is attached and may master the bus.
    ///
    /// Controllers take addresses of 64 bits. Below 4 GiB some (QEMU's) refuse one that equals an address of
    /// their own registers, which an I/O virtual address may: memory of requests is best above, too.
    ///
    /// # Errors
    /// The controller does not start, is refused memory, or cannot do what this driver needs.
    pub fn start(registers: R, device: &Device, settings: Settings) -> Result<Self, Error> {
        let options = BufferOptions { above_4g: true, ..BufferOptions::default() };
        let admin = Admin::new(registers, device, options)?;
        let lists = PoolOptions { largest: PAGE, above_4g: true, ..PoolOptions::default() };
        let pool = DmaPool::new(device, lists)?;
        let Settings { queues: wanted, depth, completion } = settings;
        // Whatever fails from here on, the drop stops the controller before its memory goes.
        let (queues, info) = (Vec::new(), Info::default());
        let mut controller = Self { admin, completion, queues, turn: 0, woken: 0, pool, info };
        let admin = &mut controller.admin;
        admin.enable()?;
        controller.info = Info::ask(admin)?;
        let capabilities = admin.capabilities();
        let count = admin.set_queues(wanted.clamp(1, capabilities.queues()))?;
        let entries = (u64::from(depth.max(1)) + 1).min(capabilities.entries());
        let entries = u16::try_from(entries).unwrap_or(u16::MAX);
        for _ in 0..count {
            controller.queues.push(Queue::new(Rings::new(device, entries, options)?));
        }
        controller.create_queues()?;
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

    /// Queues of requests.
    #[must_use]
    pub const fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.queues.iter().map(Queue::in_flight).sum()
    }

    /// Requests that may be under way at once, in all queues.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.queues.iter().map(Queue::depth).sum()
    }

    /// How often an interrupt ended a wait.
    #[must_use]
    pub const fn woken(&self) -> u64 {
        self.woken
    }

    /// Sends a request, by each queue in turn. Its memory is the controller's until the request comes out of
    /// [`Controller::poll`] or [`Controller::reset`].
    ///
    /// # Errors
    /// Nothing was sent; the memory comes back.
    pub fn submit(&mut self, request: Request, data: D) -> Result<(), (Error, D)> {
        let namespace = match self.namespace(request.namespace) {
            Ok(namespace) => namespace,
            Err(error) => return Err((error, data)),
        };
        for _ in 0..self.queues.len() {
            let number = self.next();
            let Some(queue) = self.queues.get_mut(usize::from(number) - 1) else { continue };
            if queue.in_flight() < queue.depth() {
                let tail = queue.submit(request, data, &namespace, &self.pool)?;
                // A controller that is gone completes nothing, which is noticed there.
                let _ = self.admin.ring_doorbell(number, false, tail);
                return Ok(());
            }
        }
        Err((Error::Full, data))
    }

    /// The next request that has ended, if one has.
    ///
    /// # Errors
    /// [`Error::ProtocolError`]: the controller is to be reset.
    pub fn poll(&mut self) -> Result<Option<Done<D>>, Error> {
        for _ in 0..self.queues.len() {
            let number = self.next();
            let Some(queue) = self.queues.get_mut(usize::from(number) - 1) else { continue };
            if let Some((completion, head)) = queue.rings.pop() {
                let done = queue.complete(completion);
                self.admin.ring_doorbell(number, true, head)?;
                return done.map(Some);
            }
        }
        Ok(None)
    }

    /// The next request that has ended, waited for at most `timeout`.
    ///
    /// # Errors
    /// [`Error::Timeout`]: see [`Controller::abort`]. [`Error::Fatal`], [`Error::Gone`], [`Error::ProtocolError`]:
    /// the controller is to be reset.
    pub fn wait(&mut self, timeout: Duration) -> Result<Done<D>, Error> {
        let deadline = Instant::now() + timeout.min(LONGEST);
        let mut looks = 0;
        loop {
            if let Some(done) = self.poll()? {
                return Ok(done);
            }
            if self.completion.pause(&mut looks, &mut self.woken, deadline)? {
                self.admin.alive()?;
                if Instant::now() > deadline {
                    return Err(Error::timeout("completion", timeout));
                }
            }
        }
    }

    /// Sends one request and waits for it; returns its memory.
    ///
    /// # Errors
    /// As [`Controller::submit`] and [`Controller::wait`]; [`Error::Status`]; [`Error::Full`] when another
    /// request is under way.
    pub fn run(&mut self, request: Request, data: D, timeout: Duration) -> Result<D, Error> {
        if self.in_flight() > 0 {
            return Err(Error::Full);
        }
        self.submit(request, data).map_err(|(error, _)| error)?;
        let done = self.wait(timeout)?;
        done.result.map(|()| done.data).map_err(Error::Status)
    }

    /// Sends a read to an address that need not be the driver's own, and waits for its end: what a driver
    /// with a wrong pointer does. Confinement does not rest on the driver.
    ///
    /// # Errors
    /// As [`Controller::wait`]; [`Error::Status`]; [`Error::Full`] when a request is under way.
    pub fn read_to_address(&mut self, namespace: u32, first: u32, iova: u64) -> Result<(), Error> {
        let Some(queue) = self.queues.first_mut() else { return Err(Error::Full) };
        if queue.in_flight() > 0 {
            return Err(Error::Full);
        }
        let command = spec::command(spec::READ, namespace, iova, 0, [first, 0, 0]);
        let tail = queue.rings.push(u16::MAX, &command);
        self.admin.ring_doorbell(1, false, tail)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((completion, head)) = queue.rings.pop() {
                self.admin.ring_doorbell(1, true, head)?;
                return match completion.status {
                    0 => Ok(()),
                    status => Err(Error::Status(Status(status))),
                };
            }
            self.admin.alive()?;
            if Instant::now() > deadline {
                return Err(Error::timeout("completion", PATIENCE));
            }
        }
    }

    /// Asks for the end of everything that is under way. `true`: the controller says that all of it has
    /// ended, and it comes out of [`Controller::poll`] with [`Status::ABORTED`], or done. Otherwise only a
    /// reset ends it.
    ///
    /// # Errors
    /// The controller does not answer: it is to be reset.
    pub fn abort(&mut self) -> Result<bool, Error> {
        let mut all = true;
        for (number, queue) in (1..).zip(&self.queues) {
            for identifier in queue.identifiers() {
                all &= self.admin.abort(number, identifier)?;
            }
        }
        Ok(all)
    }

    /// Stops the controller and starts it again. Requests that were under way come back with their memory: the
    /// controller uses it no more. How much of each was carried out is not known.
    ///
    /// # Errors
    /// The controller does not stop: what was under way stays the controller's. Or it does not start: what was
    /// under way has ended, its memory has gone back to where it came from, and nothing can be sent.
    pub fn reset(&mut self) -> Result<Vec<(Request, D)>, Error> {
        self.admin.disable()?;
        let ended = self.queues.iter_mut().flat_map(Queue::abort).collect();
        self.admin.enable()?;
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        self.admin.set_queues(count)?;
        self.create_queues()?;
        Ok(ended)
    }

    fn create_queues(&mut self) -> Result<(), Error> {
        let interrupts = self.completion.interrupts();
        for (number, queue) in (1..).zip(&self.queues) {
            self.admin.create_queue(number, &queue.rings, interrupts)?;
        }
        Ok(())
    }

    /// Number of the queue whose turn it is, from 1.
    fn next(&mut self) -> u16 {
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        self.turn = if self.turn < count { self.turn + 1 } else { 1 };
        self.turn
    }
}

impl<R: Registers, D: DeviceMemory> Drop for Controller<R, D> {
    /// The controller stops before its memory goes. If it does not stop, the memory of its queues and of what is
    /// under way, which others would be given while the controller still uses it, is never used again.
    fn drop(&mut self) {
        if self.admin.disable().is_err() {
            std::mem::forget(std::mem::take(&mut self.queues));
        }
    }
}
