//! A device and its session.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iommu_protocol::fault::{FaultRecord, RECORD_SIZE};
use iommu_protocol::ids::{PciAddress, RequesterId};
use iommu_protocol::path::{Path, SessionPath};
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{
    Empty, MAX_PAYLOAD, Operation, QueryResult, Region, RegionKind, RegionsResult, ReplyHeader,
    SessionFlags, Wire,
};

use crate::buffer::{Allocation, BufferOptions, DmaBuffer};
use crate::connection::Connection;
use crate::error::{Error, ProtocolError};
use crate::imported::Imported;
use crate::reset::{ConfigSpace, ResetError, function_level_reset};
use crate::sanitizer::BugReport;
use crate::session::Session;
use crate::transport::{FOREVER, Handle, Transport};

/// A device that this process has claimed. Its group has no other owner. The device goes back under the policy of its
/// group when the last object made from it is dropped, or when the process ends.
#[derive(Debug)]
pub struct Device {
    pub(crate) session: Arc<Session>,
    address: PciAddress,
}

/// Permission to enable bus mastering: the device's requests are confined to the mappings of its session. (On a
/// machine without an IOMMU, nothing can confine them.)
#[derive(Debug)]
#[must_use = "the permission is what bus mastering is enabled with"]
pub struct BusMasterPermission {
    address: PciAddress,
    /// Number of the session that was attached.
    session: u64,
}

/// Why a device was not detached, with the permission, which stays valid.
#[derive(Debug)]
pub struct DetachError {
    /// The reason.
    pub error: Error,
    /// The permission that was passed.
    pub permission: BusMasterPermission,
}

impl fmt::Display for DetachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for DetachError {}

impl From<DetachError> for Error {
    fn from(failed: DetachError) -> Self {
        failed.error
    }
}

impl BusMasterPermission {
    /// The device that it is for.
    #[must_use]
    pub const fn address(&self) -> PciAddress {
        self.address
    }
}

/// Properties of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// State of the session. Without `CONFINED` the device reaches all memory.
    pub flags: SessionFlags,
    /// The device's group.
    pub group: u32,
    /// How often this address was taken by a new device, from 1.
    pub generation: u32,
    /// The device.
    pub address: PciAddress,
    /// Lowest I/O virtual address that allocation hands out.
    pub iova_first: u64,
    /// Highest I/O virtual address (inclusive) that a mapping may cover.
    pub iova_last: u64,
    /// Bit n set: leaves of 2^n bytes exist.
    pub page_sizes: u64,
    /// Bytes of buffers that may still be allocated.
    pub memory_left: u64,
    /// Mappings that may still be made.
    pub mappings_left: u32,
    /// Faults of the device that were lost.
    pub faults_lost: u32,
}

/// What [`Device::quiesce`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiesced {
    /// No earlier driver left requests under way.
    Already,
    /// The function was reset. It is as after power-on, with its header as before.
    Reset,
    /// Requests may be under way, and the function has no reset of its own. The driver must stop the device by its
    /// registers before it attaches it.
    NotReset,
}

/// I/O virtual addresses that cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// First address.
    pub first: u64,
    /// Last address (inclusive).
    pub last: u64,
    /// The reason.
    pub kind: RegionKind,
}

impl Device {
    /// Claims the device of this name, `SSSS--BB--DD.F`.
    ///
    /// # Errors
    /// `NotOwner` if another owner has its group, `NotProbed` if there is no such device, `NotReady` if its unit is
    /// not up yet, `Permission`; [`Error::BadName`].
    pub fn open(connection: &Connection, name: &str) -> Result<Self, Error> {
        Self::claim(connection, name.parse().map_err(|_| Error::BadName)?)
    }

