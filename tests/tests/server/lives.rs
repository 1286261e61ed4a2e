//! Lives and deaths of clients: nothing is left behind, and no device reaches freed memory.

use iommu_protocol::Refusal;
use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::SessionFlags;
use iommud::policy::{ClientId, Mode};
use iommud::server::{Caller, Handle};

use super::{Bed, compat, devices, each, pair, reach, setup, start, subjects};
use iommud_tests::conformance::UnderTest;
use iommud_tests::machine::Watch;
use iommud_tests::stack::Setup;

/// The device of a client that dies is blocked before its memory is reused.
#[test]
fn a_client_that_dies_in_the_middle_of_a_transfer_is_cut_off() {
    each(Mode::Compat, |stack| {
        let [device, other, ..] = devices();
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        let buffer = stack.allocate(session, 0x8000).unwrap();
        let share = stack.share(1, session, buffer.slot).unwrap();
        // The device never stops writing. It may write to the buffer until the session is closed, and reaches nothing
        // from then on.
        let mine: Vec<_> = share.segments.iter().map(|s| (s.first().0, s.length())).collect();
        for page in 0..8 {
            let iova = buffer.iova + 0x1000 * page;
            let granted = mine.clone();
            stack.machine.watch(Watch {
                unit: 0,
                source: device.requester.0,
                iova,
                write: true,
                granted,
                must_pass: false,
            });
        }
        stack.server.close(session);
        stack.machine.clear_watches();
        assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
        assert_eq!(reach(stack, device), []);
        let text = stack.text(&format!("devices/{device}"));
        assert!(text.contains("reaches: nothing: its owner ended while it was attached"), "{text}");
        // The next client gets the same memory, cleared, and the old device does not reach it.
        let session = stack.claim(2, other).unwrap();
        stack.attach(session).unwrap();
        let next = stack.allocate(session, 0x8000).unwrap();
        let share = stack.share(2, session, next.slot).unwrap();
        let reused = |s: &iommud::addr::PhysRange| {
            mine.iter().any(|(start, length)| (*start..start + length).contains(&s.first().0))
        };
        assert!(share.segments.iter().all(reused), "this machine hands memory out again at once");
        assert!(stack.machine.share_read(&share, 0, 0x8000).iter().all(|byte| *byte == 0));
        stack.machine.share_write(&share, 0, &[0x5a; 0x8000]);
        for page in 0..8 {
            let _ = stack.device_write(device, buffer.iova + 0x1000 * page, &[0xee; 0x1000]);
        }
        assert!(stack.machine.share_read(&share, 0, 0x8000).iter().all(|byte| *byte == 0x5a));
    });
}

/// Who has a device after a driver that died is told so, until it attaches the device; a member of the same group that
/// was not in use is not meant.
#[test]
fn the_next_owner_is_told_that_its_device_may_still_be_at_work() {
    each(Mode::Strict, |stack| {
        let [.., device, neighbour] = devices();
        let told = |stack: &mut Bed, session| {
            stack.query(session).unwrap().flags & SessionFlags::UNQUIESCED.bits() != 0
        };
        let session = stack.claim(1, device).unwrap();
        assert!(!told(stack, session), "nobody had it");
        stack.attach(session).unwrap();
        assert!(!told(stack, session));
        stack.server.close(session);
        let session = stack.claim(2, device).unwrap();
        assert!(told(stack, session));
        let path = format!("devices/{neighbour}");
        let caller = Caller { client: ClientId(2), uid: 0 };
        let member = stack.server.open(caller, Some(session), &path, true).unwrap();
        assert!(!told(stack, member), "another function");
        stack.attach(session).unwrap();
        assert!(!told(stack, session));
        stack.detach(session).unwrap();
        assert!(!told(stack, session), "its owner has quieted it");
        stack.give_back(member);
        stack.give_back(session);
    });
}

/// Memory is cleared through the caches. A device that does not snoop reads memory behind them. It must not find the
/// last client's bytes there.
#[test]
fn a_device_that_does_not_snoop_finds_no_bytes_of_an_earlier_client() {
    each(Mode::Strict, |stack| {
        let [device, other, ..] = devices();
        let session = stack.claim(1, device).unwrap();
        stack.attach(session).unwrap();
        let buffer = stack.allocate(session, 0x8000).unwrap();
        let share = stack.share(1, session, buffer.slot).unwrap();
        let before = share.segments.clone();
        stack.machine.share_write(&share, 0, &[0x5e; 0x8000]);
        stack.server.close(session);
        let session = stack.claim(2, other).unwrap();
        stack.attach(session).unwrap();
        let buffer = stack.allocate(session, 0x8000).unwrap();
        let share = stack.share(2, session, buffer.slot).unwrap();
        let reused = |segment| before.iter().any(|old| old.contains(segment));
        assert!(share.segments.iter().copied().all(reused), "the same memory");
        for length in [0x800, 0x8000] {
            let found = stack.device_read_no_snoop(other, buffer.iova, length).unwrap();
            let wrong = found.iter().position(|byte| *byte != 0);
            assert_eq!(wrong, None, "an earlier client's byte: {:#x}", found[wrong.unwrap_or(0)]);
        }
        assert_eq!(stack.faults(session), []);
    });
}

