//! Virtual functions (SR-IOV) that a driver enables while the server runs: the whole way from registers to a claim.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommud::policy::Mode;
use iommud::server::Discovery;
use iommud::topology::pci::ConfigSpace;
use iommud::topology::walk::{Roots, answers, walk};

use super::{Bed, compat, reach, setup, subjects};
use iommud_tests::conformance::UnderTest;
use iommud_tests::stack::Setup;

const ROOTS: Roots<'_> = Roots::Known(&[(0, 0)]);

/// Registers of functions, by requester id and offset. All copies share them.
#[derive(Clone, Default)]
struct Space(Rc<RefCell<BTreeMap<(u16, u16), u32>>>);

impl Space {
    fn put(&self, at: PciAddress, words: &[(u16, u32)]) {
        let words = words.iter().map(|(offset, word)| ((at.requester.0, *offset), *word));
        self.0.borrow_mut().extend(words);
    }

    fn clear(&self, at: PciAddress) {
        self.0.borrow_mut().retain(|(requester, _), _| *requester != at.requester.0);
    }
}

impl ConfigSpace for Space {
    fn read(&mut self, at: PciAddress, offset: u16) -> u32 {
        let words = self.0.borrow();
        let absent = if words.contains_key(&(at.requester.0, 0)) { 0 } else { u32::MAX };
        words.get(&(at.requester.0, offset)).copied().unwrap_or(absent)
    }
}

impl Discovery for Space {
    fn walk(&mut self) -> Option<Vec<iommud::topology::pci::PciFunction>> {
        Some(walk(self, ROOTS))
    }

    fn answers(&mut self, address: PciAddress) -> bool {
        answers(self, address)
    }
}

fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function).unwrap()
}

/// ACS at 0x100 with source validation, request and completion redirect, and upstream forwarding, all in force
/// (PCI Express Base 6.0 section 7.7.11).
const ACS: [(u16, u32); 2] = [(0x100, 0x0001_000d), (0x104, 0x001d_001d)];

/// The offset of the word with VF Enable (bit 0) of the SR-IOV capability at 0x160 (section 9.3.3.3).
const CONTROL: u16 = 0x168;

/// A root port in front of buses 1 to 3, and behind it a network controller that can have 8 virtual functions. The
/// first one is 0x180 ids behind it and the next one 2 further, as for an Intel 82576 (datasheet 9.6.4).
fn space() -> (Space, PciAddress, [PciAddress; 2]) {
    let (space, port, physical) = (Space::default(), at(0, 1, 0), at(1, 0, 0));
    // As QEMU 7.2 shows its pcie-root-port.
    space.put(port, &[(0, 0x000c_1b36), (4, 0x0010_0103), (8, 0x0604_0000), (0x0c, 0x0001_0000)]);
    space.put(port, &[(0x18, 0x0003_0100), (0x34, 0x54), (0x54, 0x0142_4810)]);
    space.put(port, &ACS);
    space.put(physical, &[(0, 0x10c9_8086), (4, 0x0010_0006), (8, 0x0200_0000), (0x34, 0x40)]);
    space.put(physical, &[(0x40, 0x0002_0010), (0x100, 0x1601_0001), (0x160, 0x0001_0010)]);
    space.put(physical, &[(CONTROL, 0), (0x16c, 0x0008_0008), (0x170, 2), (0x174, 0x0002_0180)]);
    space.put(physical, &[(0x178, 0x10ca_0000)]);
    (space, physical, [at(2, 0x10, 0), at(2, 0x10, 2)])
}

/// The physical function's driver sets VF Enable. The virtual functions answer, without a vendor id of their own
/// (section 9.3.4.1.1).
fn enable(space: &Space, physical: PciAddress, virtuals: [PciAddress; 2]) {
    space.put(physical, &[(CONTROL, 1)]);
    for virtual_function in virtuals {
        space.put(virtual_function, &[(0, u32::MAX), (4, 0x0010_0004), (8, 0x0200_0000)]);
        space.put(virtual_function, &ACS);
    }
}

fn disable(space: &Space, physical: PciAddress, virtuals: [PciAddress; 2]) {
    space.put(physical, &[(CONTROL, 0)]);
    virtuals.iter().for_each(|virtual_function| space.clear(*virtual_function));
}

#[test]
fn a_virtual_function_that_is_enabled_later_is_under_policy_and_claimed() {
    for subject in subjects() {
        println!("subject: {}", subject.name());
        let (space, physical, [first, second]) = space();
        let functions = walk(&mut space.clone(), ROOTS);
        assert_eq!(functions.len(), 2, "no virtual function yet");
        let mut stack = Bed::start(&[subject], Setup { functions, ..setup(Mode::Compat) });
        stack.server.discover_with(Box::new(space.clone()));
        let manager = stack.claim(1, physical).unwrap();
        stack.attach(manager).unwrap();
        let own = stack.allocate(manager, 0x1000).unwrap();
        let before = reach(&stack, physical);
        assert_eq!(stack.claim(2, first), Err(Refusal::NotProbed));
        assert_eq!(reach(&stack, first), [], "it does not exist, so its id is denied");

        enable(&space, physical, [first, second]);
        assert_eq!(stack.write("rescan", b"1"), Ok(1));
        assert_eq!(stack.text("rescan"), "last walk: 2 new, 0 gone\n");
        assert!(stack.text(&format!("devices/{first}")).contains("id: 8086:10ca"));
        for virtual_function in [first, second] {
            assert_eq!(reach(&stack, virtual_function), compat(&stack), "{virtual_function}");
        }
        assert_eq!(reach(&stack, physical), before);

        // One virtual function for each of two clients: each writes into its own memory, under its own id.
        let mut buffers = Vec::new();
        for (client, virtual_function) in [(2, first), (3, second)] {
            let session = stack.claim(client, virtual_function).unwrap();
            stack.attach(session).unwrap();
            assert_eq!(reach(&stack, virtual_function), [], "a domain of its own");
            let buffer = stack.allocate(session, 0x3000).unwrap();
            buffers.push((session, virtual_function, buffer.iova));
        }
        for ((_, virtual_function, iova), bytes) in buffers.iter().zip([b"first ", b"second"]) {
            stack.device_write(*virtual_function, *iova, bytes.get(..6).unwrap()).unwrap();
        }
        for ((_, virtual_function, iova), bytes) in buffers.iter().zip([b"first ", b"second"]) {
            assert_eq!(stack.device_read(*virtual_function, *iova, 6).unwrap(), bytes);
            assert!(stack.device_write(*virtual_function, iova + 0x3000, &[1]).is_err());
            assert!(stack.device_read(*virtual_function, 0x1000, 8).is_err(), "memory of others");
        }
        // The third one's id is between theirs, and no function has it.
        assert_eq!(reach(&stack, at(2, 0x10, 1)), []);
        stack.device_write(physical, own.iova, &[1]).unwrap();

        // The driver takes them away again in the middle of transfers. Two walks show that they are gone.
        disable(&space, physical, [first, second]);
        assert_eq!([stack.write("rescan", b"1"), stack.write("rescan", b"1")], [Ok(1); 2]);
        for (session, virtual_function, iova) in buffers {
            assert!(stack.device_write(virtual_function, iova, &[1]).is_err(), "cut off");
            assert_eq!(stack.attach(session), Err(Refusal::NotProbed));
            stack.server.close(session);
        }
        assert_eq!(reach(&stack, physical), before);
        stack.give_back(manager);
        stack.machine.assert_clean();
    }
}
