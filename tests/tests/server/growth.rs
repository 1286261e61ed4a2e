//! Memory added while the server runs. No unclaimed device reaches it from the instant at which the server owns it.
//! Other clients are not disturbed.

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::{Access, Map, MapFlags, MapResult, Operation};
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::Mode;
use iommud::server::Handle;
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::{Layout, Watch};
use iommud_tests::stack::endpoint;

use super::{Bed, reach, setup, subjects};

const LARGE: u64 = 2 << 20;

/// System memory that the server takes later.
const MORE: (u64, u64) = (48 << 20, LARGE);

/// The device that is never claimed.
const LEGACY: usize = 7;

fn device(at: usize) -> PciAddress {
    PciAddress::new(0, 1, u8::try_from(at).unwrap(), 0).unwrap()
}

fn range((first, length): (u64, u64)) -> PhysRange {
    PhysRange::new(PhysAddr(first), length).unwrap()
}

/// Starts a machine with eight devices under `compat`, one of which never stops writing to `MORE`. It has little
/// memory for tables, and 2 MiB for buffers, three quarters of which are usable.
fn each(test: impl Fn(&mut Bed)) {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut setup = setup(Mode::Compat);
        setup.functions = (0..8).map(|at| endpoint(1, at, 0)).collect();
        setup.layout = Layout {
            ram: vec![(0, 64 << 20)],
            tables: (16 << 20, 5 << 20),
            buffers: (32 << 20, LARGE),
            ..Layout::default()
        };
        let mut stack = Bed::start(&[subject], setup);
        write_on(&stack, vec![MORE]);
        test(&mut stack);
        stack.machine.assert_clean();
    }
}

/// Makes the legacy device write, at every instant, to the first, a middle and the last page of `MORE`. It may reach
/// only the granted part.
fn write_on(stack: &Bed, granted: Vec<(u64, u64)>) {
    let (unit, source) = (stack.unit_of(device(LEGACY)), device(LEGACY).requester.0);
    let watch = |iova| Watch {
        unit,
        source,
        iova,
        write: true,
        granted: granted.clone(),
        must_pass: false,
    };
    let (first, length) = MORE;
    stack.machine.clear_watches();
    for place in [first, first + length / 2, first + length - 8] {
        stack.machine.watch(watch(place));
    }
}

fn map_at(stack: &mut Bed, session: Handle, slot: u32, iova: u64) -> Result<(), Refusal> {
    let (access, flags) = (Access::all().bits(), MapFlags::FIXED.bits());
    let map = Map { slot, access, flags, iova, length: 0x1000, ..Map::default() };
    stack.call::<MapResult>(session, Operation::Map, &map).map(drop)
}

/// A client with a buffer of one page, which it maps every 2 MiB.
struct Greedy {
    session: Handle,
    slot: u32,
    next: u64,
}

impl Greedy {
    fn new(stack: &mut Bed, at: usize) -> Self {
        let session = stack.claim(1 + u32::try_from(at).unwrap(), device(at)).unwrap();
        stack.attach(session).unwrap();
        let slot = stack.allocate(session, 0x1000).unwrap().slot;
        Self { session, slot, next: 8 << 30 }
    }