    /// Claims the device of this name, and waits for its unit to come up. It waits at most `wait`, and at most as
    /// long as the server lets claims wait (a minute). Claims are granted in the order in which they were made. Other
    /// threads may use the connection meanwhile.
    ///
    /// # Errors
    /// The errors of [`Device::open`]; `NotReady` after `wait`, or at once when too many claims wait.
    pub fn open_within(connection: &Connection, name: &str, wait: Duration) -> Result<Self, Error> {
        let address: PciAddress = name.parse().map_err(|_| Error::BadName)?;
        let path = Path::Device(address).to_string();
        let handle = connection.0.open_within(None, &path, wait)?;
        Ok(Self::new(Session::new(connection.0.clone(), handle), address))
    }

    /// Claims the device at this address.
    ///
    /// # Errors
    /// `NotOwner`, `NotProbed`, `NotReady`, `Permission`, like [`Device::open`].
    pub fn claim(connection: &Connection, address: PciAddress) -> Result<Self, Error> {
        let handle = connection.0.open(None, &Path::Device(address).to_string(), true)?;
        Ok(Self::new(Session::new(connection.0.clone(), handle), address))
    }

    /// A device whose memory is watched in debug builds.
    fn new(session: Session, address: PciAddress) -> Self {
        if cfg!(debug_assertions) {
            session.sanitize(address);
        }
        Self { session: Arc::new(session), address }
    }

