//! What `iommuctl` reads from a running server: the texts of the server, and not texts made for the tool's own tests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::time::Duration;

use iommu_client::{Access, BufferOptions, Connection, Device, Error};
use iommu_protocol::ids::PciAddress;
use iommuctl::check::{Checked, Offender, Verdict, check, memory};
use iommuctl::explain::{Explained, explain};
use iommuctl::output::Look;
use iommuctl::server::activity::Activity;
use iommuctl::server::domain::Domain;
use iommuctl::server::fault::faults;
use iommuctl::server::machine::Machine;
use iommuctl::server::{Texts, all};
use iommuctl::top::{self, Interval};
use iommuctl::tree;
use iommud_tests::model::{DEVICES, Model};

fn machine(connection: &Connection) -> Machine {
    Machine::read(connection).unwrap()
}

fn domains(connection: &Connection) -> Vec<Domain> {
    let texts = all(connection, "domains").unwrap();
    texts.iter().map(|(_, text)| Domain::parse(text).unwrap()).collect()
}

/// The latest fault, explained by what the server says now. `other` is a device whose session is asked for faults, which
/// has the model's server look at its unit.
fn latest(connection: &Connection, other: &Device) -> Explained {
    assert!(other.wait_fault(Duration::ZERO).unwrap().is_none());
    let log = faults(&Texts::text(connection, "faults").unwrap());
    explain(log.last().unwrap(), &machine(connection), &domains(connection))
}

#[test]
fn every_device_of_a_server_is_in_the_tree() {
    let model = Model::new();
    let (_device, _permission) = model.attached();
    let connection = model.connection();
    let machine = machine(&connection);
    assert_eq!(machine.devices.len(), connection.names("devices").unwrap().len());
    assert!(machine.status.confined());
    let text = tree::text(&tree::branches(&machine), Look::default(), &|_| None);
    assert!(text.starts_with("unit 0: vt-d enabled\n"), "{text}");
    for device in DEVICES {
        assert!(text.contains(&device.replace("--", ":")), "{device}: {text}");
    }
    let owned = text.lines().filter(|line| line.contains("owned by client")).count();
    assert_eq!(owned, 1, "{text}");
    assert!(text.contains(", attached, domain "), "{text}");
}

#[test]
fn a_machine_without_a_unit_is_not_confined() {
    let model = Model::without_unit();
    let machine = machine(&model.connection());
    assert!(!machine.status.confined());
    let text = tree::text(&tree::branches(&machine), Look::default(), &|_| None);
    assert!(text.starts_with("behind no unit: NOT CONFINED\n"), "{text}");
}

#[test]
fn a_domain_of_a_server_has_its_buffers() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let connection = model.connection();
    let buffer = device.allocate(0x5000, BufferOptions::default()).unwrap();
    let domains = domains(&connection);
    let [domain] = &domains[..] else { panic!("{domains:?}") };
    let members: Vec<_> = domain.devices.iter().map(|of| (of.address, of.state.as_str())).collect();
    assert_eq!(members, [(device.address(), "attached")]);
    let [held] = &domain.buffers[..] else { panic!("{domain:?}") };
    assert_eq!((held.bytes, held.grants), (0x5000, None));
    let [mapping] = &domain.mappings[..] else { panic!("{domain:?}") };
    assert_eq!((mapping.first, mapping.bytes()), (buffer.iova(), 0x5000));
    assert_eq!((mapping.offset, mapping.access()), (Some(0), "read and write"));
    assert!(!domain.cut);
}

/// Each number of the server has its words for Prometheus.
#[test]
fn every_metric_of_a_server_is_described() {
    let model = Model::new();
    let text = Texts::text(&model.connection(), "metrics").unwrap();
    let metrics = iommuctl::metrics::parse(&text);
    assert!(metrics.len() > 20, "{text}");
    let told = iommuctl::metrics::prometheus(&metrics);
    assert_eq!(told.matches("# HELP ").count(), metrics.len(), "{told}");
}

const SECOND: Duration = Duration::from_secs(1);

fn activity(connection: &Connection) -> Activity {
    Activity::parse(&Texts::text(connection, "activity").unwrap())
}