    /// Maps until refused. Returns the number of successful mappings.
    fn scatter(&mut self, stack: &mut Bed) -> u64 {
        let mut count = 0;
        loop {
            match map_at(stack, self.session, self.slot, self.next) {
                Ok(()) => (count, self.next) = (count + 1, self.next + LARGE),
                Err(Refusal::Quota | Refusal::Full | Refusal::NoMemory) => return count,
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

/// Adds greedy clients until table memory is short.
fn use_tables(stack: &mut Bed) -> Vec<Greedy> {
    let mut all = Vec::new();
    while !stack.server.lacks_tables() {
        assert!(all.len() < 6, "tables are never short");
        let mut greedy = Greedy::new(stack, all.len());
        greedy.scatter(stack);
        all.push(greedy);
    }
    all
}

#[test]
fn tables_grow_and_no_device_reaches_them() {
    each(|stack| {
        assert!(!stack.server.lacks_tables());
        let bystander = stack.claim(20, device(6)).unwrap();
        stack.attach(bystander).unwrap();
        let buffer = stack.allocate(bystander, 0x1000).unwrap();
        let mut greedy = use_tables(stack);
        let before = reach(stack, device(6));
        stack.device_write(device(LEGACY), MORE.0, b"mine").unwrap();
        let frames = stack.metric("table_frames_free");
        let added = stack.server.add_tables(range(MORE), (), |tables, ()| tables.add(MORE));
        assert_eq!(added, Ok(()));
        assert!(!stack.server.lacks_tables());
        assert!(stack.metric("table_frames_free") + 8 >= frames + 512);
        assert_eq!(stack.metric("memory_added_bytes"), LARGE);
        for place in [MORE.0, MORE.0 + LARGE - 8] {
            assert!(stack.device_write(device(LEGACY), place, &[1; 8]).is_err(), "{place:#x}");
        }
        let more: u64 = greedy.iter_mut().map(|client| client.scatter(stack)).sum();
        assert!(more > 64, "what was refused is had now: {more}");
        // Other devices are not disturbed: neither a client's device nor one under `compat`.
        assert_eq!(reach(stack, device(6)), before);
        stack.device_write(device(6), buffer.iova, b"works").unwrap();
        stack.device_write(device(LEGACY), MORE.0 - 8, b"works").unwrap();
        stack.device_write(device(LEGACY), MORE.0 + MORE.1, b"works").unwrap();
        lives_end_without_memory(stack, greedy);
        assert!(stack.device_write(device(LEGACY), MORE.0, &[1]).is_err(), "it stays the server's");
    });
}

/// Ends all clients while no frame is available. Leftover work is finished when frames are available.
fn lives_end_without_memory(stack: &mut Bed, greedy: Vec<Greedy>) {
    stack.machine.fail_table_allocations(0, u64::MAX);
    for client in greedy {
        stack.server.close(client.session);
    }
    stack.machine.fail_table_allocations(0, 0);
    stack.server.tick();
    assert!(!stack.server.has_unfinished(), "{}", stack.text("status"));
    assert_eq!(stack.metric("sessions"), 1);
}

/// Without memory for the tables that a take needs, it changes nothing, and the page keeps its owner.
#[test]
fn what_is_refused_changes_nothing() {
    each(|stack| {
        // The range splits leaves of any size at both ends.
        let odd = (MORE.0 + 0x1000, LARGE);
        let before = stack.snapshot();
        stack.machine.fail_table_allocations(0, u64::MAX);
        let added = stack.server.add_tables(range(odd), "a page", |_, _| panic!("refused"));
        assert_eq!(added, Err(("a page", Refusal::NoMemory)));
        let added = stack.server.add_buffers(range(odd), "a page", |_, _| panic!("refused"));
        assert_eq!(added, Err(("a page", Refusal::NoMemory)));
        stack.machine.fail_table_allocations(0, 0);
        stack.snapshot().assert_same(&before, "after a growth that was refused");
        stack.device_write(device(LEGACY), odd.0, b"mine").unwrap();
        assert_eq!(stack.server.budget().table_frames_total, 0);
    });
}

/// Memory that firmware reserves for a device is refused, wherever the device may reach it.
#[test]
fn memory_in_a_region_of_firmware_is_not_taken() {
    for subject in subjects() {
        let mut setup = setup(Mode::Strict);
        let region = (MORE.0 + LARGE / 2, 0x1000);
        setup.reserved = vec![super::endings::region_of(&super::devices()[..1], region)];
        let mut stack = Bed::start(&[subject], setup);
        let before = stack.snapshot();
        let added = stack.server.add_tables(range(MORE), "a page", |_, _| panic!("refused"));
        assert_eq!(added, Err(("a page", Refusal::Reserved)));
        let added = stack.server.add_buffers(range(MORE), "a page", |_, _| panic!("refused"));
        assert_eq!(added, Err(("a page", Refusal::Reserved)));
        stack.snapshot().assert_same(&before, "after memory that firmware reserves");
        let beside = range((MORE.0 + LARGE, LARGE));
        let added = stack.server.add_tables(beside, (), |tables, ()| {
            tables.add((MORE.0 + LARGE, LARGE));
        });
        assert_eq!(added, Ok(()));
    }
}

#[test]
fn buffers_grow_and_belong_to_their_clients_alone() {
    each(|stack| {
        assert!(!stack.server.lacks_buffers());
        let session = stack.claim(1, device(0)).unwrap();
        stack.attach(session).unwrap();
        let size = 512 << 10;
        assert_eq!(stack.allocate(session, size).err(), Some(Refusal::Quota), "of 1.5 MiB");
        assert!(stack.server.lacks_buffers(), "that one was refused");
        let pool = stack.metric("buffer_bytes_pool");
        let machine = stack.machine.clone();
        let (unit, source) = (stack.unit_of(device(LEGACY)), device(LEGACY).requester.0);
        let added = stack.server.add_buffers(range(MORE), (), |buffers, ()| {
            assert_eq!(machine.attempt(unit, source, MORE.0), None, "it is out of reach already");
            buffers.add(MORE);
        });
        assert_eq!(added, Ok(()));
        write_on(stack, Vec::new());
        assert_eq!(stack.metric("buffer_bytes_pool"), pool + LARGE);
        let buffer = stack.allocate(session, size).unwrap();
        assert!(!stack.server.lacks_buffers());
        let share = stack.share(1, session, buffer.slot).unwrap();
        let inside = |segment: &PhysRange| (MORE.0..MORE.0 + LARGE).contains(&segment.first().0);
        assert!(share.segments.iter().any(inside), "memory that was added is used");
        stack.device_write(device(0), buffer.iova, b"works").unwrap();
        assert_eq!(stack.machine.share_read(&share, 0, 5), b"works");
        assert!(stack.device_write(device(LEGACY), MORE.0, &[1]).is_err());
        stack.server.close(session);
        assert!(stack.device_write(device(LEGACY), MORE.0, &[1]).is_err(), "nor when it is free");
    });
}

/// A quota from the policy file does not count as lack of memory.
#[test]
fn a_quota_does_not_make_it_grow() {
    let mut setup = setup(Mode::Strict);
    setup.config.quotas.memory = 0x1000;
    let mut stack = Bed::start(&subjects()[..1], setup);
    let session = stack.claim(1, super::devices()[0]).unwrap();
    assert_eq!(stack.allocate(session, 0x2000).err(), Some(Refusal::Quota));
    assert!(!stack.server.lacks_buffers());
    stack.machine.assert_clean();
}
