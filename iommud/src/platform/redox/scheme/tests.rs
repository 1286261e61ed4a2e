//! Tests of the scheme's methods, called with the kernel's requests, mostly over a machine without a unit.

mod waiting;

use super::*;

use iommu_protocol::fault::RECORD_SIZE;
use iommu_protocol::ids::PciAddress;
use syscall::error::{EAGAIN, EBUSY, EMSGSIZE, ENODEV, ENOENT, ENOSYS, EPERM, ERANGE};
use syscall::flag::{O_RDONLY, O_RDWR};

use crate::addr::{PhysAddr, PhysRange};
use crate::hw::{BufferPool, Constraints, MemoryError, UnitError};
use crate::platform::HugeTables;
use crate::platform::fake_unit::FakeUnit;
use crate::policy::Config;
use crate::server::{Budget, Startup, TableState, UnitStart};
use crate::topology::firmware::{Firmware, UnitDescription, UnitKind};
use crate::topology::pci::{FunctionKind, PciFunction};

/// Buffers at invented addresses.
#[derive(Default)]
struct Buffers(BTreeMap<u32, u64>);

impl BufferMemory for Buffers {
    type Share = Window;

    fn allocate(
        &mut self,
        id: u32,
        length: u64,
        _: Constraints,
    ) -> Result<Vec<PhysRange>, MemoryError> {
        self.0.insert(id, length);
        PhysRange::new(PhysAddr(0x4000_0000), length)
            .map(|range| vec![range])
            .ok_or(MemoryError::Exhausted)
    }
    fn release(&mut self, id: u32) {
        self.0.remove(&id);
    }
    fn pool(&self) -> BufferPool {
        BufferPool::UNLIMITED
    }

    fn share(&mut self, id: u32) -> Option<Window> {
        self.0.contains_key(&id).then_some(Window { address: 0x7f00_0000 })
    }
}

type Scheme = IommuScheme<FakeUnit, Buffers>;

const DEVICE: &str = "/devices/0000--00--04.0";

fn scheme() -> Scheme {
    scheme_with(Firmware::default(), Vec::new())
}

fn scheme_with(firmware: Firmware, units: Vec<UnitStart<FakeUnit>>) -> Scheme {
    IommuScheme::new(start(firmware, units, HugeTables::new([]))).with_keys(Some([9; 32]))
}

/// Starts a server with one function.
fn start<U: Unit<Memory = HugeTables>>(
    firmware: Firmware,
    units: Vec<UnitStart<U>>,
    memory: HugeTables,
) -> Server<U, Buffers> {
    let function = PciFunction {
        address: PciAddress::new(0, 0, 4, 0).unwrap(),
        vendor: 0x1234,
        device: 0x11e8,
        class: 0x00ff_0000,
        kind: FunctionKind::Conventional,
        multifunction: false,
        acs: None,
        acs_capability: 0,
        hot_plug: false,
    };
    Server::start(Startup {
        config: Config::default(),
        table: TableState::Absent,
        firmware,
        units,
        functions: vec![function],
        ram: Vec::new(),
        own: Vec::new(),
        left: Vec::new(),
        memory,
        buffers: Buffers::default(),
        budget: Budget::default(),
    })
}

/// Makes a caller from a request, because the crate has no other way.
fn caller(pid: usize, uid: u32) -> CallerCtx {
    match redox_scheme::Request::default().kind() {
        redox_scheme::RequestKind::Call(call) => CallerCtx { pid, uid, gid: uid, ..call.caller() },
        _ => panic!("an empty request is a call"),
    }
}

fn number(result: Result<OpenResult>) -> core::result::Result<usize, i32> {
    match result {
        Ok(OpenResult::ThisScheme { number, .. }) => Ok(number),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.errno),
    }
}

fn open(
    scheme: &mut Scheme,
    path: &str,
    flags: usize,
    uid: u32,
) -> core::result::Result<usize, i32> {
    let root = scheme.scheme_root().unwrap();
    number(scheme.openat(root, path, flags, 0, &caller(0, uid)))
}

