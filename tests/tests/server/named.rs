//! Requester ids without a function: devices that firmware names, and buses where devices may appear.

use iommu_protocol::ids::PciAddress;
use iommud::policy::Mode;
use iommud::topology::firmware::NamedDevice;
use iommud::topology::pci::{Buses, FunctionKind};

use super::{Bed, compat, devices, reach, setup, subjects};
use iommud_tests::conformance::UnderTest;
use iommud_tests::stack::{Setup, endpoint};

/// The address of the first UART in a real laptop's firmware (AMDI0020, `\_SB.FUR0`).
fn uart() -> PciAddress {
    PciAddress::new(0, 0, 0x14, 5).unwrap()
}

fn with_uart(mode: Mode) -> Setup {
    let mut setup = setup(mode);
    setup.named.push(NamedDevice {
        unit: 0,
        start_bus: 0,
        path: vec![(0x14, 5)],
        name: "AMDI0020 \\_SB.FUR0".into(),
    });
    setup
}

#[test]
fn what_firmware_names_is_under_policy() {
    for subject in subjects() {
        let mut stack = Bed::start(std::slice::from_ref(&subject), with_uart(Mode::Compat));
        assert_eq!(reach(&stack, uart()), compat(&stack), "{}", subject.name());
        stack.device_write(uart(), 0x0390_0000, &[1]).unwrap();
        let text = stack.text("units/0");
        let line =
            "named by firmware: AMDI0020 \\_SB.FUR0, 0000--00--14.5, reaches: what policy maps\n";
        assert!(text.contains(line), "{text}");
        assert!(!stack.names("devices").contains(&uart().to_string()));
        assert!(stack.claim(1, uart()).is_err(), "there is no function to claim");

        // A client's memory stays out of the named device's reach.
        let session = stack.claim(1, devices()[0]).unwrap();
        stack.attach(session).unwrap();
        assert_eq!(reach(&stack, uart()), compat(&stack));
        stack.machine.assert_clean();

        let mut stack = Bed::start(std::slice::from_ref(&subject), with_uart(Mode::Strict));
        assert_eq!(reach(&stack, uart()), [], "{}", subject.name());
        assert!(stack.device_write(uart(), 0x1000, &[1]).is_err());
        assert!(stack.text("units/0").contains("0000--00--14.5, reaches: nothing\n"));
    }
}

#[test]
fn the_next_server_lets_a_named_device_go_on() {
    for subject in subjects() {
        let stack = Bed::start(std::slice::from_ref(&subject), with_uart(Mode::Compat));
        let stack = stack.restart(std::slice::from_ref(&subject));
        assert_eq!(reach(&stack, uart()), compat(&stack), "{}", subject.name());
    }
}

#[test]
fn ids_that_no_function_has_are_denied_and_status_says_where_functions_may_come() {
    for subject in subjects() {
        let mut setup = setup(Mode::Compat);
        let mut port = endpoint(0, 0x1c, 0);
        port.kind = FunctionKind::RootPort(Buses { secondary: 5, subordinate: 10 });
        port.hot_plug = true;
        setup.functions.push(port);
        let mut stack = Bed::start(std::slice::from_ref(&subject), setup);
        let status = stack.text("status");
        let line = "hot-plug: buses 05-0a behind 0000--00--1c.0: no function is known there, one that comes is \
                    blocked until it is\n";
        assert!(status.contains(line), "{status}");
        let new = endpoint(5, 0, 0);
        assert_eq!(reach(&stack, new.address), [], "{}", subject.name());
        assert!(stack.device_write(new.address, 0x0390_0000, &[1]).is_err());
        stack.server.function_arrived(new).unwrap();
        assert!(stack.text("status").contains("hot-plug: buses 06-0a behind"));
        assert_eq!(reach(&stack, new.address), compat(&stack));
    }
}
