//! The crate's table of cases: where memory comes from, the error number of a refusal, and what is said.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use iommu_client::platform::Memory;
use iommu_client::transport::{Handle, Transport};
use iommu_client::{Connection, Device, Error, Refusal};
use iommu_protocol::wire::Operation;
use iommud::policy::{Config, Mode};
use iommud_tests::model::{InProcess, Model, ModelUnit};
use redox_dma::Late;
use redox_dma::dma::Dma;
use redox_dma::sgl::Sgl;

use crate::platform::{number, zeroed, zeroed_slice};
use crate::{NAME, address, alone, alone_with, drive, drive_over, reached};

const PAGE: usize = 4096;

fn policy(default: Mode) -> Config {
    Config { default, ..Config::default() }
}

/// Allocates twice, in plain memory. No session is left behind.
fn plain(model: &Model) {
    for value in [5_u32, 6] {
        let memory = Dma::new(value).unwrap();
        assert_eq!((*memory, memory.physical()), (value, (&raw const *memory).addr()));
    }
    assert!(Sgl::new(5 << 20).is_ok());
    let text = model.connection().text(&format!("devices/{NAME}")).unwrap_or_default();
    assert!(!text.contains("claimed: true"), "{text}");
}

/// Allocates twice, refused with this number.
fn refused(errno: i32) {
    assert_eq!(number(Dma::new(1_u8)), errno);
    assert_eq!(number(zeroed_slice::<u8>(5 << 20)), errno);
    assert_eq!(number(Sgl::new(PAGE)), errno);
}

fn plain_on(test: &str, unit: ModelUnit, mode: Mode) -> Vec<String> {
    alone(test, || {
        let model = Model::with(unit, policy(mode));
        drive(&model);
        plain(&model);
    })
}

fn refused_on(test: &str, unit: ModelUnit, mode: Mode, errno: i32) -> Vec<String> {
    alone(test, || {
        let model = Model::with(unit, policy(mode));
        drive(&model);
        refused(errno);
    })
}

#[test]
fn without_a_server_memory_is_plain() {
    let test = "cases::without_a_server_memory_is_plain";
    let said = alone_with(test, &[("IOMMU_SOCKET", "/nowhere/at/all")], || {
        redox_dma::init();
        let model = Model::new();
        plain(&model);
        // More than a server would give a client.
        let many: Vec<_> = (0..300).map(|_| zeroed_slice::<u8>(4 << 20).unwrap()).collect();
        assert!(many.iter().all(|memory| memory.len() == 4 << 20));
        assert_eq!(model.counts().of(Operation::Attach), 0);
    });
    assert_eq!(said, ["redox-dma: this driver's device is not confined: iommud does not serve"]);
}

#[test]
fn a_server_that_cannot_be_asked_is_not_absent() {
    let test = "cases::a_server_that_cannot_be_asked_is_not_absent";
    // A path below a file: ENOTDIR.
    let said = alone_with(test, &[("IOMMU_SOCKET", "/proc/self/exe/socket")], || refused(20));
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("redox-dma: no DMA memory for this driver: iommud: "), "{said:?}");
}

#[test]
fn a_process_without_a_function_has_plain_memory() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let path = format!("/tmp/redox-dma-test-{}", std::process::id());
    let server = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    bind(&server, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&server, 1).unwrap();
    let test = "cases::a_process_without_a_function_has_plain_memory";
    let child = std::env::var_os(crate::CHILD).is_some();
    let said = alone_with(test, &[("IOMMU_SOCKET", &path)], || plain(&Model::new()));
    if !child {
        std::fs::remove_file(&path).unwrap();
    }
    let line = "redox-dma: this driver's device is not confined: no function was handed to it";
    assert_eq!(said, [line]);
}

#[test]
fn without_a_unit_memory_is_plain() {
    let test = "cases::without_a_unit_memory_is_plain";
    let said = plain_on(test, ModelUnit::Absent, Mode::Compat);
    let line = "this driver's device is not confined: no unit stands in front of 0000--00--04.0";
    assert_eq!(said, [format!("redox-dma: {line}")]);
}

#[test]
fn strict_without_a_unit_is_a_refusal() {
    let test = "cases::strict_without_a_unit_is_a_refusal";
    let said = refused_on(test, ModelUnit::Absent, Mode::Strict, 6);
    let line = "no DMA memory for this driver: 0000--00--04.0: no unit confines this device";
    assert_eq!(said, [format!("redox-dma: {line}")]);
}

#[test]
fn a_unit_that_never_came_up_under_compat_is_plain_memory() {
    let test = "cases::a_unit_that_never_came_up_under_compat_is_plain_memory";
    let said = plain_on(test, ModelUnit::Failed, Mode::Compat);
    let why = "0000--00--04.0: the unit of this device has failed";
    assert_eq!(said, [format!("redox-dma: this driver's device is not confined: {why}")]);
}

