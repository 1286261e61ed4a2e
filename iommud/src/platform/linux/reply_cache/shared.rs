//! The reply cache in a memory file, which the keeper holds and hands to each server.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use iommu_protocol::frame::{HEADER_SIZE, MAX_FRAME, NUMBERED, Reply};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};

use super::{Change, Known, MOST_HANDLES, ReplyCache, Resumed, Waiting};
use crate::platform::linux::places::{MOST_CONNECTIONS, place_of};
use crate::platform::mapping::{Mapping, Sharing};
use crate::policy::ClientId;
use crate::server::MOST_WAITING_OF_ONE;

/// Version of the layout. A server goes on from files of its own version only, and from new ones.
pub const VERSION: u64 = 1;

/// Bytes of the place of a client. The header has a place of its own, the first.
const PLACE: usize = 128 << 10;

/// Bytes of the file. Only what is written takes memory.
const LENGTH: usize = PLACE * (1 + MOST_CONNECTIONS);

/// Offsets in the place of a client.
///
/// | offset | words of 64 bits |
/// |---|---|
/// | 0 | client, flags in the upper half |
/// | 8 | tag of the last request |
/// | 16 | its phase in bits 0 to 7, attempts in 8 to 15, length of the reply in 32 to 63 |
/// | 24 | its change: number, and in the upper half 1 for opened, 2 for closed; 0 for nothing left to do |
/// | 64 | claims that wait |
/// | 2048 | numbers in use, one bit each |
/// | 4096 | reply |
mod at {
    pub(super) const CLIENT: usize = 0;
    pub(super) const TAG: usize = 8;
    pub(super) const STATE: usize = 16;
    pub(super) const CHANGE: usize = 24;
    pub(super) const CLAIMS: usize = 64;
    pub(super) const NUMBERS: usize = 2048;
    pub(super) const REPLY: usize = 4096;
}

/// Words of bits of numbers.
const NUMBER_WORDS: usize = MOST_HANDLES as usize / 64;

const _: () = assert!(at::NUMBERS >= at::CLAIMS + CLAIM * MOST_WAITING_OF_ONE);
const _: () = assert!(at::REPLY >= at::NUMBERS + 8 * NUMBER_WORDS);
const _: () = assert!(PLACE >= at::REPLY + MAX_FRAME);

/// Flags of a client.
const USED: u64 = 1 << 32;
const SERVED: u64 = 1 << 33;
const NUMBERS: u64 = 1 << 34;

/// Phases of a request, and of a claim that waits.
const BEGUN: u64 = 1;
const ANSWERED: u64 = 2;
const SENT: u64 = 3;

/// Servers that may die carrying out one request.
const MOST_ATTEMPTS: u64 = 2;

/// Bytes of a claim: phase and length of the frame, its change, the reply, the frame.
const CLAIM: usize = 256;
const CLAIM_CHANGE: usize = 8;
const CLAIM_REPLY: usize = 16;
const CLAIM_FRAME: usize = CLAIM_REPLY + HEADER_SIZE;

/// Kinds of changes.
const OPENED: u64 = 1 << 32;
const CLOSED: u64 = 2 << 32;

/// Why a server cannot use a file.
#[derive(Debug)]
pub enum Incompatible {
    /// Its layout has this version.
    Version(u64),
    /// The system failed.
    System(std::io::Error),
}

impl fmt::Display for Incompatible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "it has version {version}, not {VERSION}"),
            Self::System(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Incompatible {}

/// The records in a memory file.
#[derive(Debug)]
pub struct SharedCache(Mapping);

impl SharedCache {
    /// Makes a file without records.
    ///
    /// # Errors
    /// The error of memfd_create(2) or ftruncate(2).
    pub fn create() -> std::io::Result<OwnedFd> {
        let file = memfd_create("iommud replies", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, u64::try_from(LENGTH).unwrap_or(u64::MAX))?;
        Ok(file)
    }

    /// Uses the records in a file.
    ///
    /// # Errors
    /// `Version`: a server of another version made them. `System`: it cannot be mapped.
    pub fn open(file: &OwnedFd) -> Result<Self, Incompatible> {
        let system = |error: std::io::Error| Incompatible::System(error);
        let length = fstat(file).map_err(|error| system(error.into()))?.st_size;
        if usize::try_from(length) != Ok(LENGTH) {
            return Err(system(std::io::ErrorKind::InvalidData.into()));
        }
        let mut memory = Mapping::new(file.as_fd(), 0, LENGTH, Sharing::Shared).map_err(system)?;
        match memory.read64(0) {
            Some(0) => memory.write64(0, VERSION),
            Some(VERSION) => {}
            other => return Err(Incompatible::Version(other.unwrap_or(0))),
        }
        Ok(Self(memory))
    }

    fn place(&mut self, client: ClientId) -> Place<'_> {
        Place { memory: &mut self.0, base: PLACE * (1 + place_of(client)), client }
    }
}

