//! Tests of claims that wait for their unit, called like the kernel and `ReadinessBased` call the scheme. The open is
//! answered at once. The call of [`AWAIT`] is repeated as long as it returns EWOULDBLOCK.

use std::cell::Cell;
use std::rc::Rc;

use iommu_protocol::Refusal;
use syscall::error::EWOULDBLOCK;

use super::*;
use crate::hw::Nanos;
use crate::platform::fake_unit::FakeUnit;
use crate::policy::UnitIndex;
use crate::server::{LONGEST_WAIT, MOST_WAITING, MOST_WAITING_OF_ONE};

type Waiting = IommuScheme<FakeUnit, Buffers>;

const WAITING: &str = "/devices/0000--00--04.0?wait=1000";
const MS: u64 = 1_000_000;

/// Makes a scheme whose unit is not up, and its clock in milliseconds.
fn late() -> (Waiting, Rc<Cell<u64>>) {
    let unit = UnitDescription {
        kind: UnitKind::Vtd,
        segment: 0,
        registers: Ok(PhysRange::new(PhysAddr(0xfed9_0000), 4096).unwrap()),
        include_all: true,
        scopes: Vec::new(),
        entries: Vec::new(),
    };
    let firmware = Firmware { units: vec![unit], ..Firmware::default() };
    let server = start(firmware, vec![UnitStart::Off], tables());
    let time = Rc::new(Cell::new(0));
    let clock = time.clone();
    let scheme = IommuScheme::new(server).with_keys(Some([9; 32]));
    (scheme.with_clock(move || Nanos(clock.get() * MS)), time)
}

/// One huge page for tables.
fn tables() -> HugeTables {
    use crate::platform::linux::memory::testing::FakePages;
    const PHYS: u64 = 0x4000_0000;
    HugeTables::new([(PhysAddr(PHYS), FakePages::default().page(PHYS).into_mapping())])
}

fn claim(scheme: &mut Waiting, process: usize) -> core::result::Result<usize, i32> {
    number(scheme.openat(ROOT, WAITING, O_RDWR, 0, &caller(process, 0)))
}

/// Runs the waiting call once.
fn ask(scheme: &mut Waiting, number: usize) -> Result<usize> {
    scheme.answer_claims();
    scheme.call(number, &mut [0; 8], &[AWAIT], &caller(9, 7))
}

fn waits(scheme: &mut Waiting, number: usize) -> bool {
    ask(scheme, number) == Err(Error::new(EWOULDBLOCK))
}

fn code(refusal: Refusal) -> Result<usize> {
    Ok(refusal.code().into())
}

fn sessions(scheme: &mut Waiting) -> u64 {
    let number = number(scheme.openat(ROOT, "metrics", O_RDONLY, 0, &caller(0, 0))).unwrap();
    let mut text = vec![0; 8192];
    let length = scheme.read(number, &mut text, 0, 0, &caller(0, 0)).unwrap();
    scheme.on_close(number);
    let text = String::from_utf8(text[..length].to_vec()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("sessions ")).unwrap();
    line.parse().unwrap()
}

fn arrive(scheme: &mut Waiting) {
    scheme.server_mut().unit_arrived(UnitIndex(0), FakeUnit::new());
}