#[test]
fn a_unit_that_never_came_up_under_strict_is_a_refusal() {
    let test = "cases::a_unit_that_never_came_up_under_strict_is_a_refusal";
    let said = refused_on(test, ModelUnit::Failed, Mode::Strict, 5);
    assert_eq!(said.len(), 1, "{said:?}");
}

#[test]
fn a_unit_left_alone_under_off_is_plain_memory() {
    let test = "cases::a_unit_left_alone_under_off_is_plain_memory";
    let said = plain_on(test, ModelUnit::LeftAlone, Mode::Off);
    let why = "0000--00--04.0: the unit of this device is not ready yet";
    assert_eq!(said, [format!("redox-dma: this driver's device is not confined: {why}")]);
}

#[test]
fn a_unit_left_alone_under_strict_is_a_refusal() {
    let test = "cases::a_unit_left_alone_under_strict_is_a_refusal";
    assert_eq!(refused_on(test, ModelUnit::LeftAlone, Mode::Strict, 11).len(), 1);
}

/// A device of policy `off` is confined all the same when it has a driver of this crate.
#[test]
fn off_is_for_devices_that_nobody_claims() {
    let said = alone("cases::off_is_for_devices_that_nobody_claims", || {
        let model = Model::with(ModelUnit::Up, policy(Mode::Off));
        drive(&model);
        let _memory = zeroed::<[u8; 20 * PAGE]>().unwrap();
        assert_eq!(reached(&model), 20 * 4096);
    });
    assert_eq!(said, [""; 0]);
}

#[test]
fn another_owner_is_a_refusal_until_it_ends() {
    let said = alone("cases::another_owner_is_a_refusal_until_it_ends", || {
        let model = Model::new();
        drive(&model);
        let other = Device::open(&model.connection(), NAME).unwrap();
        refused(16);
        drop(other);
        let memory = Dma::new(8_u8).unwrap();
        assert_eq!(model.device_read(address(), memory.physical() as u64, 1), Ok(vec![8]));
    });
    let why = "0000--00--04.0: another owner holds the group of this device";
    assert_eq!(said, [format!("redox-dma: no DMA memory for this driver: {why}")]);
}

#[test]
fn an_unknown_function_is_refused_where_a_unit_is_on() {
    let said = alone("cases::an_unknown_function_is_refused_where_a_unit_is_on", || {
        let model = Model::new();
        redox_dma::through(model.connection(), "0000--00--1f.7".parse().unwrap()).unwrap();
        refused(19);
    });
    assert_eq!(said.len(), 1, "{said:?}");
}

#[test]
fn an_unknown_function_has_plain_memory_where_no_unit_is() {
    let said = alone("cases::an_unknown_function_has_plain_memory_where_no_unit_is", || {
        let model = Model::without_unit();
        redox_dma::through(model.connection(), "0000--00--1f.7".parse().unwrap()).unwrap();
        plain(&model);
    });
    assert_eq!(said.len(), 1, "{said:?}");
}

#[test]
fn a_server_is_named_before_the_first_allocation() {
    alone("cases::a_server_is_named_before_the_first_allocation", || {
        let model = Model::new();
        drive(&model);
        let _memory = Dma::new(1_u8).unwrap();
        assert_eq!(redox_dma::through(model.connection(), address()), Err(Late));
    });
}

/// A client may have half of a chunk: pages come one by one then.
#[test]
fn a_small_quota_is_used_up_page_by_page() {
    let said = alone("cases::a_small_quota_is_used_up_page_by_page", || {
        let mut policy = Config::default();
        policy.quotas.memory = 32 * 4096;
        let model = Model::with(ModelUnit::Up, policy);
        drive(&model);
        let mut kept: Vec<_> = (0..32_u8).map(|n| Dma::new(n).unwrap()).collect();
        assert_eq!(number(Dma::new(0_u8)), 122);
        assert_eq!(number(Sgl::new(5 << 20)), 122);
        kept.pop();
        kept.push(Dma::new(31).unwrap());
        for (n, memory) in kept.iter().enumerate() {
            assert_eq!(
                model.device_read(address(), memory.physical() as u64, 1),
                Ok(vec![n as u8])
            );
        }
    });
    let line = "0000--00--04.0 gets no 4096 bytes: a quota of this client is reached";
    assert_eq!(said, [format!("redox-dma: {line}")]);
}

/// A server that changes: it is gone, or refuses claims with a code, or says something else of the device.
struct Changed {
    inner: InProcess,
    gone: Arc<AtomicBool>,
    refusal: Arc<AtomicU16>,
    text: &'static str,
}

impl Changed {
    fn new(model: &Model, refusal: Option<Refusal>, text: &'static str) -> Self {
        let refusal = Arc::new(AtomicU16::new(refusal.map_or(0, Refusal::code)));
        Self { inner: model.transport(), gone: Arc::default(), refusal, text }
    }

    fn check(&self) -> Result<(), Error> {
        if self.gone.load(Ordering::Relaxed) { Err(Error::Disconnected) } else { Ok(()) }
    }
}