fn errno<T: core::fmt::Debug>(result: Result<T>) -> i32 {
    result.unwrap_err().errno
}

/// The bytes of a protocol request: version 1, the operation, the whole length, a cookie, the structure.
fn request(operation: u16, body: &[u64], room: usize) -> Vec<u8> {
    let length = 16 + 8 * u32::try_from(body.len()).unwrap();
    let mut bytes = vec![1, 0];
    bytes.extend(operation.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(0x55u64.to_le_bytes());
    bytes.extend(body.iter().flat_map(|word| word.to_le_bytes()));
    bytes.resize(bytes.len().max(room), 0);
    bytes
}

/// Allocates one page in a session. Returns the handle of its memory.
fn buffer(scheme: &mut Scheme, session: usize) -> usize {
    // Allocate (4): length, alignment, boundary, access and flags. Reply header 24, then iova, length, slot.
    let mut payload = request(4, &[4096, 4096, 0, 3], 48);
    assert_eq!(scheme.call(session, &mut payload, &[], &caller(9, 7)).unwrap(), 48);
    assert_eq!(&payload[16..18], [0, 0], "not refused");
    assert_eq!(payload[24..32], 0x4000_0000u64.to_le_bytes(), "a bus address without a unit");
    let slot = u32::from_le_bytes(payload[40..44].try_into().unwrap());
    number(scheme.dup(session, format!("buffers/{slot}").as_bytes(), &caller(9, 7))).unwrap()
}

#[test]
fn texts_are_for_uid_0_and_read_at_offsets() {
    let mut scheme = scheme();
    assert_eq!(open(&mut scheme, "status", O_RDONLY, 1000), Err(EPERM));
    assert_eq!(open(&mut scheme, "nothing", O_RDONLY, 0), Err(ENOENT));
    let status = open(&mut scheme, "/status", O_RDONLY, 0).unwrap();
    let mut whole = vec![0; 4096];
    let length = scheme.read(status, &mut whole, 0, 0, &caller(1, 0)).unwrap();
    let mut stat = syscall::Stat::default();
    scheme.fstat(status, &mut stat, &caller(1, 0)).unwrap();
    assert_eq!((stat.st_size, stat.st_mode), (length as u64, 0o100_400));
    let mut tail = vec![0; 4096];
    assert_eq!(scheme.read(status, &mut tail, 3, 0, &caller(1, 0)).unwrap(), length - 3);
    assert_eq!(tail[..length - 3], whole[3..length]);
    assert_eq!(scheme.read(status, &mut tail, length as u64, 0, &caller(1, 0)).unwrap(), 0);
    assert_eq!(
        scheme.fevent(status, EventFlags::EVENT_READ, &caller(1, 0)).unwrap(),
        EventFlags::EVENT_READ
    );
}

/// Decodes the names in an answer of getdents. A record is u64 inode, u64 next, u16 length, u8 kind, the name and a
/// zero, as in relibc's dirent.
fn names(bytes: &[u8]) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let next = u64::from_le_bytes(rest[8..16].try_into().unwrap());
        let length = usize::from(u16::from_le_bytes(rest[16..18].try_into().unwrap()));
        let name = rest[19..length].split(|byte| *byte == 0).next().unwrap();
        found.push((next, String::from_utf8(name.to_vec()).unwrap()));
        rest = &rest[length..];
    }
    found
}