    /// Makes a device from a session that is open already.
    #[cfg_attr(
        not(target_os = "redox"),
        expect(dead_code, reason = "sessions are inherited there")
    )]
    pub(crate) fn over(transport: Arc<dyn Transport>, handle: Handle) -> Result<Self, Error> {
        let session = Session::new(transport, handle);
        let result: QueryResult = session.call(Operation::Query, &Empty::default())?;
        let requester = RequesterId(result.requester);
        Ok(Self::new(session, PciAddress { segment: result.segment, requester }))
    }

    /// Claims another device for the owner of this one. It must be a member of the same group, or of a group that
    /// nobody owns. Both devices share one domain, so an address is the same memory for both once each is attached.
    ///
    /// # Errors
    /// The errors of [`Device::open`]; `Busy` if this owner has claimed the device already; `Permission` if this process
    /// is no administrator, although it has the session.
    pub fn open_member(&self, address: PciAddress) -> Result<Self, Error> {
        let transport = &self.session.transport;
        let path = SessionPath::Member(address).to_string();
        let handle = transport.open(Some(self.session.handle), &path, true)?;
        Ok(Self::new(Session::new(transport.clone(), handle), address))
    }

    /// The address of the device.
    #[must_use]
    pub const fn address(&self) -> PciAddress {
        self.address
    }

    /// Watches the use of this device's memory from now on, and writes a line to standard error for each bug of the
    /// driver. Debug builds do so from the start. It makes no request to the server.
    ///
    /// | [`Bug`](crate::Bug) | what the driver did |
    /// |---|---|
    /// | use after unmap | ended a mapping or grant while the device was at work on it |
    /// | freed while mapped | dropped a buffer that a [`Batch`](crate::Batch) has mapped or granted |
    /// | wrong direction | granted reads, and the device wrote; or the reverse |
    /// | written while granted | wrote to memory while only the device was to write it |
    /// | read twice | read bytes again that the device may have changed: see [`Snapshot`](crate::Snapshot) |
    /// | written after free | gave a block of a [`DmaPool`](crate::DmaPool) back while the device was at work on it |
    /// | out of bounds | gave the device a wrong length, or an address in the page beside its memory |
    ///
    /// Each report names the place that granted the memory. The same bug at the same places is reported once. What a
    /// device does is known from its faults, so the driver reads them ([`Device::next_fault`]). A block of a pool is
    /// filled with the byte `0xdb` when it is given back, and examined when it is taken again. That also works where
    /// no unit confines the device.
    ///
    /// Memory that was allocated before the call, pools that were made before it, and accesses by
    /// [`as_ptr`](crate::DmaBuffer::as_ptr) are not watched. While nothing is watched, each access of a buffer costs one
    /// more branch, on an `Option` that is `None`.
    ///
    /// ```
    /// use std::sync::mpsc::channel;
    /// use iommu_client::{Access, Batch, BufferOptions, Device, Placement};
    ///
    /// # let model = iommud_tests::model::Model::new();
    /// # let connection = model.connection();
    /// let device = Device::open(&connection, "0000--00--04.0")?;
    /// let (sender, reports) = channel();
    /// device.sanitize_with(move |report| drop(sender.send(report.to_string())));
    ///
    /// let buffer = device.allocate(4096, BufferOptions::default())?;
    /// let anywhere = Placement::Anywhere;
    /// Batch::new().map(buffer.slot(), 0..4096, Access::READ, anywhere).run(&device)?;
    /// drop(buffer); // the batch's mapping was never ended
    ///
    /// let report = reports.try_recv().unwrap();
    /// assert!(report.starts_with("0000--00--04.0: freed while mapped: the buffer was dropped; 4096 bytes"));
    /// # Ok::<(), iommu_client::Error>(())
    /// ```
    pub fn sanitize(&self) {
        self.session.sanitize(self.address);
    }

    /// Watches like [`Device::sanitize`], and passes each report to `hook`. A second call replaces the hook. It runs in
    /// the thread that meets the bug.
    pub fn sanitize_with(&self, hook: impl Fn(&BugReport) + Send + Sync + 'static) {
        self.session.sanitize(self.address).set_hook(hook);
    }

    /// Attaches the device to its session's domain. It then reaches the session's mappings, and nothing else.
    ///
    /// # Errors
    /// `UnitFailed`, `NoUnit`, `NotReady`.
    pub fn attach(&self) -> Result<BusMasterPermission, Error> {
        let Empty { .. } = self.session.call(Operation::Attach, &Empty::default())?;
        Ok(BusMasterPermission { address: self.address, session: self.session.number })
    }

    /// Ends the requests that an earlier driver or server may have left under way, by a reset of the device's function.
    /// To be called before [`Device::attach`]: then those requests meet none of this session's memory. `config` is the
    /// function's configuration space ([`crate::platform::pci::Function`]). See [`function_level_reset`] for the state
    /// that is lost.
    ///
    /// # Errors
    /// [`Error::Reset`], after which the device must not be attached; the server is gone.
    pub fn quiesce(&self, config: &mut impl ConfigSpace) -> Result<Quiesced, Error> {
        if !self.query()?.flags.contains(SessionFlags::UNQUIESCED) {
            return Ok(Quiesced::Already);
        }
        match function_level_reset(config) {
            Ok(()) => Ok(Quiesced::Reset),
            Err(ResetError::Unsupported) => Ok(Quiesced::NotReset),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts the device back under the policy of its group. The driver disables bus mastering before. `permission` is
    /// the one that attaching this device in this session returned.
    ///
    /// # Errors
    /// [`Error::OtherPermission`] if the permission is of another device or session; nothing has changed then. Every
    /// error returns the permission.
    pub fn detach(&self, permission: BusMasterPermission) -> Result<(), DetachError> {
        let ended = if permission.session == self.session.number {
            self.session.call(Operation::Detach, &Empty::default())
        } else {
            Err(Error::OtherPermission { of: permission.address, device: self.address })
        };
        match ended {
            Ok(Empty { .. }) => Ok(()),
            Err(error) => Err(DetachError { error, permission }),
        }
    }

    /// Reads the properties of the session.
    ///
    /// # Errors
    /// The server is gone.
    pub fn query(&self) -> Result<Query, Error> {
        let result: QueryResult = self.session.call(Operation::Query, &Empty::default())?;
        Ok(Query {
            flags: SessionFlags::from_bits_truncate(result.flags),
            group: result.group,
            generation: result.generation,
            address: PciAddress {
                segment: result.segment,
                requester: RequesterId(result.requester),
            },
            iova_first: result.iova_first,
            iova_last: result.iova_last,
            page_sizes: result.page_sizes,
            memory_left: result.memory_left,
            mappings_left: result.mappings_left,
            faults_lost: result.faults_lost,
        })
    }

    /// The addresses that this device's domain cannot map, in order.
    ///
    /// # Errors
    /// The server is gone.
    pub fn regions(&self) -> Result<Vec<ReservedRegion>, Error> {
        let room = MAX_PAYLOAD - ReplyHeader::SIZE - RegionsResult::SIZE;
        self.session.call_with(Operation::Regions, &Empty::default(), &[], room, |body| {
            let count = RegionsResult::decode(body)?.count;
            let regions = body.get(RegionsResult::SIZE..).unwrap_or_default();
            let regions: Vec<_> =
                regions.chunks(Region::SIZE).map(read_region).collect::<Result<_, _>>()?;
            let complete = usize::try_from(count) == Ok(regions.len());
            if complete { Ok(regions) } else { Err(ProtocolError::Length.into()) }
        })
    }

    /// Allocates a buffer of `length` bytes, a multiple of 4096, filled with zeros.
    ///
    /// # Errors
    /// `Quota`, `Full`, `NoMemory`, `NoSpace`, `Alignment`, `Range`; or the memory cannot be mapped into this process.
    #[track_caller]
    pub fn allocate(&self, length: u64, options: BufferOptions) -> Result<DmaBuffer, Error> {
        Allocation::new(&self.session, length, options)?.bytes()
    }

    /// Gives this session a buffer of another session of its connection (on Redox, of this process). Nothing is
    /// mapped yet.
    ///
    /// # Errors
    /// `Quota`; `BadHandle` if the buffer belongs to another connection.
    pub fn import<'buffer, T: ?Sized>(
        &self,
        buffer: &'buffer DmaBuffer<T>,
    ) -> Result<Imported<'buffer, T>, Error> {
        Imported::new(&self.session, buffer)
    }

    /// The oldest unread fault of the device; `None` when there is none.
    ///
    /// # Errors
    /// The server is gone.
    pub fn next_fault(&self) -> Result<Option<FaultRecord>, Error> {
        let mut bytes = [0; RECORD_SIZE];
        match self.session.transport.read(self.session.handle, &mut bytes) {
            Ok(RECORD_SIZE) => {
                let fault = FaultRecord::decode(&bytes)?;
                self.session.sanitizer().inspect(|sanitizer| sanitizer.fault(&fault));
                Ok(Some(fault))
            }
            Ok(_) => Err(ProtocolError::Length.into()),
            Err(Error::Refused(Refusal::NotReady)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The unread faults of the device, oldest first, until there are none.
    pub fn faults(&self) -> impl Iterator<Item = Result<FaultRecord, Error>> + '_ {
        std::iter::from_fn(|| self.next_fault().transpose())
    }

    /// Waits at most `timeout` for the oldest unread fault of the device; with `Duration::MAX`, without a limit.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # let model = iommud_tests::model::Model::new();
    /// # let connection = model.connection();
    /// # let device = iommu_client::Device::open(&connection, "0000--00--04.0")?;
    /// # let permission = device.attach()?;
    /// # assert!(model.device_write(device.address(), 0xbad0000, &[1]).is_err());
    /// // The device wrote where nothing was granted:
    /// if let Some(fault) = device.wait_fault(Duration::from_secs(1))? {
    ///     assert!(fault.to_string().contains("write at iova 0xbad0000"), "{fault}");
    /// }
    /// # let _ = permission;
    /// # Ok::<(), iommu_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// The server is gone.
    pub fn wait_fault(&self, timeout: Duration) -> Result<Option<FaultRecord>, Error> {
        let deadline = Instant::now() + timeout.min(FOREVER);
        loop {
            if let Some(fault) = self.next_fault()? {
                return Ok(Some(fault));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let readable = self.session.transport.wait_readable(self.session.handle, left)?;
            if !readable {
                return Ok(None);
            }
        }
    }
}

fn read_region(bytes: &[u8]) -> Result<ReservedRegion, Error> {
    let region = Region::decode(bytes)?;
    use RegionKind::{Exclusion, Firmware, Interrupt, Registers};
    let kind = [Firmware, Interrupt, Exclusion, Registers]
        .into_iter()
        .find(|kind| *kind as u32 == region.kind)
        .ok_or(ProtocolError::Value)?;
    Ok(ReservedRegion { first: region.first, last: region.last, kind })
}