/// What a driver does between two readings is what the interval says.
#[test]
fn top_says_what_happened_between_two_readings() {
    let model = Model::new();
    let (device, permission) = model.attached();
    let connection = model.connection();
    let held = device.allocate(0x3000, BufferOptions::default()).unwrap();
    let before = activity(&connection);
    let buffers = [0x1000, 0x2000].map(|length| device.allocate(length, BufferOptions::default()));
    drop(buffers);
    assert!(model.device_write(device.address(), 0x5000_0000, &[1]).is_err());
    assert!(device.wait_fault(Duration::ZERO).unwrap().is_some());
    let seen = Interval::between(&before, &activity(&connection), SECOND);
    let [row] = &seen.counts.devices[..] else { panic!("{seen:?}") };
    assert_eq!((row.address, row.maps, row.unmaps), (device.address(), 2, 2));
    assert_eq!((row.mapped, row.unmapped, row.faults), (0x3000, 0x3000, 1));
    // Two buffers and the text.
    assert_eq!((seen.counts.opens, seen.counts.faults, seen.restarted), (3, 1, false));
    assert!(row.owner.as_deref().unwrap().starts_with("client "));
    let [unit] = &seen.counts.units[..] else { panic!("{seen:?}") };
    let timed: u64 = unit.times.iter().sum();
    assert_eq!(unit.waits, unit.at_once + timed, "{unit:?}");
    assert!(unit.waits >= 2 && unit.unanswered == 0, "an unmap waits: {unit:?}");
    let text = top::text(&seen, Look::default(), &|_| None);
    assert!(
        text.contains("\n0000:00:04.0       2.0       2.0   12.0 KiB   12.0 KiB       1.0"),
        "{text}"
    );
    drop(held);
    device.detach(permission).unwrap();
}

#[test]
fn top_counts_without_a_unit() {
    let model = Model::without_unit();
    let (device, permission) = model.attached();
    let connection = model.connection();
    let held = device.allocate(0x3000, BufferOptions::default()).unwrap();
    drop(device.allocate(0x1000, BufferOptions::default()).unwrap());
    let seen = Interval::whole(&activity(&connection));
    let [row] = &seen.counts.devices[..] else { panic!("{seen:?}") };
    assert_eq!((row.maps, row.unmaps, row.mapped, row.unmapped), (2, 1, 0x4000, 0x1000));
    drop((held, permission, device));
    let seen = Interval::whole(&activity(&connection));
    let [row] = &seen.counts.devices[..] else { panic!("{seen:?}") };
    assert_eq!((row.maps, row.unmaps, row.mapped, row.unmapped), (2, 2, 0x4000, 0x4000));
    assert_eq!(row.owner, None);
}

/// A reading costs the server one open, two reads and one close, of a text that does not grow, however many faults
/// there are.
#[test]
fn a_reading_of_top_costs_the_same_in_a_storm() {
    let model = Model::new();
    let (device, _permission) = model.attached();
    let connection = model.connection();
    let cost = || {
        let before = model.counts();
        let length = Texts::text(&connection, "activity").unwrap().len();
        let after = model.counts();
        let requests = [
            after.opens - before.opens,
            after.reads - before.reads,
            after.closes - before.closes,
            after.others - before.others,
        ];
        assert_eq!(after.calls, before.calls);
        (requests, length)
    };
    let (quiet, length) = cost();
    assert_eq!(quiet, [1, 2, 1, 0]);
    for round in 0..50 {
        for at in 0..20 {
            let address = 0x5000_0000 + 0x1000 * at + 0x2_0000 * round;
            let _ = model.device_write(device.address(), address, &[1]);
        }
        let (requests, now) = cost();
        assert_eq!(requests, quiet);
        assert!(now < length + 192, "{now} bytes, {length} before");
    }
    let seen = Interval::whole(&activity(&connection));
    let [row] = &seen.counts.devices[..] else { panic!("{seen:?}") };
    assert!(row.faults >= 50 && row.faults == seen.counts.faults, "{seen:?}");
}