/// Both units walk the page table of a domain behind them. So leaves use only features of both units. The unit
/// without snoop control would reject the snoop bit.
#[test]
fn a_buffer_behind_two_units_is_read_by_both() {
    let [device, other, ..] = devices();
    for order in [pair(), {
        let [one, two] = pair();
        [two, one]
    }] {
        let setup = Setup { behind_first: vec![device], ..setup(Mode::Strict) };
        let mut stack = Bed::start(&order, setup);
        let first = stack.claim(1, device).unwrap();
        stack.attach(first).unwrap();
        let caller = Caller { client: ClientId(1), uid: 0 };
        let second = stack.server.open(caller, Some(first), &format!("devices/{other}"), true);
        let second = second.unwrap();
        stack.attach(second).unwrap();
        let buffer = stack.allocate(first, 0x4000).unwrap();
        for device in [device, other] {
            for found in [
                stack.device_read(device, buffer.iova, 0x4000),
                stack.device_read_no_snoop(device, buffer.iova, 0x4000),
            ] {
                assert!(found.unwrap().iter().all(|byte| *byte == 0));
            }
        }
        stack.machine.assert_clean();
    }
}

/// A buffer still mapped by a process outlives its session. Its memory is freed with its last holder, and no device
/// reaches it in between.
#[test]
fn a_held_buffer_outlives_its_session() {
    let mut stack = start(Mode::Compat);
    let [device, ..] = devices();
    let before = stack.snapshot();
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let buffer = stack.allocate(session, 0x2000).unwrap();
    let caller = Caller { client: ClientId(1), uid: 0 };
    let path = format!("buffers/{}", buffer.slot);
    let held = stack.server.open(caller, Some(session), &path, true).unwrap();
    let (share, length) = stack.server.share(held).unwrap();
    assert_eq!(length, 0x2000);
    stack.machine.share_write(&share, 0, b"kept");
    stack.server.close(session);
    assert_eq!(stack.machine.buffers_in_use(), [share.id]);
    assert_eq!(stack.machine.share_read(&share, 0, 4), b"kept");
    assert_eq!(reach(&stack, device), []);
    // The same client can import it into its next session.
    let session = stack.claim(1, device).unwrap();
    stack.attach(session).unwrap();
    let slot = stack.server.import(session, held).unwrap();
    let iova = stack.map(session, slot, 0, 0x2000).unwrap();
    assert_eq!(stack.device_read(device, iova, 4).unwrap(), b"kept");
    stack.server.close(held);
    assert_eq!(stack.device_read(device, iova, 4).unwrap(), b"kept", "the session holds it");
    stack.give_back(session);
    assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
    assert_eq!(reach(&stack, device), compat(&stack));
    stack.snapshot().assert_same(&before, "");
}

/// One client of a random run.
#[derive(Default)]
struct Client {
    session: Option<Handle>,
    attached: bool,
    buffers: Vec<(u32, u64, u64)>,
    mappings: Vec<(u64, u64)>,
}

/// Four clients claim, allocate, map, transfer, unmap and die at random, while devices try every address. In the end
/// the state is the same as before.
#[test]
fn random_lives_leave_nothing_behind() {
    for subject in subjects() {
        for seed in 1..=2_u64 {
            println!("subject: {}, seed {seed}", subject.name());
            let mut stack = Bed::start(std::slice::from_ref(&subject), setup(Mode::Strict));
            let before = stack.snapshot();
            random_lives(&mut stack, seed * 0x1234_5677, 150);
            stack.snapshot().assert_same(&before, &format!("{} seed {seed}", subject.name()));
            stack.machine.assert_clean();
        }
    }
}