/// When the unit is up, the descriptor of the claim is that of a session, and behaves like any other.
#[test]
fn the_unit_comes_and_the_claim_is_a_session() {
    let (mut scheme, _) = late();
    let first = claim(&mut scheme, 1).unwrap();
    let second = claim(&mut scheme, 2).unwrap();
    assert!(waits(&mut scheme, first) && waits(&mut scheme, second) && scheme.has_claims());
    let mut stat = syscall::Stat::default();
    let who = caller(9, 7);
    assert_eq!(errno(scheme.fstat(first, &mut stat, &who)), EBADF, "no session yet");
    assert_eq!(errno(scheme.call(first, &mut request(1, &[0], 128), &[], &who)), EBADF);
    arrive(&mut scheme);
    assert_eq!(ask(&mut scheme, second), code(Refusal::NotOwner), "who asked later");
    assert_eq!(ask(&mut scheme, second), code(Refusal::NotOwner), "the same, asked again");
    assert_eq!([ask(&mut scheme, first), ask(&mut scheme, first)], [Ok(0), Ok(0)]);
    assert!(!scheme.has_claims());
    scheme.fstat(first, &mut stat, &who).unwrap();
    assert_eq!(stat.st_mode, 0o100_600);
    let mut payload = request(1, &[0], 128);
    assert!(scheme.call(first, &mut payload, &[], &who).is_ok());
    let memory = allocate_in(&mut scheme, first);
    assert!(scheme.mmap_prep(memory, 0, 4096, MapFlags::MAP_SHARED, &who).is_ok());
    assert_eq!(errno(scheme.fstat(second, &mut stat, &who)), EBADF, "it is none");
    scheme.on_close(second);
    assert_eq!(sessions(&mut scheme), 1);
    scheme.on_close(first);
    assert_eq!(sessions(&mut scheme), 0);
    assert_eq!(errno(scheme.call(first, &mut [0; 8], &[AWAIT], &who)), EBADF);
    assert!(claim(&mut scheme, 3).is_ok_and(|number| number < 1 << 32), "at once");
}

/// Allocates a page through the session's number, and opens the buffer below that.
fn allocate_in(scheme: &mut Waiting, session: usize) -> usize {
    let mut payload = request(4, &[4096, 4096, 0, 3], 48);
    assert_eq!(scheme.call(session, &mut payload, &[], &caller(9, 7)).unwrap(), 48);
    let slot = u32::from_le_bytes(payload[40..44].try_into().unwrap());
    number(scheme.dup(session, format!("buffers/{slot}").as_bytes(), &caller(9, 7))).unwrap()
}

/// Events of a session that was a claim carry the number of the claim's descriptor.
#[test]
fn readiness_is_told_under_the_number_of_the_claim() {
    let (mut scheme, _) = late();
    let number = claim(&mut scheme, 1).unwrap();
    arrive(&mut scheme);
    assert_eq!(ask(&mut scheme, number), Ok(0));
    let flags = EventFlags::EVENT_READ;
    assert_eq!(scheme.fevent(number, flags, &caller(1, 0)).unwrap(), EventFlags::empty());
    let session = scheme.handle(number).unwrap();
    assert_eq!(scheme.claims.number(session), Some(number));
    assert_eq!(scheme.next_ready(), None);
}

#[test]
fn a_deadline_ends_the_wait_and_so_does_the_longest_one() {
    let (mut scheme, time) = late();
    let short = claim(&mut scheme, 1).unwrap();
    let path = format!("{}{}", WAITING, "000000000");
    let long = number(scheme.openat(ROOT, &path, O_RDWR, 0, &caller(2, 0))).unwrap();
    time.set(999);
    assert!(waits(&mut scheme, short));
    time.set(5);
    assert!(waits(&mut scheme, short), "the clock may go back");
    time.set(1000);
    assert_eq!(ask(&mut scheme, short), code(Refusal::NotReady));
    time.set(LONGEST_WAIT.0 / MS - 1);
    assert!(waits(&mut scheme, long));
    time.set(LONGEST_WAIT.0 / MS);
    assert_eq!(ask(&mut scheme, long), code(Refusal::NotReady));
    assert!(!scheme.has_claims());
    arrive(&mut scheme);
    assert_eq!(ask(&mut scheme, long), code(Refusal::NotReady), "that is over");
    assert_eq!(sessions(&mut scheme), 0);
}

/// The kernel closes a descriptor when its process ends, in whatever way. Then the claim is dropped, even if it was
/// granted and no call has asked yet. A call that was kept gets an answer.
#[test]
fn who_is_gone_waits_no_longer() {
    let (mut scheme, _) = late();
    let (gone, granted) = (claim(&mut scheme, 1).unwrap(), claim(&mut scheme, 2).unwrap());
    assert!(waits(&mut scheme, gone));
    scheme.on_close(gone);
    assert_eq!(ask(&mut scheme, gone), Err(Error::new(EBADF)));
    arrive(&mut scheme);
    scheme.answer_claims();
    assert_eq!(sessions(&mut scheme), 1);
    scheme.on_close(granted);
    scheme.on_close(granted);
    assert_eq!(sessions(&mut scheme), 0);
    assert!(claim(&mut scheme, 3).is_ok());
}

