//! A controller in use: claimed, attached, started; and ended in the opposite order.

use std::time::Duration;

use iommu_client::platform::Memory;
use iommu_client::platform::pci::{self, Function};
use iommu_client::{
    BusMasterPermission, Connection, Device, DmaBlock, DmaPool, Error as ClientError, PoolOptions,
    SessionFlags,
};
use nvme::{Completion, Controller, Done, Error, NamespaceInfo, Request, Settings, Status};

use crate::Failure;
use crate::options::{Command, Options};

/// Troubles in one run of requests before it is given up. After each, a request may take twice as long.
const MOST_TROUBLES: u32 = 3;

/// Requests under way in each queue, unless asked for; and when it is rates that count.
const DEPTH: u16 = 16;
const BENCH_DEPTH: u16 = 32;

/// A controller in use. What uses memory goes first.
pub(crate) struct Disk {
    pub(crate) nvme: Controller<Memory, DmaBlock>,
    pub(crate) pool: DmaPool,
    function: Function,
    pub(crate) device: Device,
    permission: BusMasterPermission,
    pub(crate) confined: bool,
    /// What a request may take.
    patience: Duration,
}

/// What went wrong in a run of requests that succeeded in the end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Troubles {
    pub(crate) aborts: u32,
    pub(crate) resets: u32,
}

impl Disk {
    /// The device of this name, or, when it is empty, the one that this driver was started for.
    pub(crate) fn open(
        connection: &Connection,
        name: &str,
        options: &Options,
    ) -> Result<Self, Failure> {
        let device = match pci::spawned().filter(|_| name.is_empty()) {
            Some(address) => Device::claim(connection, address)?,
            None => Device::open(connection, name)?,
        };
        // Bus mastering is off from here on.
        let function = Function::open(device.address()).map_err(ClientError::from)?;
        let mut registers = function.registers(0, nvme::REGISTERS)?;
        // What an earlier driver left under way ends before there is memory to be reached. Where registers
        // answer only once the device may master the bus, starting does it.
        match Controller::<_, DmaBlock>::quiesce(&mut registers) {
            Ok(()) | Err(Error::Gone) => {}
            Err(error) => return Err(error.into()),
        }
        let permission = device.attach()?;
        let confined = device.query()?.flags.contains(SessionFlags::CONFINED);
        function.enable_bus_mastering(&permission).map_err(ClientError::from)?;
        let completion = match options.interrupts {
            true => Completion::Interrupt(Box::new(function.interrupt()?)),
            false => Completion::Poll,
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let queues = options.queues.unwrap_or(u16::try_from(processors).unwrap_or(1));
        let usual = if options.command == Command::Bench { BENCH_DEPTH } else { DEPTH };
        let settings = Settings { queues, depth: options.depth.unwrap_or(usual), completion };
        let nvme = Controller::start(registers, &device, settings)?;
        let pool = PoolOptions { chunk: 2 << 20, above_4g: true, ..PoolOptions::default() };
        let pool = DmaPool::new(&device, pool)?;
        let patience = options.patience;
        Ok(Self { nvme, pool, function, device, permission, confined, patience })
    }

    /// The namespace of this number, or the first.
    pub(crate) fn namespace(&self, id: Option<u32>) -> Result<NamespaceInfo, Failure> {
        let first = self.nvme.info().namespaces.first().map(|namespace| namespace.id);
        Ok(self.nvme.namespace(id.or(first).unwrap_or(1))?)
    }

    /// Carries requests of `length` bytes each out, as many at once as the queues hold. `prepare` fills their
    /// memory before, `finish` looks at it after. What the controller does not end in time is aborted; a
    /// controller that cannot do that, or does not do as it should, is reset; what was under way is sent again.
    pub(crate) fn run(
        &mut self,
        requests: impl IntoIterator<Item = (Request, u64)>,
        mut prepare: impl FnMut(&Request, &mut [u8]) -> Result<(), Failure>,
        mut finish: impl FnMut(&Request, &[u8]) -> Result<(), Failure>,
    ) -> Result<Troubles, Failure> {
        let mut requests = requests.into_iter().fuse();
        let mut again: Vec<(Request, DmaBlock)> = Vec::new();
        let mut troubles = Troubles::default();
        loop {
            while self.nvme.under_way() < self.nvme.depth() {
                let (request, memory) = if let Some(again) = again.pop() {
                    again
                } else if let Some((request, length)) = requests.next() {
                    let mut memory = self.pool.take(length)?;
                    prepare(&request, &mut memory)?;
                    (request, memory)
                } else {
                    break;
                };
                self.nvme.submit(request, memory).map_err(|(error, _)| error)?;
            }
            if self.nvme.under_way() == 0 {
                return Ok(troubles);
            }
            let count = troubles.aborts + troubles.resets;
            match self.nvme.wait(self.patience * (1 << count.min(MOST_TROUBLES))) {
                Ok(Done { request, data, result: None | Some(Err(Status::ABORTED)) }) => {
                    again.push((request, data));
                }
                Ok(Done { request, result: Some(Err(status)), .. }) => {
                    println!("nvme: {}: {request:?}", self.device.address());
                    return Err(Error::Status(status).into());
                }
                Ok(Done { request, data, result: Some(Ok(())) }) => finish(&request, &data)?,
                Err(error) if count == MOST_TROUBLES => return Err(error.into()),
                Err(error) => again.extend(self.recover(&error, &mut troubles)?),
            }
        }
    }

    /// Gets a controller going again; what is to be sent again.
    fn recover(
        &mut self,
        error: &Error,
        troubles: &mut Troubles,
    ) -> Result<Vec<(Request, DmaBlock)>, Failure> {
        let late = matches!(error, Error::Timeout { .. });
        if late && self.nvme.abort().unwrap_or(false) {
            println!("nvme: {error}: aborted");
            troubles.aborts += 1;
            return Ok(Vec::new());
        }
        let ended = self.nvme.reset()?;
        println!("nvme: {error}: reset, {} requests are sent again", ended.len());
        troubles.resets += 1;
        Ok(ended.into_iter().map(|done| (done.request, done.data)).collect())
    }

    /// The controller stops, its memory goes, the device goes back to policy.
    pub(crate) fn close(self) -> Result<(), Failure> {
        let Self { nvme, pool, function, device, permission, .. } = self;
        drop((nvme, pool));
        function.disable_bus_mastering().map_err(iommu_client::Error::from)?;
        Ok(device.detach(permission)?)
    }
}
