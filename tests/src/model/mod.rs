//! A machine in this process for tests of drivers: the whole server over a software unit of either vendor, or none.
//! [`Model::connection`] gives an `iommu_client::Connection` to it; devices do DMA through the unit.
//!
//! ```
//! use iommu_client::{BufferOptions, Device};
//! use iommud_tests::model::Model;
//!
//! let model = Model::new();
//! let connection = model.connection();
//! let device = Device::open(&connection, "0000--00--04.0")?;
//! let permission = device.attach()?;
//! let mut buffer = device.allocate(4096, BufferOptions::default())?;
//! buffer.write(0, b"hello")?;
//! assert_eq!(model.device_read(device.address(), buffer.iova(), 5), Ok(b"hello".to_vec()));
//!
//! // An address that was not granted: denied, and told to the owner.
//! assert!(model.device_write(device.address(), 0x0dea_d000, &[1]).is_err());
//! assert_eq!(device.next_fault()?.unwrap().address, Some(0x0dea_d000));
//! # let _ = permission;
//! # Ok::<(), iommu_client::Error>(())
//! ```

mod memory;
mod transport;
mod world;

use std::panic::resume_unwind;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use iommu_client::{BusMasterPermission, Connection, Device};
use iommu_protocol::ids::PciAddress;
use iommud::policy::Config;

pub use transport::InProcess;
pub use world::Counts;
use world::{Side, World};

use crate::conformance::{UnderTest, amdvi, vtd};

type Job = Box<dyn FnOnce(&mut dyn Side) + Send>;

/// The vendor of a model's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel: VT-d.
    Intel,
    /// AMD: AMD-Vi.
    Amd,
}

impl Vendor {
    /// Both vendors.
    pub const ALL: [Self; 2] = [Self::Intel, Self::Amd];
}

/// The unit of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelUnit {
    /// It confines the devices.
    Up,
    /// Firmware describes it, and it did not come up.
    Failed,
    /// Firmware describes it, and it is left alone.
    LeftAlone,
    /// There is none.
    Absent,
}

/// The devices of every model.
pub const DEVICES: [&str; 3] = ["0000--00--03.0", "0000--00--04.0", "0000--00--05.0"];

/// A machine with a running server. Clones refer to the same machine. Dropping the last one ends it, and fails if a
/// rule of the hardware was broken.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    vendor: Vendor,
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// Starts a machine whose unit confines its devices.
    #[must_use]
    pub fn new() -> Self {
        Self::with(ModelUnit::Up, Config::default())
    }

    /// Starts a machine whose unit, of this vendor, confines its devices.
    #[must_use]
    pub fn of(vendor: Vendor) -> Self {
        Self::of_with(vendor, ModelUnit::Up, Config::default())
    }

    /// Starts a machine without a unit: nothing is confined, addresses are bus addresses.
    #[must_use]
    pub fn without_unit() -> Self {
        Self::with(ModelUnit::Absent, Config::default())
    }

    /// Starts a machine with a VT-d unit in this state, and this policy.
    #[must_use]
    pub fn with(unit: ModelUnit, policy: Config) -> Self {
        Self::of_with(Vendor::Intel, unit, policy)
    }

    /// Starts a machine with a unit of this vendor in this state, and this policy.
    #[must_use]
    pub fn of_with(vendor: Vendor, unit: ModelUnit, policy: Config) -> Self {
        match vendor {
            Vendor::Intel => {
                let config = crate::vtd::Config::default();
                Self::start(vendor, vtd::Subject { name: "model", config }, unit, policy)
            }
            Vendor::Amd => {
                let (config, entries) = (crate::amdvi::Config::default(), Vec::new());
                let subject = amdvi::Subject { name: "model", config, entries, flags: 0 };
                Self::start(vendor, subject, unit, policy)
            }
        }
    }

    fn start(
        vendor: Vendor,
        subject: impl UnderTest + Send + 'static,
        unit: ModelUnit,
        policy: Config,
    ) -> Self {
        let (sender, jobs) = channel::<Job>();
        // The server has a single thread. Its parts are not `Send` and stay there.
        let thread = std::thread::spawn(move || {
            let mut world = World::new(subject, unit, policy);
            for job in jobs {
                job(&mut world);
            }
            world.end();
        });
        let (jobs, thread) = (Mutex::new(Some(sender)), Mutex::new(Some(thread)));
        Self(Arc::new(Inner { vendor, jobs, thread }))
    }

    /// The vendor of the unit, if there is one.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        self.0.vendor
    }

    /// Runs a job on the server's thread and waits for its result.
    fn ask<R: Send + 'static>(&self, job: impl FnOnce(&mut dyn Side) -> R + Send + 'static) -> R {
        let (sender, answer) = channel();
        let job: Job = Box::new(move |world| {
            let _ = sender.send(job(world));
        });
        let sent = self.0.jobs.lock().unwrap().as_ref().unwrap().send(job);
        assert!(sent.is_ok(), "the model has ended");
        answer.recv().expect("the model has failed")
    }

    /// Connects to the server like a process of its own.
    #[must_use]
    pub fn connection(&self) -> Connection {
        Connection::over(self.transport())
    }

    /// Claims and attaches the second of [`DEVICES`] from a process of its own.
    ///
    /// # Panics
    /// When the device is already claimed.
    pub fn attached(&self) -> (Device, BusMasterPermission) {
        let device = Device::open(&self.connection(), DEVICES[1]).unwrap();
        let permission = device.attach().unwrap();
        (device, permission)
    }

    /// Returns the transport of [`Model::connection`], for a test that intercepts it.
    #[must_use]
    pub fn transport(&self) -> InProcess {
        InProcess::new(self.clone())
    }

    /// A device reads `length` bytes at `iova`.
    ///
    /// # Errors
    /// The unit's reason for denying it; the unit has recorded the fault.
    pub fn device_read(
        &self,
        device: PciAddress,
        iova: u64,
        length: usize,
    ) -> Result<Vec<u8>, String> {
        self.ask(move |world| world.device_read(device, iova, length))
    }

    /// A device writes at `iova`.
    ///
    /// # Errors
    /// The same as [`Model::device_read`]. Pages before the denied one are written.
    pub fn device_write(&self, device: PciAddress, iova: u64, bytes: &[u8]) -> Result<(), String> {
        let bytes = bytes.to_vec();
        self.ask(move |world| world.device_write(device, iova, &bytes))
    }

    /// Returns everything that a device reaches now, by the unit's tables or its caches: first and last address.
    #[must_use]
    pub fn reach(&self, device: PciAddress) -> Vec<(u64, u64)> {
        self.ask(move |world| world.reach(device))
    }

    /// Kills all clients at once. The server's handles are closed as an operating system does.
    pub fn kill_clients(&self) {
        self.ask(|world| world.kill_clients());
    }

    /// Counts of the actions of clients and the unit so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.ask(|world| world.counts())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.jobs.get_mut().unwrap().take());
        let ended = self.thread.get_mut().unwrap().take().map_or(Ok(()), JoinHandle::join);
        if let (Err(panic), false) = (ended, std::thread::panicking()) {
            resume_unwind(panic);
        }
    }
}