#[test]
fn directories_are_listed_in_as_many_parts_as_it_takes() {
    let mut scheme = scheme();
    assert_eq!(open(&mut scheme, "status", O_RDONLY | O_DIRECTORY, 0), Err(ENOTDIR));
    let root = open(&mut scheme, "/", O_RDONLY | O_DIRECTORY, 0).unwrap();
    let mut seen = Vec::new();
    let mut first = 0;
    loop {
        let mut space = [0xaa; 64];
        let entries = DirentBuf::new(&mut space[..], 19).unwrap();
        let written = scheme.getdents(root, entries, first).unwrap().finalize();
        let part = names(&space[..written]);
        let Some((next, _)) = part.last() else { break };
        first = *next;
        seen.extend(part.into_iter().map(|(_, name)| name));
    }
    assert_eq!(
        seen,
        [
            "status", "units", "groups", "devices", "domains", "faults", "metrics", "activity",
            "rescan"
        ]
    );
    let mut small = [0; 8];
    assert_eq!(
        errno(scheme.getdents(root, DirentBuf::new(&mut small[..], 19).unwrap(), 0).map(|_| ())),
        EINVAL
    );
    let devices = open(&mut scheme, "/devices/", O_RDONLY | O_DIRECTORY, 0).unwrap();
    let mut space = [0; 256];
    let entries = DirentBuf::new(&mut space[..], 19).unwrap();
    let written = scheme.getdents(devices, entries, 0).unwrap().finalize();
    assert_eq!(names(&space[..written]), [(1, "0000--00--04.0".to_owned())]);
    let status = open(&mut scheme, "status", O_RDONLY, 0).unwrap();
    let entries = DirentBuf::new(&mut space[..], 19).unwrap();
    assert_eq!(errno(scheme.getdents(status, entries, 0).map(|_| ())), ENOTDIR);
}

#[test]
fn only_uid_0_claims_and_only_one_owner() {
    let mut scheme = scheme();
    assert_eq!(open(&mut scheme, DEVICE, O_RDWR, 1000), Err(EPERM));
    let first = open(&mut scheme, DEVICE, O_RDWR, 0).unwrap();
    assert_eq!(open(&mut scheme, DEVICE, O_RDWR, 0), Err(syscall::error::EBUSY));
    assert!(open(&mut scheme, DEVICE, O_RDONLY, 0).is_ok(), "the text is not a claim");
    scheme.on_close(first);
    assert!(open(&mut scheme, DEVICE, O_RDWR, 0).is_ok());
    assert_eq!(open(&mut scheme, "/devices/0000--00--05.0", O_RDWR, 0), Err(ENODEV));
}

/// A group is released by the word alone, by user 0 alone, and through a descriptor for writing alone.
#[test]
fn words_of_administrators_are_for_uid_0() {
    let mut scheme = scheme();
    for path in ["rescan", "groups/0", "units/0"] {
        assert_eq!(open(&mut scheme, path, O_WRONLY, 1000), Err(EPERM), "{path}");
    }
    assert_eq!(open(&mut scheme, "units/0", O_WRONLY, 0), Err(ENOENT), "no unit");
    let admin = caller(1, 0);
    let session = open(&mut scheme, DEVICE, O_RDWR, 0).unwrap();
    let memory = buffer(&mut scheme, session);
    let text = open(&mut scheme, "groups/0", O_RDONLY, 0).unwrap();
    assert_eq!(errno(scheme.write(text, b"release", 0, 0, &admin)), ENOSYS);
    assert_eq!(errno(scheme.write(session, b"release", 0, 0, &admin)), ENOSYS);
    let group = open(&mut scheme, "groups/0", O_WRONLY, 0).unwrap();
    assert_eq!(errno(scheme.write(group, b"releas", 0, 0, &admin)), ENOSYS);
    assert_eq!(open(&mut scheme, DEVICE, O_RDWR, 0), Err(EBUSY), "still claimed");
    assert_eq!(scheme.write(group, b"release", 0, 0, &admin).unwrap(), 7);
    let mut attach = request(2, &[0], 24);
    assert_eq!(errno(scheme.call(session, &mut attach, &[], &admin)), ENODEV);
    assert!(open(&mut scheme, DEVICE, O_RDWR, 0).is_ok());
    scheme.on_close(memory);
    scheme.on_close(session);
}

