//! A running controller: requests, reset, end.

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

/// Deadline of a transfer to an address that need not be the driver's.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest wait, some 136 years: with more, the clock would overflow.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

/// How a controller is used.
#[derive(Default)]
pub struct Settings {
    /// Queues of requests: at least one, and fewer if the controller has fewer.
    pub queues: u16,
    /// Requests under way at once in each queue, 1 to 65534; fewer if the controller takes fewer.
    pub depth: u16,
    /// How the driver waits for their completions.
    pub completion: CompletionMode,
}

/// A running controller. `D` is the memory of its requests, which is held until the controller has finished with it.
pub struct Controller<R: Registers, D: DeviceMemory> {
    admin: Admin<R>,
    completion: CompletionMode,
    queues: Vec<Queue<D>>,
    /// Number of the queue that last got a request or was polled.
    turn: u16,
    /// Number of waits that an interrupt ended.
    woken: u64,
    pool: DmaPool,
    info: Info,
}

impl<R: Registers, D: DeviceMemory> Controller<R, D> {
    /// Keeps a controller from using memory, whatever it was doing for its previous owner. To be called before its
    /// device is attached. Then commands of the previous owner never meet this driver's memory.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Gone`].
    pub fn quiesce(registers: &mut R) -> Result<(), Error> {
        admin::disable(registers).map(|_| ())
    }

    /// Starts a controller whose device is attached and may master the bus.
    ///
    /// Controllers take addresses of 64 bits. Below 4 GiB, some (QEMU's) refuse an address that equals one of their
    /// own registers, and an I/O virtual address may do that. So memory of requests should be above 4 GiB, too.
    ///
    /// # Errors
    /// The controller does not start, its memory is refused, or it lacks a feature that this driver needs.
    pub fn start(registers: R, device: &Device, settings: Settings) -> Result<Self, Error> {
        let options = BufferOptions { above_4g: true, ..BufferOptions::default() };
        let admin = Admin::new(registers, device, options)?;
        let lists = PoolOptions { largest: PAGE, above_4g: true, ..PoolOptions::default() };
        let pool = DmaPool::new(device, lists)?;
        let Settings { queues: wanted, depth, completion } = settings;
        // If anything fails from here on, the drop stops the controller before its memory is released.
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

    /// The controller's description of itself.
    #[must_use]
    pub const fn info(&self) -> &Info {
        &self.info
    }

    /// The controller's description of a namespace.
    ///
    /// # Errors
    /// [`Error::NoNamespace`].
    pub fn namespace(&self, id: u32) -> Result<NamespaceInfo, Error> {
        let found = self.info.namespaces.iter().find(|namespace| namespace.id == id);
        found.copied().ok_or(Error::NoNamespace(id))
    }

    /// Number of queues of requests.
    #[must_use]
    pub const fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Number of requests under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.queues.iter().map(Queue::in_flight).sum()
    }

