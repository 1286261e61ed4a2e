//! A controller in use: claimed, attached and started; ended in the opposite order.

use std::fmt;
use std::time::Duration;

use iommu_client::platform::Memory;
use iommu_client::platform::pci::Function;
use iommu_client::{BusMasterPermission, Device, Error as ClientError, SessionFlags};
use nvme::{
    CompletionMode, Confine, Controller, DataSource, Error, LentData, NamespaceInfo, Request,
    Settings, Troubles, Work,
};

use crate::Failure;
use crate::options::{Command, Options};
use crate::transfer::TRANSFER;

/// Requests under way in each queue, unless the options state a depth; the second number is for the benchmark.
const DEPTH: u16 = 16;
const BENCH_DEPTH: u16 = 32;

/// A controller in use. The fields that use memory are dropped first.
pub(crate) struct Disk {
    pub(crate) nvme: Controller<Memory, LentData>,
    data: DataSource,
    function: Function,
    pub(crate) device: Device,
    permission: BusMasterPermission,
    pub(crate) confined: bool,
    /// How long a request may take.
    patience: Duration,
    pub(crate) waits: Waits,
}

/// How the driver waits for completions, and why.
pub(crate) enum Waits {
    /// It sleeps until the controller's interrupt.
    Asleep,
    /// It polls, because interrupts were not requested.
    Looking,
    /// It polls, because there is no interrupt to use.
    NoVector(ClientError),
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asleep => write!(f, "a vector of the controller's own"),
            Self::Looking => write!(f, "not asked for: polling"),
            Self::NoVector(error) => write!(f, "none to be had ({error}): polling"),
        }
    }
}

impl Disk {
    /// Takes a device into use. Its requests are confined like this.
    pub(crate) fn start(
        device: Device,
        options: &Options,
        confine: Confine,
    ) -> Result<Self, Failure> {
        // Bus mastering is off from here on.
        let mut function = Function::open(device.address()).map_err(ClientError::from)?;
        device.quiesce(&mut function)?;
        let mut registers = function.registers(0, nvme::REGISTERS)?;
        // Requests that an earlier driver left under way end before there is memory to reach. Registers may answer
        // only after the device may master the bus; then the start does this.
        match Controller::<_, LentData>::quiesce(&mut registers) {
            Ok(()) | Err(Error::Gone) => {}
            Err(error) => return Err(error.into()),
        }
        let permission = device.attach()?;
        let confined = device.query()?.flags.contains(SessionFlags::CONFINED);
        function.enable_bus_mastering(&permission).map_err(ClientError::from)?;
        let (completion, waits) = match options.interrupts.then(|| function.interrupt()) {
            Some(Ok(vector)) => (CompletionMode::Interrupt(Box::new(vector)), Waits::Asleep),
            Some(Err(error)) => (CompletionMode::Poll, Waits::NoVector(error)),
            None => (CompletionMode::Poll, Waits::Looking),
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let queues = options.queues.unwrap_or(u16::try_from(processors).unwrap_or(1));
        let usual = if options.command == Command::Bench { BENCH_DEPTH } else { DEPTH };
        let settings = Settings { queues, depth: options.depth.unwrap_or(usual), completion };
        let nvme = Controller::start(registers, &device, settings)?;
        let longest = options.size.unwrap_or(TRANSFER);
        let data = DataSource::new(&device, confine, nvme.depth(), longest)?;
        let patience = options.patience;
        Ok(Self { nvme, data, function, device, permission, confined, patience, waits })
    }

    /// Has later requests use other memory: confined like this, and as many of this length at once.
    pub(crate) fn confine(
        &mut self,
        confine: Confine,
        depth: usize,
        longest: u64,
    ) -> Result<(), Failure> {
        self.data = DataSource::new(&self.device, confine, depth, longest)?;
        Ok(())
    }

    /// The namespace of this number, or the first.
    pub(crate) fn namespace(&self, id: Option<u32>) -> Result<NamespaceInfo, Failure> {
        let first = self.nvme.info().namespaces.first().map(|namespace| namespace.id);
        Ok(self.nvme.namespace(id.or(first).unwrap_or(1))?)
    }

    /// Carries out requests, each given with the length of its memory.
    pub(crate) fn run(
        &mut self,
        requests: impl IntoIterator<Item = (Request, u64)>,
        work: &mut impl Work<Error = Failure>,
    ) -> Result<Troubles, Failure> {
        self.nvme.carry_out(&mut self.data, self.patience, requests, work)
    }

    /// Stops the controller, releases its memory, and gives the device back to policy.
    pub(crate) fn close(self) -> Result<(), Failure> {
        let Self { nvme, data, function, device, permission, .. } = self;
        drop((nvme, data));
        function.disable_bus_mastering().map_err(iommu_client::Error::from)?;
        Ok(device.detach(permission).map_err(ClientError::from)?)
    }
}
