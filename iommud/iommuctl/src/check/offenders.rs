//! Devices that can be made to write anywhere: the edu device of QEMU, and NVMe controllers, which read a block from the
//! medium into memory.

use std::fmt;

use edud::{Direction, Edu};
use iommu_client::platform::Memory;
use iommu_client::platform::pci::Function;
use iommu_client::{BufferOptions, BusMasterPermission, Device, DmaBlock, Error};
use nvme::{CompletionMode, Controller, Settings};

use crate::server::machine;

/// A device that writes where it is told to.
pub trait Offender {
    /// What its memory has to be like.
    fn memory(&self) -> BufferOptions {
        BufferOptions::default()
    }

    /// Writes at least `count` bytes of its own to memory, and waits for the end of it. A device that reports that it
    /// could not write has ended.
    ///
    /// # Errors
    /// The device did not end it: it may write later.
    fn write(&mut self, iova: u64, count: u16) -> Result<(), Error>;
}

/// Kinds of devices that can be driven here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The edu device of QEMU.
    Edu,
    /// A controller of NVM Express.
    Nvme,
}

/// Why there is no device to test with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PickError {
    /// None is there that may be taken without being asked for.
    Nobody {
        /// NVMe controllers that nobody has claimed, as addresses.
        candidates: Vec<String>,
    },
    /// The device is of no kind that can be driven.
    Unknown(String),
    /// It is a disk, which somebody may be using.
    Disk(String),
}

impl fmt::Display for PickError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody { candidates } if candidates.is_empty() => {
                write!(
                    f,
                    "no device here can be made to write where it is told to: neither edu nor NVMe"
                )
            }
            Self::Nobody { candidates } => write!(
                f,
                "name an NVMe controller that no driver uses with --device and --force (here: {})",
                candidates.join(", ")
            ),
            Self::Disk(device) => write!(
                f,
                "{device} is an NVMe controller. It would be reset, under a driver that knows nothing of iommud, too, and \
                 one block would be read. If nobody uses it, say --force"
            ),
            Self::Unknown(device) => {
                write!(f, "{device} is neither an edu device nor an NVMe controller")
            }
        }
    }
}

/// The kind of a device, where it can be driven.
#[must_use]
pub const fn drivable(device: &machine::Device) -> Option<Kind> {
    match (device.function.vendor, device.function.device, device.function.class) {
        (0x1234, 0x11e8, _) => Some(Kind::Edu),
        // Mass storage, non-volatile memory, NVM Express.
        (_, _, 0x01_0802) => Some(Kind::Nvme),
        _ => None,
    }
}

/// Attaches a device and starts it. What an earlier driver left under way ends before.
///
/// # Errors
/// The server refuses, or the device does not start.
pub fn start(
    kind: Kind,
    device: &Device,
) -> Result<(BusMasterPermission, Box<dyn Offender>), Error> {
    match kind {
        Kind::Edu => {
            let (edu, permission) = Edu::start(device)?;
            Ok((permission, Box::new(edu)))
        }
        Kind::Nvme => {
            let (permission, medium) = Medium::start(device)?;
            Ok((permission, Box::new(medium)))
        }
    }
}

impl Offender for Edu {
    fn write(&mut self, iova: u64, count: u16) -> Result<(), Error> {
        self.dma(iova, count.into(), Direction::ToMemory)
    }
}

/// An NVMe controller, and its first namespace.
struct Medium {
    /// `None` only while it ends.
    controller: Option<Controller<Memory, DmaBlock>>,
    namespace: u32,
    function: Function,
}

impl Medium {
    fn start(device: &Device) -> Result<(BusMasterPermission, Self), Error> {
        let function = Function::open(device.address())?;
        let mut registers = function.registers(0, nvme::REGISTERS)?;
        match Controller::<_, DmaBlock>::quiesce(&mut registers) {
            // Registers may answer only after the device may master the bus; then the start does this.
            Ok(()) | Err(nvme::Error::Gone) => {}
            Err(error) => return Err(failed(error)),
        }
        let permission = device.attach()?;
        function.enable_bus_mastering(&permission)?;
        let settings = Settings { queues: 1, depth: 1, completion: CompletionMode::Poll };
        let controller = Controller::start(registers, device, settings);
        let mut medium = Self { controller: None, namespace: 0, function };
        let controller = controller.map_err(failed)?;
        // Blocks of those that the driver leaves out may be longer than a page, or have metadata.
        let first = controller.info().namespaces.first().map(|first| first.id);
        medium.controller = Some(controller);
        medium.namespace =
            first.ok_or_else(|| std::io::Error::other("no namespace can be read"))?;
        Ok((permission, medium))
    }
}

impl Offender for Medium {
    /// Below 4 GiB some controllers refuse an address that equals one of their own registers.
    fn memory(&self) -> BufferOptions {
        BufferOptions { above_4g: true, ..BufferOptions::default() }
    }

    /// Reads the first block, which has 512 bytes at least.
    fn write(&mut self, iova: u64, _count: u16) -> Result<(), Error> {
        let controller = self.controller.as_mut().ok_or(Error::Disconnected)?;
        match controller.read_to_address(self.namespace, 0, iova) {
            Ok(()) | Err(nvme::Error::Status(_)) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

impl Drop for Medium {
    /// The controller stops before its memory is released, and bus mastering is disabled last.
    fn drop(&mut self) {
        self.controller = None;
        let _ = self.function.disable_bus_mastering();
    }
}

fn failed(error: nvme::Error) -> Error {
    match error {
        nvme::Error::Client(error) => error,
        other => std::io::Error::other(other.to_string()).into(),
    }
}
