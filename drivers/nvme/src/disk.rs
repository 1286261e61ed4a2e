//! A controller in use: claimed, attached, started; and ended in the opposite order.

use std::time::Duration;

use iommu_client::platform::Memory;
use iommu_client::platform::pci::Function;
use iommu_client::{
    BusMasterPermission, Connection, Device, DmaBlock, DmaPool, PoolOptions, SessionFlags,
};
use nvme::{Controller, Error, NamespaceInfo, Request};

use crate::Failure;

/// Bytes of registers: those of the controller, and the doorbells of two queues at any stride.
const REGISTERS: u64 = 8192;

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Resets in one run of requests before it is given up.
const MOST_RESETS: u32 = 3;

/// A controller in use. What uses memory goes first.
pub(crate) struct Disk {
    pub(crate) nvme: Controller<Memory, DmaBlock>,
    pub(crate) pool: DmaPool,
    function: Function,
    pub(crate) device: Device,
    permission: BusMasterPermission,
    pub(crate) confined: bool,
}

impl Disk {
    pub(crate) fn open(connection: &Connection, name: &str, depth: u16) -> Result<Self, Failure> {
        let device = Device::open(connection, name)?;
        // Bus mastering is off from here on.
        let function = Function::open(device.address()).map_err(iommu_client::Error::from)?;
        let mut registers = function.registers(0, REGISTERS)?;
        // What an earlier driver left under way ends before there is memory to be reached. Where registers
        // answer only once the device may master the bus, starting does it.
        match Controller::<_, DmaBlock>::quiesce(&mut registers) {
            Ok(()) | Err(Error::Gone) => {}
            Err(error) => return Err(error.into()),
        }
        let permission = device.attach()?;
        let confined = device.query()?.flags.contains(SessionFlags::CONFINED);
        function.enable_bus_mastering(&permission).map_err(iommu_client::Error::from)?;
        let nvme = Controller::start(registers, &device, depth)?;
        let options = PoolOptions { chunk: 2 << 20, above_4g: true, ..PoolOptions::default() };
        let pool = DmaPool::new(&device, options)?;
        Ok(Self { nvme, pool, function, device, permission, confined })
    }

    /// The namespace of this number, or the first.
    pub(crate) fn namespace(&self, id: Option<u32>) -> Result<NamespaceInfo, Failure> {
        let first = self.nvme.info().namespaces.first().map(|namespace| namespace.id);
        Ok(self.nvme.namespace(id.or(first).unwrap_or(1))?)
    }

    /// Carries requests of `length` bytes each out, as many at once as the queue holds. `prepare` fills their
    /// memory before, `finish` looks at it after. A controller that does not do as it should is reset, and
    /// what was under way is sent again. Returns how often that was.
    pub(crate) fn run(
        &mut self,
        requests: impl IntoIterator<Item = (Request, u64)>,
        mut prepare: impl FnMut(&Request, &mut [u8]) -> Result<(), Failure>,
        mut finish: impl FnMut(&Request, &[u8]) -> Result<(), Failure>,
    ) -> Result<u32, Failure> {
        let mut requests = requests.into_iter().fuse();
        let mut again: Vec<(Request, DmaBlock)> = Vec::new();
        let mut resets = 0;
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
                return Ok(resets);
            }
            match self.nvme.wait(PATIENCE) {
                Ok(done) => match done.result {
                    Some(Err(status)) => {
                        println!("nvme: {}: {:?}", self.device.address(), done.request);
                        return Err(Error::Status(status).into());
                    }
                    _ => finish(&done.request, &done.data)?,
                },
                Err(error) if resets == MOST_RESETS => return Err(error.into()),
                Err(error) => {
                    println!("nvme: {error}: reset");
                    resets += 1;
                    let ended = self.nvme.reset()?;
                    again.extend(ended.into_iter().map(|done| (done.request, done.data)));
                }
            }
        }
    }

    /// The controller stops, its memory goes, the device goes back to policy.
    pub(crate) fn close(self) -> Result<(), Failure> {
        let Self { nvme, pool, function, device, permission, .. } = self;
        drop((nvme, pool));
        function.disable_bus_mastering().map_err(iommu_client::Error::from)?;
        Ok(device.detach(permission)?)
    }
}