    /// Number of requests that may be under way at once, in all queues.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.queues.iter().map(Queue::depth).sum()
    }

    /// Number of waits that an interrupt ended.
    #[must_use]
    pub const fn woken(&self) -> u64 {
        self.woken
    }

    /// Sends a request, by each queue in turn. The controller holds its memory until the request comes out of
    /// [`Controller::poll`] or [`Controller::reset`].
    ///
    /// # Errors
    /// Nothing was sent; the memory comes back.
    pub fn submit(&mut self, request: Request, data: D) -> Result<(), (Error, D)> {
        self.enqueue(request, data)?;
        self.ring();
        Ok(())
    }

    /// Puts a request into a ring, of each queue in turn. The controller takes it after [`Controller::ring`].
    ///
    /// # Errors
    /// The errors of [`Controller::submit`].
    pub fn enqueue(&mut self, request: Request, data: D) -> Result<(), (Error, D)> {
        let namespace = match self.namespace(request.namespace) {
            Ok(namespace) => namespace,
            Err(error) => return Err((error, data)),
        };
        for _ in 0..self.queues.len() {
            let number = self.next();
            let Some(queue) = self.queues.get_mut(usize::from(number) - 1) else { continue };
            if queue.in_flight() < queue.depth() {
                return queue.submit(request, data, &namespace, &self.pool);
            }
        }
        Err((Error::Full, data))
    }

    /// Rings the doorbell of each queue that has new requests, once for all of them.
    pub fn ring(&mut self) {
        for (number, queue) in (1..).zip(&mut self.queues) {
            if let Some(tail) = queue.take_tail() {
                // A controller that is gone completes nothing; the wait for the completion detects that.
                let _ = self.admin.ring_doorbell(number, false, tail);
            }
        }
    }

    /// Returns the next completed request, if there is one.
    ///
    /// # Errors
    /// [`Error::ProtocolError`]: the controller must be reset.
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

    /// Adds every request that is completed now to `done`. Rings the doorbell of each queue once for all of them.
    ///
    /// # Errors
    /// Those of [`Controller::poll`]. What was completed before the error is in `done` all the same.
    pub fn collect(&mut self, done: &mut Vec<Done<D>>) -> Result<(), Error> {
        let mut result = Ok(());
        for (number, queue) in (1..).zip(&mut self.queues) {
            let mut last = None;
            while result.is_ok()
                && let Some((completion, head)) = queue.rings.pop()
            {
                last = Some(head);
                result = queue.complete(completion).map(|ended| done.push(ended));
            }
            if let Some(head) = last {
                self.admin.ring_doorbell(number, true, head)?;
            }
        }
        result
    }

    /// Waits at most `timeout` for the next completed request.
    ///
    /// # Errors
    /// [`Error::Timeout`]: see [`Controller::abort`]. [`Error::Fatal`], [`Error::Gone`], [`Error::ProtocolError`]:
    /// the controller must be reset.
    pub fn wait(&mut self, timeout: Duration) -> Result<Done<D>, Error> {
        self.until(timeout, Self::poll)
    }

    /// Waits at most `timeout` until some request is completed, and adds every completed one to `done`.
    ///
    /// # Errors
    /// Those of [`Controller::wait`]. What was completed before the error is in `done` all the same.
    pub fn wait_all(&mut self, timeout: Duration, done: &mut Vec<Done<D>>) -> Result<(), Error> {
        let before = done.len();
        self.until(timeout, |controller| {
            controller.collect(done)?;
            Ok((done.len() > before).then_some(()))
        })
    }

    /// Looks until there is something, at most for `timeout`.
    fn until<T>(
        &mut self,
        timeout: Duration,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + timeout.min(LONGEST);
        let mut looks = 0;
        loop {
            if let Some(found) = look(self)? {
                return Ok(found);
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
    /// The errors of [`Controller::submit`] and [`Controller::wait`]; [`Error::Status`]; [`Error::Full`] if another
    /// request is under way.
    pub fn run(&mut self, request: Request, data: D, timeout: Duration) -> Result<D, Error> {
        if self.in_flight() > 0 {
            return Err(Error::Full);
        }
        self.submit(request, data).map_err(|(error, _)| error)?;
        let done = self.wait(timeout)?;
        done.result.map(|()| done.data).map_err(Error::Status)
    }

    /// Sends a read to an address that need not be the driver's own, and waits for its end. It acts like a driver
    /// with a wrong pointer. Confinement does not depend on the driver.
    ///
    /// # Errors
    /// The errors of [`Controller::wait`]; [`Error::Status`]; [`Error::Full`] if a request is under way.
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

    /// Requests the end of everything that is under way. `true` if the controller reports that all of it has ended.
    /// It then comes out of [`Controller::poll`], with [`Status::ABORTED`] or done. Otherwise only a reset ends it.
    ///
    /// # Errors
    /// The controller does not answer: it must be reset.
    pub fn abort(&mut self) -> Result<bool, Error> {
        let mut all = true;
        for (number, queue) in (1..).zip(&self.queues) {
            for identifier in queue.identifiers() {
                all &= self.admin.abort(number, identifier)?;
            }
        }
        Ok(all)
    }

    /// Stops the controller and starts it again. Requests that were under way come back with their memory, which the
    /// controller no longer uses. It is not known how much of each was carried out.
    ///
    /// # Errors
    /// If the controller does not stop, it keeps the requests that were under way. If it does not start again, those
    /// requests have ended, their memory was released, and nothing can be sent.
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
    /// The controller stops before its memory is released. If it does not stop, it may still use the memory of its
    /// queues and of its requests. That memory is then never released, so that nobody else gets it.
    fn drop(&mut self) {
        if self.admin.disable().is_err() {
            std::mem::forget(std::mem::take(&mut self.queues));
        }
    }
}
