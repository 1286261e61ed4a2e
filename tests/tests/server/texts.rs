//! What `devices/ADDRESS` and `domains/N` say for programs.

use iommud::hw::Nanos;
use iommud::policy::{ClientId, Mode, Quotas};
use iommud::topology::pci::{Buses, FunctionKind, PciFunction};
use iommud_tests::stack::endpoint;

use super::{Bed, devices, matrix, setup, start};

/// The value of a key of a text.
fn value(text: &str, key: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {key}: {text}")).to_owned()
}

#[test]
fn a_device_says_what_it_is() {
    let mut given = setup(Mode::Compat);
    let kind = FunctionKind::RootPort(Buses { secondary: 7, subordinate: 9 });
    let port = PciFunction {
        kind,
        class: 0x06_0400,
        acs: Some(0x11),
        acs_capability: 0x1f,
        hot_plug: true,
        ..endpoint(0, 8, 0)
    };
    given.functions.push(port);
    let mut stack = Bed::start(&[matrix().remove(0)], given);
    let text = stack.text("devices/0000--00--08.0");
    assert_eq!(value(&text, "kind"), "root port, buses 07-09");
    assert_eq!(value(&text, "acs"), "0011 of 001f");
    assert_eq!(
        (value(&text, "hot-plug"), value(&text, "multifunction")),
        ("true".into(), "false".into())
    );
    let text = stack.text("devices/0000--00--06.1");
    assert_eq!(value(&text, "kind"), "integrated endpoint");
    assert_eq!(
        (value(&text, "acs"), value(&text, "multifunction")),
        ("none".into(), "true".into())
    );
    assert_eq!(value(&text, "requester ids"), "00:06.1");
}

#[test]
fn the_owner_is_named_by_its_process_where_that_is_known() {
    let mut stack = start(Mode::Compat);
    let [device, ..] = devices();
    let path = format!("devices/{device}");
    let text = stack.text(&path);
    assert_eq!((value(&text, "owner"), value(&text, "domain")), ("none".into(), "none".into()));
    let session = stack.claim(1, device).unwrap();
    let text = stack.text(&path);
    assert_eq!(
        (value(&text, "owner"), value(&text, "attached")),
        ("client 1".into(), "false".into())
    );
    stack.server.set_process(ClientId(1), 4711);
    stack.attach(session).unwrap();
    let text = stack.text(&path);
    assert_eq!(
        (value(&text, "owner"), value(&text, "attached")),
        ("process 4711".into(), "true".into())
    );
    stack.server.forget_process(ClientId(1));
    assert_eq!(value(&stack.text(&path), "owner"), "client 1");
}

#[test]
fn a_domain_lists_its_devices_and_buffers_by_their_addresses_for_the_device() {
    let mut stack = start(Mode::Compat);
    let [device, ..] = devices();
    assert_eq!(stack.names("domains"), Vec::<String>::new(), "those of policy are not listed");
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x5000).unwrap();
    let share = stack.share(1, session, buffer.slot).unwrap();
    let names = stack.names("domains");
    assert_eq!(names, [value(&stack.text(&format!("devices/{device}")), "domain")]);
    let text = stack.text(&format!("domains/{}", names[0]));
    assert_eq!(value(&text, "device"), format!("{device}, attached"));
    assert_eq!((value(&text, "owner"), value(&text, "mappings")), ("client 1".into(), "1".into()));
    let (slot, first) = (buffer.slot, buffer.iova);
    let line = format!(
        "buffer: {device} {slot}, 20480 bytes\n\
         mapping: {device} {slot} at {first:#x}-{:#x}, from byte 0, read and write\n",
        first + 0x4fff
    );
    assert!(text.contains(&line), "{text}");
    assert!(text.contains("reserved: 0xfee00000-0xfeefffff interrupts\n"), "{text}");
    let physical = share.segments[0].first().0;
    assert!(!text.contains(&format!("{physical:x}")), "{text}");
    stack.give_back(session);
    assert_eq!(stack.names("domains"), Vec::<String>::new());
}

/// The time wraps around after 2^32 milliseconds, and an age is a difference.
#[test]
fn a_domain_says_what_it_unmapped_and_when() {
    let mut stack = start(Mode::Compat);
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x3000).unwrap();
    let domain = value(&stack.text(&format!("devices/{device}")), "domain");
    let path = format!("domains/{domain}");
    assert!(!stack.text(&path).contains("unmapped: "));
    let milliseconds = |milliseconds: u64| Nanos(milliseconds * 1_000_000 + 999_999);
    stack.server.recover_units(milliseconds((1 << 32) - 2));
    stack.unmap(session, buffer.iova, 0x3000).unwrap();
    let again = stack.map(session, buffer.slot, 0, 0x1000).unwrap();
    stack.server.recover_units(milliseconds((1 << 32) + 7));
    stack.unmap(session, again, 0x1000).unwrap();
    stack.server.recover_units(milliseconds((1 << 32) + 10));
    let line =
        |first: u64, last: u64, age| format!("unmapped: {first:#x}-{last:#x}, {age} ms ago\n");
    let lines = [line(again, again + 0xfff, 3), line(buffer.iova, buffer.iova + 0x2fff, 12)];
    let text = stack.text(&path);
    assert!(text.ends_with(&lines.concat()), "{text}");
}

/// However many buffers there are, a text stays short and says that it is not all.
#[test]
fn a_domain_of_many_buffers_has_a_bounded_text() {
    let mut given = setup(Mode::Compat);
    given.config.quotas = Quotas { buffers: 600, ..Quotas::default() };
    let mut stack = Bed::start(&[matrix().remove(0)], given);
    let [device, ..] = devices();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    // A line for each, and one for its mapping.
    for _ in 0..256 {
        stack.allocate(session, 0x1000).unwrap();
    }
    let domain = value(&stack.text(&format!("devices/{device}")), "domain");
    let path = format!("domains/{domain}");
    let of = |text: &str, key: &str| text.lines().filter(|line| line.starts_with(key)).count();
    let text = stack.text(&path);
    assert_eq!((of(&text, "buffer: "), of(&text, "mapping: ")), (256, 256));
    assert!(!text.contains("not listed"), "all of them are");
    stack.allocate(session, 0x1000).unwrap();
    let text = stack.text(&path);
    assert_eq!((of(&text, "buffer: "), of(&text, "mapping: ")), (256, 256));
    assert!(text.len() < 48 << 10, "{}", text.len());
    let rest = format!("buffers and mappings of {device} and of devices after it");
    assert_eq!(value(&text, "not listed"), rest);
}