/// The place of a client. Whatever is in it, no access leaves it.
struct Place<'a> {
    memory: &'a mut Mapping,
    base: usize,
    client: ClientId,
}

impl Place<'_> {
    fn get(&self, offset: usize) -> u64 {
        self.memory.read64(self.base + offset).unwrap_or(0)
    }

    fn put(&mut self, offset: usize, value: u64) {
        self.memory.write64(self.base + offset, value);
    }

    /// Reads bytes from `offset` on, a multiple of 8.
    fn bytes(&self, offset: usize, out: &mut [u8]) {
        for (index, part) in out.chunks_mut(8).enumerate() {
            let word = self.get(offset + 8 * index).to_le_bytes();
            part.iter_mut().zip(word).for_each(|(to, from)| *to = from);
        }
    }

    /// Writes bytes from `offset` on, a multiple of 8.
    fn put_bytes(&mut self, offset: usize, bytes: &[u8]) {
        let mut words = bytes.chunks(8).map(|part| {
            let mut word = [0; 8];
            word.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            u64::from_le_bytes(word)
        });
        self.memory.write64_each(self.base + offset, bytes.len().div_ceil(8), &mut words);
    }

    fn is_ours(&self) -> bool {
        let word = self.get(at::CLIENT);
        word & USED != 0 && word & u64::from(u32::MAX) == u64::from(self.client.0)
    }

    /// Begins anew. The client's number is written last: a server that dies before leaves no client.
    fn begin_anew(&mut self) {
        let numbers = (0..NUMBER_WORDS).map(|word| at::NUMBERS + 8 * word);
        for offset in [at::TAG, at::STATE, at::CHANGE].into_iter().chain(claims()).chain(numbers) {
            self.put(offset, 0);
        }
        self.put(at::CLIENT, u64::from(self.client.0) | USED);
    }

    /// Notes a change, which counts when the phase of its request says that it was answered.
    fn note_change(&mut self, offset: usize, change: Option<Change>) {
        let word = change.map_or(0, |change| match change {
            Change::Opened(number) => OPENED | u64::from(number),
            Change::Closed(number) => CLOSED | u64::from(number),
        });
        self.put(offset, word);
    }

    /// Carries out the change of an answered request, once.
    fn apply_change(&mut self, offset: usize) {
        let word = self.get(offset);
        let (kind, number) = (word & !u64::from(u32::MAX), word & u64::from(u32::MAX));
        let Some(number) = usize::try_from(number).ok().filter(|it| *it < 64 * NUMBER_WORDS) else {
            return;
        };
        let (at, bit) = (at::NUMBERS + 8 * (number / 64), 1 << (number % 64));
        match kind {
            OPENED => self.put(at, self.get(at) | bit),
            CLOSED => self.put(at, self.get(at) & !bit),
            _ => return,
        }
        self.put(offset, 0);
    }

    /// Numbers in use.
    fn numbers(&self) -> Vec<u32> {
        let bit = |number: &u32| {
            usize::try_from(*number).is_ok_and(|number| {
                self.get(at::NUMBERS + 8 * (number / 64)) >> (number % 64) & 1 == 1
            })
        };
        (0..MOST_HANDLES).filter(bit).collect()
    }

    /// The claim with this phase and, if it is given, this tag.
    fn claim(&self, phase: u64, tag: Option<u64>) -> Option<usize> {
        let is_it = |claim: &usize| {
            self.get(*claim) & 0xff == phase
                && tag.is_none_or(|tag| self.get(*claim + CLAIM_FRAME + 8) == tag)
        };
        claims().find(is_it)
    }

    fn waiting(&self, claim: usize) -> Option<Waiting> {
        let state = self.get(claim);
        let read = |offset: usize, length: usize| {
            let mut bytes = vec![0; length];
            self.bytes(claim + offset, &mut bytes);
            bytes
        };
        match state & 0xff {
            BEGUN => {
                let length = usize::try_from(state >> 32).ok()?.min(CLAIM - CLAIM_FRAME);
                Some(Waiting::Asked(read(CLAIM_FRAME, length)))
            }
            ANSWERED => Some(Waiting::Answered(read(CLAIM_REPLY, HEADER_SIZE))),
            _ => None,
        }
    }
}

/// Offsets of the claims in a place.
fn claims() -> impl Iterator<Item = usize> {
    (0..MOST_WAITING_OF_ONE).map(|index| at::CLAIMS + CLAIM * index)
}

