//! Mapping larger leaves in place of smaller ones: a page table keeps one empty table of pages, which the first map
//! fills and the next one replaces.

use std::cell::Cell;

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::{Access, Map, MapFlags, MapResult, Operation};
use iommud::policy::Mode;
use iommud::server::Handle;
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::Reach;

use super::{Bed, devices, reach, setup, subjects};

const LARGE: u64 = 2 << 20;

/// Address of the kept table, and of a neighbour that keeps the table above it in use.
const ROOM: u64 = 5 << 30;
const NEIGHBOUR: u64 = ROOM + 8 * LARGE;

/// A device whose page table keeps an empty table at [`ROOM`], which its unit has walked.
struct Scene {
    device: PciAddress,
    session: Handle,
    slot: u32,
    /// First byte of the buffer's memory, aligned to 2 MiB.
    memory: u64,
    /// Whether leaves of 2 MiB are allowed.
    large: bool,
}

/// Runs a test over the subjects, with memory in pieces that allow large leaves.
fn each(test: impl Fn(&mut Bed, Scene)) {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let mut setup = setup(Mode::Strict);
        setup.layout.segment = 2 * LARGE;
        let mut stack = Bed::start(&[subject], setup);
        let scene = Scene::new(&mut stack);
        test(&mut stack, scene);
        stack.machine.assert_clean();
    }
}

impl Scene {
    fn new(stack: &mut Bed) -> Self {
        let device = devices()[0];
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        let slot = stack.allocate(session, 2 * LARGE).unwrap().slot;
        let share = stack.share(1, session, slot).unwrap();
        let memory = share.segments[0].first().0;
        assert!(memory.is_multiple_of(LARGE) && share.segments[0].length() == 2 * LARGE);
        let large = stack.query(session).unwrap().page_sizes & LARGE != 0;
        let scene = Self { device, session, slot, memory, large };
        scene.map(stack, NEIGHBOUR, 0x1000).unwrap();
        let frames = stack.machine.table_frames();
        scene.map(stack, ROOM + 0x3000, 0x1000).unwrap();
        assert_eq!(stack.machine.table_frames(), frames + 1);
        stack.device_write(device, ROOM + 0x3000, b"a page").unwrap();
        stack.unmap(session, ROOM + 0x3000, 0x1000).unwrap();
        assert!(stack.device_write(device, ROOM + 0x3000, &[1]).is_err());
        assert_eq!(stack.machine.table_frames(), frames + 1, "kept");
        scene
    }

    /// Maps the first bytes of the buffer.
    fn map(&self, stack: &mut Bed, iova: u64, length: u64) -> Result<(), Refusal> {
        let (access, flags) = (Access::all().bits(), MapFlags::FIXED.bits());
        let map = Map { slot: self.slot, access, flags, iova, length, ..Map::default() };
        stack.call::<MapResult>(self.session, Operation::Map, &map).map(drop)
    }

    fn run(&self, iova: u64, length: u64) -> Reach {
        let last = iova + length - 1;
        Reach { iova, last, physical: self.memory, read: true, write: true }
    }

    /// Returns the device's reach from [`ROOM`] on.
    fn reach(&self, stack: &Bed) -> Vec<Reach> {
        reach(stack, self.device).into_iter().filter(|run| run.iova >= ROOM).collect()
    }
}

#[test]
fn the_empty_table_is_filled_and_the_next_map_has_a_large_leaf() {
    let large = Cell::new(0);
    each(|stack, scene| {
        large.set(large.get() + usize::from(scene.large));
        let frames = stack.machine.table_frames();
        // Filled with pages: no unit has to forget anything first. Its unmap unlinks it.
        for (round, kept) in [(0, 0), (1, usize::from(scene.large))] {
            scene.map(stack, ROOM, LARGE).unwrap();
            assert_eq!(stack.machine.table_frames(), frames - kept, "round {round}");
            assert_eq!(scene.reach(stack), [scene.run(ROOM, LARGE), scene.run(NEIGHBOUR, 0x1000)]);
            stack.device_write(scene.device, ROOM + 0x3000, b"at once").unwrap();
            stack.unmap(scene.session, ROOM, LARGE).unwrap();
            assert_eq!(stack.machine.table_frames(), frames - 1, "round {round}");
            assert_eq!(scene.reach(stack), [scene.run(NEIGHBOUR, 0x1000)]);
        }
        stack.give_back(scene.session);
    });
    assert!(large.get() >= 2, "{large:?} kinds of units have large leaves");
}

#[test]
fn what_is_not_covered_stays_as_it_is() {
    each(|stack, scene| {
        let frames = stack.machine.table_frames();
        // As long as a large leaf, but across two of their places.
        scene.map(stack, ROOM + 0x1000, LARGE).unwrap();
        assert_eq!(stack.machine.table_frames(), frames + 1);
        let neighbour = scene.run(NEIGHBOUR, 0x1000);
        assert_eq!(scene.reach(stack), [scene.run(ROOM + 0x1000, LARGE), neighbour]);
        stack.give_back(scene.session);
    });
}

/// The page behind the large leaf needs a table that cannot be allocated.
#[test]
fn the_empty_table_is_back_when_the_map_fails() {
    each(|stack, scene| {
        let before = stack.snapshot();
        stack.machine.fail_table_allocations(0, u64::MAX);
        let refused = scene.map(stack, ROOM, LARGE + 0x1000);
        stack.machine.fail_table_allocations(0, 0);
        assert_eq!(refused, Err(Refusal::NoMemory));
        stack.snapshot().assert_same(&before, "a refused map");
        assert_eq!(scene.reach(stack), [scene.run(NEIGHBOUR, 0x1000)]);
        scene.map(stack, ROOM, LARGE + 0x1000).unwrap();
        let all = [scene.run(ROOM, LARGE + 0x1000), scene.run(NEIGHBOUR, 0x1000)];
        assert_eq!(scene.reach(stack), all);
        stack.give_back(scene.session);
    });
}
