use super::*;
use iommu_protocol::frame::ROOT;
use iommu_protocol::frame::{Kind, Request};

const CLIENT: ClientId = ClientId(7);
/// A client in the same place.
const LATER: ClientId = ClientId(7 + 256);
const TAG: u64 = NUMBERED | 3;

fn cache() -> (SharedCache, OwnedFd) {
    let file = SharedCache::create().unwrap();
    (SharedCache::open(&file).unwrap(), file)
}

fn begin(cache: &mut SharedCache, tag: u64) -> (Known, Vec<u8>) {
    let mut room = vec![0xee; MAX_FRAME];
    let known = cache.begin(CLIENT, tag, &mut room);
    (known, room)
}

#[test]
fn a_file_of_another_version_is_refused() {
    let (mut cache, file) = cache();
    assert!(SharedCache::open(&file).is_ok(), "the next server");
    cache.0.write64(0, VERSION + 1);
    let refused = SharedCache::open(&file);
    assert!(matches!(refused, Err(Incompatible::Version(2))), "{refused:?}");
    ftruncate(&file, 4096).unwrap();
    assert!(matches!(SharedCache::open(&file), Err(Incompatible::System(_))));
}

/// The longest reply, an odd one and an empty one are the same bytes in the next server.
#[test]
fn a_recorded_reply_is_the_same_bytes() {
    for length in [MAX_FRAME, 4097, 0] {
        let (mut cache, file) = cache();
        cache.resume(CLIENT);
        let reply: Vec<u8> = (0..length).map(|index| (index % 251).to_le_bytes()[0]).collect();
        assert_eq!(begin(&mut cache, TAG).0, Known::New);
        cache.answered(CLIENT, Some(&reply), None);
        let mut next = SharedCache::open(&file).unwrap();
        assert_eq!(next.resume(CLIENT), Resumed::default());
        let (known, room) = begin(&mut next, TAG);
        assert_eq!((known, &room[..length]), (Known::Answered(length), &reply[..]));
        assert!(room[length..].iter().all(|byte| *byte == 0xee));
        next.sent(CLIENT);
        assert_eq!(begin(&mut next, TAG).0, Known::Sent);
        assert_eq!(begin(&mut next, TAG + 1).0, Known::New, "another request");
    }
}

#[test]
fn a_client_without_numbers_may_use_a_tag_twice() {
    let (mut cache, _file) = cache();
    cache.resume(CLIENT);
    assert!(!cache.resume(CLIENT).plain, "it has made no request");
    for _ in 0..4 {
        assert_eq!(begin(&mut cache, 3).0, Known::New);
        cache.answered(CLIENT, Some(b"reply"), None);
    }
    assert!(cache.resume(CLIENT).plain);
}

#[test]
fn the_third_server_does_not_try_what_killed_two() {
    let (mut cache, _file) = cache();
    cache.resume(CLIENT);
    let tries = [(); 4].map(|()| begin(&mut cache, TAG).0);
    assert_eq!(tries, [Known::New, Known::New, Known::Deadly, Known::Deadly]);
    assert_eq!(begin(&mut cache, TAG + 1).0, Known::New);
}

#[test]
fn numbers_are_those_of_answered_requests() {
    let (mut cache, _file) = cache();
    cache.resume(CLIENT);
    for (index, number) in (1..).zip([0, 63, 64, 4095]) {
        begin(&mut cache, TAG + index);
        cache.answered(CLIENT, Some(b""), Some(Change::Opened(number)));
    }
    begin(&mut cache, TAG + 9);
    cache.answered(CLIENT, Some(b""), Some(Change::Closed(64)));
    assert_eq!(cache.resume(CLIENT).numbers, [0, 63, 4095]);
    // A server died after the mark and before the change.
    let mut place = cache.place(CLIENT);
    place.note_change(at::CHANGE, Some(Change::Opened(5)));
    assert_eq!(cache.resume(CLIENT).numbers, [0, 5, 63, 4095]);
    // And before the mark.
    begin(&mut cache, TAG + 10);
    cache.place(CLIENT).note_change(at::CHANGE, Some(Change::Opened(6)));
    assert_eq!(cache.resume(CLIENT).numbers, [0, 5, 63, 4095]);
    cache.forget(CLIENT);
    assert_eq!(cache.resume(LATER), Resumed::default(), "nothing is left to who comes next");
}

#[test]
fn a_claim_waits_until_its_reply_is_sent() {
    let (mut cache, _file) = cache();
    cache.resume(CLIENT);
    let request =
        |tag| Request { kind: Kind::Open as u16, handle: ROOT, tag, argument: 1 }.encode();
    let frames = [TAG, TAG + 1].map(|tag| [&request(tag)[..], b"devices/x"].concat());
    for (frame, tag) in frames.iter().zip([TAG, TAG + 1]) {
        assert_eq!(begin(&mut cache, tag).0, Known::New);
        cache.waits(CLIENT, frame);
        assert_eq!(begin(&mut cache, tag).0, Known::Sent, "it is only to be taken");
    }
    let reply = Reply { tag: TAG + 1, result: 5, handle: 0 }.encode();
    cache.claimed(CLIENT, &reply, Some(Change::Opened(5)));
    let resumed = cache.resume(CLIENT);
    let expected = [Waiting::Asked(frames[0].clone()), Waiting::Answered(reply.to_vec())];
    assert_eq!((resumed.waiting, resumed.numbers), (expected.to_vec(), vec![5]));
    cache.claim_sent(CLIENT, TAG);
    cache.claim_sent(CLIENT, TAG + 1);
    assert_eq!(cache.resume(CLIENT).waiting, expected[..1]);
}

/// Whatever is in the place of a client, nothing panics, and no other place changes.
#[test]
fn any_bytes_do_no_harm() {
    let (mut cache, _file) = cache();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..200 {
        let base = PLACE * (1 + place_of(CLIENT));
        for word in 0..at::REPLY / 8 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            cache.0.write64(base + 8 * word, random ^ random >> 29);
        }
        // Mostly a place of this client, with a phase that means something.
        cache.0.write64(base, 7 | USED | random & NUMBERS);
        cache.0.write64(base + at::TAG, TAG);
        cache.0.write64(base + at::STATE, random & !0xff | random >> 40 & 3);
        cache.resume(CLIENT);
        begin(&mut cache, TAG);
        cache.answered(CLIENT, Some(&[1; 40]), Some(Change::Opened(u32::MAX)));
        cache.claimed(CLIENT, &[0; 32], None);
        cache.waits(CLIENT, &[0; 64]);
        cache.forget(CLIENT);
        for place in [base - PLACE, base + PLACE] {
            assert!((0..PLACE / 8).all(|word| cache.0.read64(place + 8 * word) == Some(0)));
        }
    }
}