fn random_lives(stack: &mut Bed, mut seed: u64, steps: usize) {
    let mut random = move |end: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) % end
    };
    let all = devices();
    let mut clients: Vec<Client> = (0..4).map(|_| Client::default()).collect();
    for _ in 0..steps {
        let who = usize::try_from(random(4)).unwrap();
        act(stack, &mut clients[who], u32::try_from(who).unwrap(), all[who], &mut random);
        // Each device tries its own addresses, the others', and random ones.
        for (at, device) in all.into_iter().take(4).enumerate() {
            let granted = |iova: u64| {
                clients[at].attached
                    && clients[at]
                        .mappings
                        .iter()
                        .any(|(start, length)| (*start..start + length).contains(&iova))
            };
            let known = clients.iter().flat_map(|client| client.mappings.iter());
            let mut tries: Vec<u64> =
                known.map(|(start, length)| start + random(*length)).collect();
            tries.push(random(1 << 32));
            for iova in tries {
                let passed = stack.machine.probe(0, device.requester.0, iova, true).is_some();
                assert_eq!(passed, granted(iova), "{device} {iova:#x}");
            }
        }
    }
    for client in clients {
        if let Some(session) = client.session {
            stack.server.close(session);
        }
    }
    assert_eq!(stack.machine.buffers_in_use(), Vec::<u32>::new());
    // Devices left behind stay blocked until a client attaches them again.
    for (number, device) in (0..4).zip(all) {
        let session = stack.claim(number, device).unwrap();
        stack.attach(session).unwrap();
        stack.give_back(session);
    }
}

fn act(
    stack: &mut Bed,
    client: &mut Client,
    number: u32,
    device: PciAddress,
    random: &mut impl FnMut(u64) -> u64,
) {
    let Some(session) = client.session else {
        client.session = Some(stack.claim(number, device).unwrap());
        return;
    };
    let pick = |random: &mut dyn FnMut(u64) -> u64, length: usize| {
        usize::try_from(random(u64::try_from(length).unwrap())).unwrap()
    };
    match random(10) {
        0 => {
            stack.server.close(session);
            *client = Client::default();
        }
        1 | 2 if client.attached => {
            stack.detach(session).unwrap();
            client.attached = false;
        }
        1 | 2 => {
            stack.attach(session).unwrap();
            client.attached = true;
        }
        3 | 4 => {
            let length = 0x1000 * (1 + random(20));
            let buffer = stack.allocate(session, length).unwrap();
            client.buffers.push((buffer.slot, length, buffer.iova));
            client.mappings.push((buffer.iova, length));
        }
        5 | 6 if !client.buffers.is_empty() => {
            let (slot, length, _) = client.buffers[pick(random, client.buffers.len())];
            let pages = length / 0x1000;
            let offset = random(pages);
            let count = 1 + random(pages - offset);
            let iova = stack.map(session, slot, offset * 0x1000, count * 0x1000).unwrap();
            client.mappings.push((iova, count * 0x1000));
        }
        7 | 8 if !client.mappings.is_empty() => {
            let at = pick(random, client.mappings.len());
            let (iova, length) = client.mappings[at];
            stack.unmap(session, iova, length).unwrap();
            client.mappings.swap_remove(at);
        }
        _ => {}
    }
}

/// The k-th allocation of table memory fails, for every k, in each kind of request. The state stays as before, tables
/// included, and the retry succeeds.
#[test]
fn running_out_of_memory_leaves_everything_as_it_was() {
    for subject in subjects() {
        let mut stack = Bed::start(std::slice::from_ref(&subject), setup(Mode::Compat));
        let [device, ..] = devices();
        let session = retried(&mut stack, |stack| stack.claim(1, device));
        retried(&mut stack, |stack| stack.attach(session));
        stack.machine.fail_buffer_allocations(0, 1);
        let before = stack.snapshot();
        assert_eq!(stack.allocate(session, 0x1000).err(), Some(Refusal::Full));
        stack.snapshot().assert_same(&before, "no memory for the buffer");
        let buffer = retried(&mut stack, |stack| stack.allocate(session, 0x40_0000));
        let second = retried(&mut stack, |stack| stack.map(session, buffer.slot, 0, 0x20_1000));
        retried(&mut stack, |stack| stack.unmap(session, second, 0x20_1000));
        retried(&mut stack, |stack| stack.release(session, buffer.slot));
        retried(&mut stack, |stack| stack.detach(session));
        stack.server.close(session);
        assert_eq!(reach(&stack, device), compat(&stack), "{}", subject.name());
        stack.machine.assert_clean();
    }
}

/// Runs a request while the k-th allocation of a table fails, for k from 0 on, until it succeeds.
fn retried<R>(stack: &mut Bed, mut request: impl FnMut(&mut Bed) -> Result<R, Refusal>) -> R {
    let before = stack.snapshot();
    for k in 0..100 {
        stack.machine.fail_table_allocations(k, 1);
        let result = request(stack);
        stack.machine.fail_table_allocations(0, 0);
        match result {
            Ok(done) => return done,
            Err(refusal) => assert_eq!(refusal, Refusal::NoMemory, "allocation {k}"),
        }
        stack.snapshot().assert_same(&before, &format!("allocation {k}"));
        stack.machine.assert_clean();
    }
    panic!("it never succeeds");
}