#[test]
fn a_session_descriptor_is_all_its_holder_needs() {
    let mut scheme = scheme();
    let session = open(&mut scheme, DEVICE, O_RDWR, 0).unwrap();
    let below = buffer(&mut scheme, session);
    let again = number(scheme.openat(session, "buffers/0", O_RDWR, 0, &caller(9, 1000))).unwrap();
    assert_ne!(below, again);
    let mut stat = syscall::Stat::default();
    scheme.fstat(below, &mut stat, &caller(9, 1000)).unwrap();
    assert_eq!(stat.st_size, 4096);
    assert_eq!(number(scheme.dup(session, b"buffers/1", &caller(9, 7))), Err(EBADF));
    assert_eq!(number(scheme.dup(below, b"buffers/0", &caller(9, 7))), Err(EBADF));
    assert_eq!(number(scheme.dup(ROOT, b"status", &caller(9, 0))), Err(EBADF));
    assert_eq!(number(scheme.dup(session, b"\xff", &caller(9, 7))), Err(EINVAL));
}

#[test]
fn mappings_are_shared_and_inside() {
    let mut scheme = scheme();
    let session = open(&mut scheme, DEVICE, O_RDWR, 0).unwrap();
    let memory = buffer(&mut scheme, session);
    let who = caller(9, 0);
    let shared = MapFlags::MAP_SHARED | MapFlags::PROT_READ | MapFlags::PROT_WRITE;
    assert_eq!(scheme.mmap_prep(memory, 0, 4096, shared, &who).unwrap(), 0x7f00_0000);
    assert_eq!(scheme.mmap_prep(memory, 0, 1, shared, &who).unwrap(), 0x7f00_0000);
    for (offset, size) in
        [(0, 0), (0, 4097), (4096, 1), (8, 8), (u64::MAX, 1), (u64::MAX - 4095, 4096)]
    {
        assert_eq!(
            errno(scheme.mmap_prep(memory, offset, size, shared, &who)),
            ERANGE,
            "{offset} {size}"
        );
    }
    assert_eq!(errno(scheme.mmap_prep(memory, 0, 4096, MapFlags::MAP_PRIVATE, &who)), EINVAL);
    assert_eq!(
        errno(scheme.mmap_prep(memory, 0, 4096, shared | MapFlags::PROT_EXEC, &who)),
        EACCES
    );
    assert!(scheme.mmap_prep(session, 0, 4096, shared, &who).is_err());
    assert!(scheme.munmap(memory, 0, 4096, MunmapFlags::empty(), &who).is_ok());
    scheme.on_close(memory);
    assert_eq!(errno(scheme.mmap_prep(memory, 0, 4096, shared, &who)), EBADF);
}

#[test]
fn the_end_of_a_client_ends_its_buffers() {
    let mut scheme = scheme();
    let session = open(&mut scheme, DEVICE, O_RDWR, 0).unwrap();
    let memory = buffer(&mut scheme, session);
    scheme.on_close(session);
    assert!(
        scheme.server_mut().share(Handle(u32::try_from(memory).unwrap())).is_ok(),
        "still mapped"
    );
    scheme.on_close(memory);
    scheme.on_close(memory);
    scheme.on_close(ROOT);
    scheme.on_close(usize::MAX);
    let metrics = open(&mut scheme, "metrics", O_RDONLY, 0).unwrap();
    let mut text = vec![0; 8192];
    let length = scheme.read(metrics, &mut text, 0, 0, &caller(0, 0)).unwrap();
    let text = String::from_utf8(text[..length].to_vec()).unwrap();
    assert!(text.lines().any(|line| line == "buffers 0"), "{text}");
}

