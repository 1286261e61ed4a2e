//! A domain's page table grows while its devices work.

use iommu_protocol::Refusal;
use iommud::addr::{PhysAddr, PhysRange};
use iommud::policy::{ClientId, Mode};
use iommud::server::{Caller, Handle};
use iommud::topology::firmware::ReservedRegion;

use super::{Bed, devices, reach, setup, subjects};
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::{Reach, Through, Trouble, Watch};
use iommud_tests::stack::scope;

/// The region that firmware reserves for the second device: the first pages beyond three levels.
const REGION: (u64, u64) = (1 << 39, 0x2000);

/// The first device of a client works in a domain that maps its buffer; a second one needs the region. `None` on
/// units whose tables cannot reach the region.
struct Scene {
    stack: Bed,
    first: Handle,
    /// The buffer.
    granted: Reach,
}

impl Scene {
    fn new(subject: super::Subject) -> Option<Self> {
        println!("subject: {}", subject.name());
        if subject.config.host_width < 40 {
            return None;
        }
        let mut setup = setup(Mode::Strict);
        setup.reserved = vec![ReservedRegion {
            segment: 0,
            range: PhysRange::new(PhysAddr(REGION.0), REGION.1).unwrap(),
            read: true,
            write: true,
            exclusion: false,
            scopes: vec![scope(devices()[1].requester)],
            entries: Vec::new(),
        }];
        let mut stack = Bed::start(&[subject], setup);
        let device = devices()[0];
        let first = stack.claim(1, device).unwrap();
        stack.attach(first).unwrap();
        let buffer = stack.allocate(first, 0x1000).unwrap();
        let reaches = reach(&stack, device);
        let [granted] = reaches[..] else { panic!("{reaches:x?}") };
        assert_eq!(granted.iova, buffer.iova);
        Some(Self { stack, first, granted })
    }

    /// Claims the second device for the same domain while the first never stops. The first must reach its buffer at
    /// every instant, and only its buffer and the region.
    fn claim_second(&mut self) -> Result<Handle, Refusal> {
        let source = devices()[0].requester.0;
        let buffer = (self.granted.physical, 0x1000);
        for (iova, granted, must_pass) in [
            (self.granted.iova, buffer, true),
            (REGION.0 + 0x1000, REGION, false),
            (REGION.0 + 0x2000, (0, 0), false),
        ] {
            let granted = vec![granted];
            let watch = Watch { unit: 0, source, iova, write: true, granted, must_pass };
            self.stack.machine.watch(watch);
        }
        let caller = Caller { client: ClientId(1), uid: 0 };
        let path = format!("devices/{}", devices()[1]);
        let second = self.stack.server.open(caller, Some(self.first), &path, true);
        self.stack.machine.clear_watches();
        second
    }
}

fn region() -> Reach {
    let (iova, length) = REGION;
    Reach { iova, last: iova + length - 1, physical: iova, read: true, write: true }
}

#[test]
fn a_device_notices_nothing_of_a_deeper_table() {
    let mut seen = 0;
    for mut scene in subjects().into_iter().filter_map(Scene::new) {
        seen += 1;
        let second = scene.claim_second().unwrap();
        let [device, other, ..] = devices();
        scene.stack.machine.assert_clean();
        assert_eq!(reach(&scene.stack, device), [scene.granted, region()]);
        let probe = scene.stack.machine.probe(0, device.requester.0, REGION.0 + 0x1000, true);
        assert_eq!(probe, Some(REGION.0 + 0x1000), "by the entry that its unit has cached");
        scene.stack.attach(second).unwrap();
        assert_eq!(reach(&scene.stack, other), [scene.granted, region()]);
        // The domain then works like any other.
        let more = scene.stack.allocate(scene.first, 0x4000).unwrap();
        scene.stack.device_write(other, more.iova, b"through the new root").unwrap();
        scene.stack.release(scene.first, more.slot).unwrap();
        assert!(scene.stack.device_write(device, more.iova, &[1]).is_err());
        scene.stack.give_back(second);
        scene.stack.give_back(scene.first);
        scene.stack.machine.assert_clean();
    }
    assert!(seen >= 2, "{seen} kinds of units reach so far");
}

#[test]
fn without_memory_the_table_is_as_it_was() {
    for subject in subjects() {
        let mut refused = 0;
        for budget in 0.. {
            let Some(mut scene) = Scene::new(subject.clone()) else { break };
            let before = scene.stack.snapshot();
            scene.stack.machine.fail_table_allocations(budget, u64::MAX);
            let second = scene.claim_second();
            scene.stack.machine.fail_table_allocations(0, 0);
            scene.stack.machine.assert_clean();
            if second.is_ok() {
                break;
            }
            refused += 1;
            assert_eq!(second, Err(Refusal::NoMemory));
            scene.stack.snapshot().assert_same(&before, &format!("{budget} frames"));
            assert!(scene.claim_second().is_ok(), "as if nothing had been");
            scene.stack.machine.assert_clean();
        }
        assert!(refused > 0 || subject.config.host_width < 40);
    }
}

/// The unit stalls at some command of the claim. The first device keeps working through either root, and neither root
/// is freed.
#[test]
fn a_unit_that_stops_meanwhile_walks_nothing_that_is_freed() {
    for subject in subjects() {
        for after in 0..6 {
            let Some(mut scene) = Scene::new(subject.clone()) else { break };
            let [device, ..] = devices();
            scene.stack.machine.set_relax(1_000_000);
            scene.stack.machine.trouble(0, Trouble::StallQueueAfter(after));
            let second = scene.claim_second();
            if second.is_err() {
                assert_eq!(second, Err(Refusal::UnitFailed), "after {after}");
                let source = device.requester.0;
                let left = scene.stack.machine.reach(0, source, Through::TablesAndCaches);
                let fine = |run: &Reach| {
                    *run == scene.granted || run.iova >= REGION.0 && run.last <= region().last
                };
                assert!(left.iter().all(fine), "{left:x?}");
            }
            scene.stack.machine.assert_clean();
        }
    }
}