impl Transport for Changed {
    fn open(&self, at: Option<Handle>, path: &str, write: bool) -> Result<Handle, Error> {
        self.check()?;
        let code = self.refusal.load(Ordering::Relaxed);
        match Refusal::from_code(code).filter(|_| write && at.is_none()) {
            Some(refusal) => Err(refusal.into()),
            None => self.inner.open(at, path, write),
        }
    }

    fn close(&self, handle: Handle) {
        if self.check().is_ok() {
            self.inner.close(handle);
        }
    }

    fn read(&self, handle: Handle, out: &mut [u8]) -> Result<usize, Error> {
        self.check()?;
        let length = self.inner.read(handle, out)?;
        if self.text.is_empty() || length == 0 {
            return Ok(length);
        }
        out[..self.text.len()].copy_from_slice(self.text.as_bytes());
        Ok(self.text.len())
    }

    fn call(&self, handle: Handle, payload: &mut [u8], request: usize) -> Result<usize, Error> {
        self.check()?;
        self.inner.call(handle, payload, request)
    }

    fn names(&self, handle: Handle) -> Result<Vec<String>, Error> {
        self.inner.names(handle)
    }

    fn wait_readable(&self, handle: Handle, timeout: Duration) -> Result<bool, Error> {
        self.inner.wait_readable(handle, timeout)
    }

    fn map(&self, handle: Handle) -> Result<Memory, Error> {
        self.check()?;
        self.inner.map(handle)
    }

    fn import(&self, session: Handle, buffer: Handle) -> Result<u32, Error> {
        self.inner.import(session, buffer)
    }
}

#[test]
fn a_server_that_ended_is_an_error_and_said_once() {
    let said = alone("cases::a_server_that_ended_is_an_error_and_said_once", || {
        let model = Model::new();
        let transport = Changed::new(&model, None, "");
        let gone = transport.gone.clone();
        drive_over(transport);
        let long = zeroed::<[u8; 20 * PAGE]>().unwrap();
        let mut small = Dma::new(1_u8).unwrap();
        gone.store(true, Ordering::Relaxed);
        for _ in 0..2 {
            assert_eq!(number(zeroed::<[u8; 20 * PAGE]>()), 19);
            assert_eq!(number(Sgl::new(5 << 20)), 19);
        }
        // The values stay this process's memory, and are dropped as ever.
        *small = 2;
        assert_eq!((*small, long.len()), (2, 20 * PAGE));
        drop(long);
        drop(small);
        // Another server that serves now has not got the driver's memory.
        gone.store(false, Ordering::Relaxed);
        model.kill_clients();
        assert_eq!(number(zeroed::<[u8; 20 * PAGE]>()), 9);
    });
    let gone = "iommud ended, and 0000--00--04.0 is cut off: start its driver again";
    assert_eq!(said[0], format!("redox-dma: {gone}"));
    assert_eq!(said.len(), 2, "{said:?}");
}

/// What the texts say decides only where no unit can confine the device.
#[test]
fn nothing_but_a_missing_unit_is_a_reason_for_plain_memory() {
    const OPEN: &str = "policy: compat\nreaches: what it reached before iommud, NOT CONFINED\n";
    const UNKNOWN: &str = "policy: compat\nreaches: not known: its unit failed\n";
    const STRICT: &str = "policy: strict\nreaches: what it reached before iommud, NOT CONFINED\n";
    const NONE: &str = "reaches: what it reached before iommud, NOT CONFINED\n";
    const ON: &str = "confinement: on, NOT CONFINED behind unit 1\n";
    let cases = [
        (Refusal::UnitFailed, OPEN, None),
        (Refusal::UnitFailed, UNKNOWN, Some(5)),
        (Refusal::UnitFailed, STRICT, Some(5)),
        (Refusal::NotReady, NONE, Some(11)),
        (Refusal::NotProbed, ON, Some(19)),
        (Refusal::NotProbed, OPEN, Some(19)),
        (Refusal::NoUnit, OPEN, Some(6)),
        (Refusal::Quota, OPEN, Some(122)),
        (Refusal::Permission, OPEN, Some(1)),
        (Refusal::NotOwner, OPEN, Some(16)),
        (Refusal::Busy, OPEN, Some(16)),
        (Refusal::Unsupported, OPEN, Some(95)),
    ];
    for (index, (refusal, text, errno)) in cases.into_iter().enumerate() {
        let test = "cases::nothing_but_a_missing_unit_is_a_reason_for_plain_memory";
        let own = std::env::var("REDOX_DMA_CASE").ok();
        if own.is_some_and(|own| own != index.to_string()) {
            continue;
        }
        alone_with(test, &[("REDOX_DMA_CASE", &index.to_string())], || {
            let model = Model::new();
            let connection = Connection::over(Changed::new(&model, Some(refusal), text));
            redox_dma::through(connection, address()).unwrap();
            match errno {
                Some(errno) => refused(errno),
                None => plain(&model),
            }
        });
    }
}