impl ReplyCache for SharedCache {
    fn resume(&mut self, client: ClientId) -> Resumed {
        let mut place = self.place(client);
        if !place.is_ours() {
            place.begin_anew();
            return Resumed::default();
        }
        if [ANSWERED, SENT].contains(&(place.get(at::STATE) & 0xff)) {
            place.apply_change(at::CHANGE);
        }
        for claim in claims() {
            if place.get(claim) & 0xff == ANSWERED {
                place.apply_change(claim + CLAIM_CHANGE);
            }
        }
        let flags = place.get(at::CLIENT);
        Resumed {
            plain: flags & SERVED != 0 && flags & NUMBERS == 0,
            numbers: place.numbers(),
            waiting: claims().filter_map(|claim| place.waiting(claim)).collect(),
        }
    }

    fn begin(&mut self, client: ClientId, tag: u64, room: &mut [u8]) -> Known {
        let mut place = self.place(client);
        let (state, same) = (place.get(at::STATE), place.get(at::TAG) == tag);
        let waits = |phase| place.claim(phase, Some(tag)).is_some();
        if tag & NUMBERED != 0 && (waits(BEGUN) || waits(ANSWERED)) {
            // The server died before it took the frame of a claim that waits.
            return Known::Sent;
        }
        // A client without numbers may use a tag twice, for another request.
        let phase = if same && tag & NUMBERED != 0 { state & 0xff } else { 0 };
        let attempts = state >> 8 & 0xff;
        match phase {
            ANSWERED => {
                let length = usize::try_from(state >> 32).unwrap_or(0).min(room.len());
                place.bytes(at::REPLY, room.get_mut(..length).unwrap_or_default());
                return Known::Answered(length);
            }
            SENT => return Known::Sent,
            BEGUN if attempts >= MOST_ATTEMPTS => return Known::Deadly,
            BEGUN => place.put(at::STATE, BEGUN | (attempts + 1) << 8),
            _ => {
                place.put(at::STATE, 0);
                place.put(at::CHANGE, 0);
                place.put(at::TAG, tag);
                place.put(at::STATE, BEGUN | 1 << 8);
                let numbers = if tag & NUMBERED != 0 { NUMBERS } else { 0 };
                let flags = place.get(at::CLIENT) | SERVED | numbers;
                place.put(at::CLIENT, flags);
            }
        }
        Known::New
    }

    fn answered(&mut self, client: ClientId, reply: Option<&[u8]>, change: Option<Change>) {
        let mut place = self.place(client);
        let Some(reply) = reply.filter(|reply| reply.len() <= MAX_FRAME) else { return };
        place.put_bytes(at::REPLY, reply);
        place.note_change(at::CHANGE, change);
        let length = u64::try_from(reply.len()).unwrap_or(0);
        place.put(at::STATE, ANSWERED | length << 32);
        place.apply_change(at::CHANGE);
    }

    fn sent(&mut self, client: ClientId) {
        self.place(client).put(at::STATE, SENT);
    }

    fn waits(&mut self, client: ClientId, frame: &[u8]) {
        let mut place = self.place(client);
        // A frame that waits names a device, and is shorter.
        let Some(claim) = place.claim(0, None).filter(|_| frame.len() <= CLAIM - CLAIM_FRAME)
        else {
            return;
        };
        place.put_bytes(claim + CLAIM_FRAME, frame);
        place.put(claim, BEGUN | u64::try_from(frame.len()).unwrap_or(0) << 32);
    }

    fn claimed(&mut self, client: ClientId, reply: &[u8], change: Option<Change>) {
        let mut place = self.place(client);
        let tag = Reply::decode(reply).map_or(0, |(reply, _)| reply.tag);
        let Some(claim) = place.claim(BEGUN, Some(tag)) else { return };
        place.put_bytes(claim + CLAIM_REPLY, reply.get(..HEADER_SIZE).unwrap_or_default());
        place.note_change(claim + CLAIM_CHANGE, change);
        let length = place.get(claim) & !0xff;
        place.put(claim, ANSWERED | length);
        place.apply_change(claim + CLAIM_CHANGE);
    }

    fn claim_sent(&mut self, client: ClientId, tag: u64) {
        let mut place = self.place(client);
        if let Some(claim) = place.claim(ANSWERED, Some(tag)) {
            place.put(claim, 0);
        }
    }

    fn forget(&mut self, client: ClientId) {
        let mut place = self.place(client);
        if place.is_ours() {
            place.put(at::CLIENT, 0);
        }
    }
}

#[cfg(test)]
mod tests;