/// A process may have as many waiting claims as a connection on Linux, and the limit for all is the same. Claims that
/// the manager of name spaces opens for processes count as those of one process.
#[test]
fn few_may_wait() {
    let (mut scheme, _) = late();
    let mut all = Vec::new();
    for process in 0..MOST_WAITING / MOST_WAITING_OF_ONE {
        for _ in 0..MOST_WAITING_OF_ONE {
            all.push(claim(&mut scheme, process).unwrap());
        }
        assert_eq!(claim(&mut scheme, process), Err(EAGAIN), "one more of {process}");
    }
    assert_eq!((all.len(), claim(&mut scheme, 99)), (MOST_WAITING, Err(EAGAIN)));
    scheme.on_close(all[0]);
    assert!(claim(&mut scheme, 0).is_ok());
    arrive(&mut scheme);
    let granted: Vec<_> = all.iter().filter(|number| ask(&mut scheme, **number) == Ok(0)).collect();
    assert_eq!(granted, [&all[1]], "the first who asked");
}

/// A claim waits only on request. No refusal has the errno that makes the loop keep a request and try it again
/// without end. Otherwise every open of the system could wait, because the manager of name spaces would.
#[test]
fn an_open_is_answered_at_once() {
    let (mut scheme, _) = late();
    assert!(Refusal::ALL.iter().all(|refusal| refusal.errno().0 != EWOULDBLOCK));
    assert_eq!(number(scheme.openat(ROOT, DEVICE, O_RDWR, 0, &caller(0, 0))), Err(EAGAIN));
    assert!(!scheme.has_claims());
    let mut refused = |path: &str, flags| errno(scheme.openat(ROOT, path, flags, 0, &caller(0, 0)));
    assert_eq!(refused(WAITING, O_RDONLY), EINVAL);
    assert_eq!(refused("/devices/0000--00--04.0?wait=1s", O_RDWR), EINVAL);
    assert_eq!(refused("/devices/0000--00--05.0?wait=9", O_RDWR), ENODEV);
    assert_eq!(refused("/status?wait=9", O_RDWR), EPERM);
    let other = scheme.openat(ROOT, WAITING, O_RDWR, 0, &caller(0, 1000));
    assert_eq!(errno(other), EPERM, "a claim is for uid 0, a waiting one too");
    let memory = scheme.call(MEMORY, &mut [0; 8], &[AWAIT], &caller(0, 0));
    assert!(memory.is_err());
}

/// A claim ends with the descriptor that it is relative to, because nothing can be opened below that any more.
#[test]
fn a_claim_ends_with_what_it_is_relative_to() {
    let (mut scheme, _) = late();
    let who = caller(5, 0);
    let root = number(scheme.openat(ROOT, "/", O_RDONLY | O_DIRECTORY, 0, &who)).unwrap();
    let path = WAITING.trim_matches('/');
    let claim = number(scheme.openat(root, path, O_RDWR, 0, &who)).unwrap();
    assert!(waits(&mut scheme, claim));
    scheme.on_close(root);
    assert_eq!(ask(&mut scheme, claim), code(Refusal::BadHandle));
    arrive(&mut scheme);
    assert_eq!(ask(&mut scheme, claim), code(Refusal::BadHandle));
    assert_eq!(sessions(&mut scheme), 0);
}

/// A claim of a member below a session that was a claim waits, or is refused, like below any other session.
#[test]
fn a_session_that_was_a_claim_is_one_to_claim_below() {
    let (mut scheme, _) = late();
    let parent = claim(&mut scheme, 1).unwrap();
    let path = b"devices/0000--00--04.0?wait=1000";
    assert_eq!(errno(scheme.dup(parent, path, &caller(9, 0))), EBADF, "it is none yet");
    arrive(&mut scheme);
    assert_eq!(ask(&mut scheme, parent), Ok(0));
    let below = errno(scheme.dup(parent, path, &caller(9, 0)));
    assert_eq!(below, Refusal::Busy.errno().0, "it is the parent's own");
    assert_eq!(errno(scheme.dup(parent, b"devices/0000--00--04.0?wait=x", &caller(9, 0))), EINVAL);
}