/// A DMA past the end of a buffer, one to memory that the device may only read, one after the mapping is gone, and one
/// of a device whose driver ended.
#[test]
fn faults_are_explained_by_where_they_were() {
    let model = Model::new();
    let (device, permission) = model.attached();
    let connection = model.connection();
    let other = Device::open(&connection, DEVICES[0]).unwrap();
    let address = device.address();
    let buffer = device.allocate(0x5000, BufferOptions::default()).unwrap();
    let behind = buffer.iova() + 0x5010;
    assert!(model.device_write(address, behind, &[1]).is_err());
    let told = latest(&connection, &other);
    let page = buffer.iova() + 0x5000;
    let sentence = told.sentence();
    let expected = format!("tried to write memory in the page at {page:#x} and was stopped");
    assert!(sentence.contains(&expected), "{sentence}");
    let place = told.place().unwrap();
    assert!(place.starts_with("The address is directly behind the end of buffer"), "{place}");

    let options = BufferOptions { access: Access::READ, ..BufferOptions::default() };
    let read_only = device.allocate(0x1000, options).unwrap();
    assert!(model.device_write(address, read_only.iova(), &[1]).is_err());
    let place = latest(&connection, &other).place().unwrap();
    assert!(place.ends_with("): read only."), "{place}");

    let before = buffer.iova();
    drop((buffer, read_only));
    assert!(model.device_write(address, before, &[1]).is_err());
    let told = latest(&connection, &other);
    assert!(told.advice().starts_with("Usually a use after unmap"), "{}", told.text());
    drop((device, permission));
    assert!(model.device_write(address, before, &[1]).is_err());
    assert!(
        latest(&connection, &other).text().contains("its driver ended"),
        "{}",
        latest(&connection, &other).text()
    );
}

/// A device of the model that writes where it is told to, as often as it is told to.
struct Writer<'model> {
    model: &'model Model,
    device: PciAddress,
    times: u32,
    byte: u8,
}

impl Offender for Writer<'_> {
    fn write(&mut self, iova: u64, count: u16) -> Result<(), Error> {
        if self.times > 0 {
            self.times -= 1;
            let _ = self.model.device_write(self.device, iova, &vec![self.byte; count.into()]);
        }
        Ok(())
    }
}

fn checked(model: &Model, times: u32, byte: u8) -> Checked {
    let (device, _permission) = model.attached();
    let mut writer = Writer { model, device: device.address(), times, byte };
    let mut buffer = memory(&device, &writer).unwrap();
    check(&device, &mut writer, &mut buffer).unwrap()
}

/// The self-test sees the machine, and does not repeat what the server says.
#[test]
fn the_self_test_tells_a_machine_that_confines_from_one_that_does_not() {
    let seen = checked(&Model::new(), 3, 0x77);
    let Verdict::Confines(fault) = seen.verdict else { panic!("{seen:?}") };
    assert_eq!(fault.source.to_string(), DEVICES[1]);
    assert!(seen.confines() && seen.text().starts_with("this machine confines\n"));
    let seen = checked(&Model::without_unit(), 3, 0x77);
    assert_eq!((&seen.verdict, seen.claimed), (&Verdict::Open, false));
    assert!(!seen.confines() && seen.text().starts_with("this machine does NOT confine\n"));
}

/// Whatever a device writes, the test sees it.
#[test]
fn the_self_test_sees_a_device_that_writes_any_byte() {
    for byte in [0, 0x5a, 0xa5, 0xc3, 0x3c, 0xff] {
        let seen = checked(&Model::without_unit(), 4, byte);
        assert_eq!(seen.verdict, Verdict::Open, "{byte:#x}");
        assert!(checked(&Model::new(), 4, byte).confines(), "{byte:#x}");
    }
}

/// A device that does not end the write which was stopped is not known to be quiet, whatever the record says.
#[test]
fn the_self_test_knows_a_device_that_may_write_later() {
    struct Endless<'model>(Writer<'model>);
    impl Offender for Endless<'_> {
        fn write(&mut self, iova: u64, count: u16) -> Result<(), Error> {
            let last = self.0.times == 1;
            self.0.write(iova, count)?;
            if last { Err(Error::Io(std::io::ErrorKind::TimedOut.into())) } else { Ok(()) }
        }
    }
    for (times, quiet) in [(2, false), (3, true)] {
        let model = Model::new();
        let (device, _permission) = model.attached();
        let writer = Writer { model: &model, device: device.address(), times, byte: 0x77 };
        let mut buffer = memory(&device, &writer).unwrap();
        let seen = check(&device, &mut Endless(writer), &mut buffer).unwrap();
        assert!(seen.confines(), "{seen:?}");
        assert_eq!(seen.quiet, quiet);
    }
}

/// A device that does nothing shows nothing, and one that is silent in the second part was not stopped.
#[test]
fn the_self_test_is_not_passed_by_a_device_that_does_nothing() {
    assert_eq!(checked(&Model::new(), 0, 0x77).verdict, Verdict::Nothing);
    let seen = checked(&Model::new(), 1, 0x77);
    assert_eq!(seen.verdict, Verdict::Unreported);
    assert!(!seen.confines());
}