#[test]
fn calls_and_reads_that_make_no_sense_are_refused() {
    let mut scheme = scheme();
    let session = open(&mut scheme, DEVICE, O_RDWR, 0).unwrap();
    let who = caller(9, 0);
    let mut record = [0; RECORD_SIZE];
    assert_eq!(errno(scheme.read(session, &mut record, 0, 0, &who)), EAGAIN);
    assert_eq!(errno(scheme.read(session, &mut record[1..], 0, 0, &who)), EMSGSIZE);
    assert_eq!(scheme.fevent(session, EventFlags::EVENT_READ, &who).unwrap(), EventFlags::empty());
    assert_eq!(errno(scheme.call(session, &mut [0; 23], &[], &who)), EMSGSIZE);
    assert_eq!(errno(scheme.call(session, &mut request(1, &[0], 128), &[1], &who)), EINVAL);
    assert_eq!(errno(scheme.call(ROOT, &mut request(1, &[0], 128), &[], &who)), EBADF);
    assert_eq!(errno(scheme.call(MEMORY, &mut [0; 8], &[HELD], &who)), EINVAL);
    assert_eq!(errno(scheme.call(MEMORY, &mut [], &[], &who)), EBADF);
    assert_eq!(errno(scheme.call(session, &mut [0; 16], &[4], &who)), EINVAL);
}

#[test]
fn a_buffer_goes_to_the_session_that_expects_its_key_and_once() {
    let mut scheme = scheme();
    let session = open(&mut scheme, DEVICE, O_RDWR, 0).unwrap();
    let memory = buffer(&mut scheme, session);
    let who = caller(9, 7);
    let (mut key, mut other) = ([7; 16], [8; 16]);
    assert_eq!(errno(scheme.call(memory, &mut key, &[BRING], &who)), EBADF);
    assert_eq!(errno(scheme.call(memory, &mut key, &[EXPECT], &who)), EINVAL);
    assert_eq!(scheme.call(session, &mut key, &[EXPECT], &who).unwrap(), 0);
    assert_eq!(scheme.call(session, &mut other, &[EXPECT], &who).unwrap(), 0);
    assert!(key != [7; 16] && other != [8; 16] && key != other, "the server makes them up");
    assert_eq!(errno(scheme.call(session, &mut [0; 15], &[EXPECT], &who)), EINVAL);
    assert_eq!(errno(scheme.call(memory, &mut key, &[BRING], &who)), EBADF, "forgotten");
    assert_eq!(scheme.call(memory, &mut other, &[BRING], &who).unwrap(), 0, "it has slot 0");
    assert_eq!(errno(scheme.call(memory, &mut other, &[BRING], &who)), EBADF, "used");
    assert_eq!(scheme.call(session, &mut key, &[EXPECT], &who).unwrap(), 0);
    assert_eq!(errno(scheme.call(session, &mut key, &[BRING], &who)), ENOSYS, "no buffer");
    assert_eq!(scheme.call(session, &mut key, &[EXPECT], &who).unwrap(), 0);
    scheme.on_close(session);
    assert_eq!(errno(scheme.call(memory, &mut key, &[BRING], &who)), EBADF, "closed");
    let next = open(&mut scheme, DEVICE, O_RDWR, 0).unwrap();
    assert_eq!(scheme.call(next, &mut key, &[EXPECT], &who).unwrap(), 0);
    assert_eq!(scheme.call(memory, &mut key, &[BRING], &who).unwrap(), 0, "of another client's");
}

/// A client cannot choose a key, neither an invented one nor that of another session.
#[test]
fn a_key_is_the_servers_and_without_a_seed_there_is_none() {
    let mut scheme = scheme();
    let session = open(&mut scheme, DEVICE, O_RDWR, 0).unwrap();
    let memory = buffer(&mut scheme, session);
    let who = caller(9, 7);
    let chosen = [7; 16];
    scheme.call(session, &mut chosen.clone(), &[EXPECT], &who).unwrap();
    assert_eq!(errno(scheme.call(memory, &mut chosen.clone(), &[BRING], &who)), EBADF);
    let mut scheme = scheme.with_keys(None);
    assert_eq!(errno(scheme.call(session, &mut chosen.clone(), &[EXPECT], &who)), ENOSYS);
}

