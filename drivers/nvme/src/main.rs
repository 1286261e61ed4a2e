//! `nvme`: an NVMe controller used through iommud.

mod bench;
mod disk;
mod options;
mod transfer;

use std::process::ExitCode;
use std::time::Duration;

use iommu_client::platform::pci;
use iommu_client::{Connection, Device};
use nvme::{Confine, NamespaceInfo, Operation};

use disk::{Disk, Waits};
use options::{Command, Options, USAGE};
use transfer::transfer;

/// How long the report of a fault may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the driver does not end as expected.
enum Failure {
    Client(iommu_client::Error),
    Nvme(nvme::Error),
    File(std::io::Error),
    WrongData { at: u64 },
    NoFault,
    Fault(String),
}

impl From<iommu_client::Error> for Failure {
    fn from(error: iommu_client::Error) -> Self {
        Self::Client(error)
    }
}

impl From<nvme::Error> for Failure {
    fn from(error: nvme::Error) -> Self {
        match error {
            nvme::Error::Client(error) => Self::Client(error),
            error => Self::Nvme(error),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::File(error)
    }
}

impl Failure {
    /// Prints the failure, and returns the exit code.
    fn report(&self) -> u8 {
        let (text, code) = match self {
            Self::Client(error) if error.refusal().is_some() => (format!("refused: {error}"), 3),
            Self::Client(error) => (format!("failed: {error}"), 1),
            Self::Nvme(error) => (format!("failed: {error}"), 1),
            Self::File(error) => (format!("failed: {error}"), 1),
            Self::WrongData { at } => (format!("wrong data at byte {at}"), 4),
            Self::NoFault => ("no fault came".into(), 5),
            Self::Fault(fault) => (format!("a fault that was not expected: {fault}"), 6),
        };
        println!("nvme: {text}");
        code
    }
}

fn main() -> ExitCode {
    match Options::parse(lexopt::Parser::from_env()) {
        Ok(options) => match run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report().into(),
        },
        Err(error) => {
            println!("nvme: {error}\n{USAGE}");
            2.into()
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let mut disk = start(claim(&options.device)?, options, options.confine)?;
    match options.command {
        Command::Info => info(&disk),
        Command::Write => transfer(&mut disk, options, Operation::Write)?,
        Command::Read => transfer(&mut disk, options, Operation::Read)?,
        Command::Rogue => rogue(&mut disk, options)?,
        Command::Bench => bench(&mut disk, options)?,
    }
    let fault = disk.device.next_fault()?;
    disk.close()?;
    fault.map_or(Ok(()), |fault| Err(Failure::Fault(fault.to_string())))
}

fn bench(disk: &mut Disk, options: &Options) -> Result<(), Failure> {
    let connection = Connection::system()?;
    let Some(name) = &options.against else { return bench::alone(&connection, disk, options) };
    let mut other = start(claim(name)?, options, Confine::Pool)?;
    match options.table {
        None => bench::pairs(&connection, disk, &mut other, options)?,
        Some(table) => bench::table(&connection, disk, &mut other, options, table)?,
    }
    other.close()
}

/// The device of this name. If the name is empty, the one that this driver was started for.
fn claim(name: &str) -> Result<Device, Failure> {
    if !name.is_empty() {
        return Ok(Device::open(&Connection::system()?, name)?);
    }
    if let Some(device) = Device::handed_over()? {
        return Ok(device);
    }
    let address = pci::spawned().ok_or(iommu_client::Error::BadName)?;
    Ok(Device::claim(&Connection::system()?, address)?)
}

fn start(device: Device, options: &Options, confine: Confine) -> Result<Disk, Failure> {
    let disk = Disk::start(device, options, confine)?;
    let name = disk.device.address();
    println!("nvme: {name} attached, {}", if disk.confined { "confined" } else { "NOT CONFINED" });
    if let Waits::NoVector(_) = disk.waits {
        println!("nvme: interrupts: {}", disk.waits);
    }
    Ok(disk)
}

fn info(disk: &Disk) {
    let info = disk.nvme.info();
    println!("model:     {}", info.model);
    println!("serial:    {}", info.serial);
    println!("firmware:  {}", info.firmware);
    let (queues, depth) = (disk.nvme.queues(), disk.nvme.depth());
    println!("interrupts: {}", disk.waits);
    println!("transfers: at most {} bytes, {depth} at once in {queues} queues", info.most_bytes);
    for NamespaceInfo { id, blocks, block_size, .. } in &info.namespaces {
        println!("namespace {id}: {blocks} blocks of {block_size} bytes");
    }
}

/// Acts like a driver with a wrong pointer: it makes the controller write to an address where nothing was granted.
fn rogue(disk: &mut Disk, options: &Options) -> Result<(), Failure> {
    let namespace = disk.namespace(options.namespace)?;
    match disk.nvme.read_to_address(namespace.id, 0, options.iova) {
        Ok(()) => println!("nvme: the controller says that it has written to {:#x}", options.iova),
        Err(error) => println!("nvme: read to {:#x}: {error}", options.iova),
    }
    let fault = disk.device.wait_fault(PATIENCE)?.ok_or(Failure::NoFault)?;
    if fault.address.is_some_and(|address| address & !0xfff != options.iova & !0xfff) {
        return Err(Failure::Fault(fault.to_string()));
    }
    println!("nvme: fault {fault}");
    let ended = disk.nvme.reset()?.len();
    // The faults of one transfer.
    while let Some(fault) = disk.device.next_fault()? {
        println!("nvme: fault {fault}");
    }
    println!("nvme: reset, {ended} requests ended");
    transfer(disk, options, Operation::Write)?;
    transfer(disk, options, Operation::Read)
}