/// Client numbers start again after 2^31 sessions, and skip those of open sessions.
/// Whoever leaves handles of texts or of administrators' words open keeps nobody else out: the name space manager opens
/// them all, as process 0.
#[test]
fn handles_of_one_program_keep_no_other_out() {
    let mut scheme = scheme();
    for path in ["status", "rescan"] {
        let flags = if path == "rescan" { O_WRONLY } else { O_RDONLY };
        for _ in 0..600 {
            assert!(open(&mut scheme, path, flags, 0).is_ok(), "{path}");
        }
    }
    assert!(open(&mut scheme, "/", O_RDONLY, 0).is_ok());
    assert!(open(&mut scheme, DEVICE, O_RDWR, 0).is_ok());
}

#[test]
fn a_session_never_gets_an_open_ones_client() {
    let mut scheme = scheme();
    let session = open(&mut scheme, DEVICE, O_RDWR, 0).unwrap();
    let client = |scheme: &Scheme, session: usize| scheme.clients[&handle(session).unwrap()];
    let first = client(&scheme, session);
    assert_eq!(first, ClientId(1 << 31));
    for (last, next) in
        [(u32::MAX, 0x8000_0001), (0x8000_0005, 0x8000_0006), (u32::MAX - 1, u32::MAX)]
    {
        scheme.last_client = last;
        assert_eq!(scheme.new_client(), ClientId(next));
    }
}

fn memory() -> PhysRange {
    PhysRange::new(PhysAddr(0x20_0000), 0x20_0000).unwrap()
}

fn ask_for_memory(scheme: &mut Scheme) -> usize {
    scheme.call(MEMORY, &mut [0; 8], &[GIVE_UP], &caller(0, 0)).unwrap()
}

#[test]
fn memory_of_others_goes_only_where_it_may() {
    let who = caller(0, 0);
    let mut alone = scheme();
    assert_eq!(ask_for_memory(&mut alone), 0, "nobody said that it may ever go");
    let mut unknown = scheme().after(vec![memory()], false);
    assert_eq!(ask_for_memory(&mut unknown), 0, "units may be unknown");
    let mut after = scheme().after(vec![memory()], true);
    assert_eq!([ask_for_memory(&mut after), ask_for_memory(&mut after)], [1, 0]);
    assert!(after.munmap(MEMORY, 0, 4096, MunmapFlags::empty(), &who).is_ok());
    after.on_close(MEMORY);
}

#[test]
fn memory_of_others_stays_while_a_unit_is_not_enabled() {
    let description = UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(PhysRange::new(PhysAddr(0xfed9_0000), 4096).unwrap()),
        include_all: true,
        scopes: Vec::new(),
        entries: Vec::new(),
    };
    let firmware = Firmware { units: vec![description], ..Firmware::default() };
    let failed = UnitStart::Failed(UnitError::Dead);
    let mut after = scheme_with(firmware, vec![failed]).after(vec![memory()], true);
    assert_eq!([ask_for_memory(&mut after), ask_for_memory(&mut after)], [0, 0]);
}

/// The process of a session is known when its own open arrives, and not when the name space's server opens for it.
#[test]
fn the_owner_is_the_process_that_opened_the_session() {
    let mut scheme = scheme();
    let owner = |scheme: &mut Scheme| {
        let text = open(scheme, DEVICE, O_RDONLY, 0).unwrap();
        let mut bytes = [0; 2048];
        let length = scheme.read(text, &mut bytes, 0, 0, &caller(0, 0)).unwrap();
        scheme.on_close(text);
        let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
        text.lines().find_map(|line| line.strip_prefix("owner: ")).unwrap().to_owned()
    };
    for (process, name) in [(7, "process 7"), (0, "client "), (8, "process 8")] {
        assert_eq!(owner(&mut scheme), "none");
        let root = scheme.scheme_root().unwrap();
        let opened = scheme.openat(root, DEVICE, O_RDWR, 0, &caller(process, 0));
        let session = number(opened).unwrap();
        assert!(owner(&mut scheme).starts_with(name), "{}", owner(&mut scheme));
        scheme.on_close(session);
    }
}
