//! The scheme's operations through the kernel. A handle is a descriptor of this process.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::time::Duration;

use bitflags::Flags;
use event::{EventFlags, RawEventQueue};
use iommu_protocol::path::WAIT;
use iommu_protocol::status::{Errno, Refusal};
use libredox::call::{self, MmapArgs, mmap};
use libredox::errno::{EINTR, ENODEV, ENOENT, ESRCH};
use libredox::flag::{
    CLOCK_MONOTONIC, MAP_SHARED, O_CLOEXEC, O_DIRECTORY, O_NONBLOCK, O_RDONLY, O_RDWR, PROT_READ,
    PROT_WRITE,
};

use crate::error::{Error, ProtocolError};
use crate::platform::Memory;
use crate::transport::{Handle, OPENING, Transport, WRITING};

const SCHEME: &str = "/scheme/iommu";

/// Metadata of a call on a session, which then expects one buffer, once. The server writes the key for that buffer
/// into the 16 bytes of the payload.
const EXPECT: u64 = 1;

/// Metadata of a call on a buffer: gives it to the session that expects the key in the payload. The result is its
/// slot.
const BRING: u64 = 2;

/// Metadata of a call on a session, or on a claim that waits to become one. The reply comes when the claim is
/// decided: 0, or the code of the refusal.
const AWAIT: u64 = 3;

/// The transport over the scheme.
#[derive(Debug)]
pub struct Scheme(());

impl Scheme {
    /// The transport of a process that has a session's descriptor and may not see the scheme.
    pub(super) const fn unnamed() -> Self {
        Self(())
    }

    /// Checks that the scheme exists.
    ///
    /// # Errors
    /// [`Error::Disconnected`] if it does not exist, `Permission` if this process may not use it.
    pub fn connect() -> Result<Self, Error> {
        close(Self::root()?);
        Ok(Self(()))
    }

    /// Opens the scheme's root directory.
    fn root() -> Result<usize, Error> {
        match Self::open_path("", O_RDONLY | O_DIRECTORY | O_CLOEXEC) {
            Ok(fd) => Ok(fd),
            Err(error) if is_gone(error) || error.errno() == ENOENT => Err(Error::Disconnected),
            Err(error) => Err(refused(error, OPENING)),
        }
    }

    /// Opens a path in the scheme. The C library's `open` takes the same steps, but loses a slot for ever if the
    /// server dies between them (see [`close`]).
    fn open_path(path: &str, flags: i32) -> libredox::error::Result<usize> {
        let scheme = call::openat(call::getns()?, SCHEME, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0)?;
        let opened = call::openat(scheme, path, flags, 0);
        close(scheme);
        opened
    }

    /// Waits until the server has decided whether an opened claim becomes a session.
    fn decided(claim: Handle) -> Result<(), Error> {
        let at = fd(claim)?;
        loop {
            match call::call_rw(at, &mut [0; 8], Flags::empty(), &[AWAIT]) {
                Ok(0) => return Ok(()),
                Ok(code) => {
                    let code = u16::try_from(code).ok().and_then(Refusal::from_code);
                    return Err(code.map_or(ProtocolError::Value.into(), Error::Refused));
                }
                // After a signal the claim still waits. It ends when the server decides.
                Err(error) if error.errno() == EINTR => {}
                Err(error) => return Err(told(at, error, OPENING)),
            }
        }
    }
}

impl Transport for Scheme {
    fn open(&self, at: Option<Handle>, path: &str, write: bool) -> Result<Handle, Error> {
        // Reads of a session do not wait: events serve for that.
        let access = if write { O_RDWR | O_NONBLOCK } else { O_RDONLY };
        let opened = match at {
            Some(at) => {
                let at = fd(at)?;
                call::openat(at, path, access | O_CLOEXEC, 0)
                    .map_err(|error| told(at, error, OPENING))
            }
            None => {
                Self::open_path(path, access | O_CLOEXEC).map_err(|error| {
                    // Either the server is gone, or the device has no record.
                    match is_gone(error) && matches!(Self::connect(), Err(Error::Disconnected)) {
                        true => Error::Disconnected,
                        false => refused(error, OPENING),
                    }
                })
            }
        };
        handle(opened?)
    }

    fn open_within(&self, at: Option<Handle>, path: &str, wait: Duration) -> Result<Handle, Error> {
        // Relative to a descriptor, so that the server sees which process claims. The descriptor stays open as long
        // as the claim waits.
        let root = if at.is_none() { Some(handle(Self::root()?)?) } else { None };
        let wait = wait.as_nanos().div_ceil(1_000_000).min(u32::MAX.into());
        let opened = self.open(at.or(root), &format!("{path}{WAIT}{wait}"), true);
        let decided = opened.and_then(|claim| match Self::decided(claim) {
            Ok(()) => Ok(claim),
            Err(error) => {
                self.close(claim);
                Err(error)
            }
        });
        root.into_iter().for_each(|root| self.close(root));
        decided
    }

    fn close(&self, handle: Handle) {
        if let Ok(fd) = fd(handle) {
            close(fd);
        }
    }

    fn read(&self, handle: Handle, out: &mut [u8]) -> Result<usize, Error> {
        let at = fd(handle)?;
        call::read(at, out).map_err(|error| told(at, error, &[Refusal::NotReady]))
    }

    fn write(&self, handle: Handle, bytes: &[u8]) -> Result<(), Error> {
        let at = fd(handle)?;
        match call::write(at, bytes).map_err(|error| told(at, error, WRITING))? {
            length if length == bytes.len() => Ok(()),
            _ => Err(ProtocolError::Length.into()),
        }
    }

    fn call(&self, handle: Handle, payload: &mut [u8], request: usize) -> Result<usize, Error> {
        // The request's own header states its length.
        let _ = request;
        let at = fd(handle)?;
        call::call_rw(at, payload, Flags::empty(), &[]).map_err(|error| told(at, error, &[]))
    }

    fn names(&self, handle: Handle) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        let mut entries = vec![0; 16 * 1024];
        let mut next = 0;
        loop {
            let length = call::getdents(fd(handle)?, &mut entries, next)
                .map_err(|error| refused(error, &[Refusal::BadOperation]))?;
            let mut rest = entries.get(..length).unwrap_or_default();
            if rest.is_empty() {
                return Ok(names);
            }
            while !rest.is_empty() {
                let (entry, after) = entry(rest).ok_or(ProtocolError::Value)?;
                names.push(entry.1);
                next = entry.0;
                rest = after;
            }
        }
    }

    fn wait_readable(&self, handle: Handle, timeout: Duration) -> Result<bool, Error> {
        let session = fd(handle)?;
        match Wait::open() {
            Ok(wait) => wait.readable(session, timeout),
            // Without a name space there is neither queue nor timer, so the caller polls.
            Err(_) => {
                std::thread::sleep(timeout.min(POLL));
                Ok(!timeout.is_zero())
            }
        }
    }

    fn map(&self, handle: Handle) -> Result<Memory, Error> {
        let fd = fd(handle)?;
        let stat = call::fstat(fd).map_err(io::Error::from)?;
        let length = usize::try_from(stat.st_size).ok().filter(|length| *length > 0);
        Memory::of(fd, 0, length.ok_or(ProtocolError::Memory)?)
    }

    fn process_wide(&self) -> bool {
        true
    }

    fn import(&self, session: Handle, buffer: Handle) -> Result<u32, Error> {
        // One message cannot name two descriptors. So the session gets a secret key, and the buffer presents it.
        bring(buffer, expect(session)?)
    }
}

/// Closes a descriptor. The C library keeps its slot when the scheme is dead, which makes the next program that this
/// process executes fault. A second try tells it that the descriptor is closed.
fn close(fd: usize) {
    if call::close(fd).is_err_and(is_gone) {
        let _ = call::close(fd);
    }
}

/// Makes the server generate a key with which one buffer may be given to a session. A process without a name space
/// has no randomness of its own.
pub(super) fn expect(session: Handle) -> Result<[u8; 16], Error> {
    let mut key = [0; 16];
    tell(session, EXPECT, &mut key)?;
    // A server that generates no key leaves the zeros.
    if key == [0; 16] { Err(ProtocolError::Value.into()) } else { Ok(key) }
}

/// Gives a buffer to the session that expects this key; returns its slot there.
pub(super) fn bring(buffer: Handle, mut key: [u8; 16]) -> Result<u32, Error> {
    u32::try_from(tell(buffer, BRING, &mut key)?).map_err(|_| ProtocolError::Value.into())
}

fn tell(to: Handle, word: u64, key: &mut [u8; 16]) -> Result<usize, Error> {
    let at = fd(to)?;
    call::call_rw(at, key, Flags::empty(), &[word])
        .map_err(|error| told(at, error, &[Refusal::Quota, Refusal::BadHandle]))
}

/// Interval at which a process without events polls.
const POLL: Duration = Duration::from_millis(1);

/// An event queue, and a timer that ends the wait.
struct Wait {
    queue: RawEventQueue,
    timer: File,
}

impl Wait {
    fn open() -> io::Result<Self> {
        let path = format!("/scheme/time/{CLOCK_MONOTONIC}");
        let timer = File::options().read(true).write(true).open(path)?;
        Ok(Self { queue: RawEventQueue::new()?, timer })
    }

    fn readable(mut self, session: usize, timeout: Duration) -> Result<bool, Error> {
        let clock = usize::try_from(self.timer.as_raw_fd()).map_err(|_| ProtocolError::Value)?;
        for fd in [session, clock] {
            self.queue.subscribe(fd, 0, EventFlags::READ).map_err(io::Error::from)?;
        }
        self.timer.write_all(&after(timeout)?)?;
        Ok(self.queue.next_event().map_err(io::Error::from)?.fd == session)
    }
}

/// The bytes that make a timer fire after this time: the kernel's `TimeSpec`, 64 bits of seconds, 32 of nanoseconds,
/// and 32 unused ones.
pub(super) fn after(time: Duration) -> io::Result<[u8; 16]> {
    let now = call::clock_gettime(CLOCK_MONOTONIC)?;
    let now = Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    );
    let end = now.saturating_add(time);
    let seconds = i64::try_from(end.as_secs()).unwrap_or(i64::MAX).unsigned_abs();
    Ok((u128::from(end.subsec_nanos()) << 64 | u128::from(seconds)).to_ne_bytes())
}

/// Splits off the first entry of a directory's bytes. Returns the number of the next entry, the name, and the bytes
/// behind. An entry is 8 bytes inode, 8 bytes next, 2 bytes length of the entry, 1 byte kind, the name, a zero
/// (redox_syscall, `DirentHeader`).
fn entry(bytes: &[u8]) -> Option<((u64, String), &[u8])> {
    let next = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    let length = usize::from(u16::from_le_bytes(bytes.get(16..18)?.try_into().ok()?));
    let (this, after) = bytes.split_at_checked(length)?;
    let name = CStr::from_bytes_until_nul(this.get(19..)?).ok()?.to_str().ok()?;
    Some(((next, name.to_owned()), after))
}

fn fd(handle: Handle) -> Result<usize, Error> {
    usize::try_from(handle.0).map_err(|_| ProtocolError::Value.into())
}

fn handle(fd: usize) -> Result<Handle, Error> {
    u32::try_from(fd).map(Handle).map_err(|_| ProtocolError::Value.into())
}

/// Converts the error of an operation on a descriptor. The error of a server that is gone is also the refusal for a
/// device without a record. If the server is gone, `fstat` on the descriptor fails in the same way.
fn told(at: usize, error: libredox::error::Error, likely: &[Refusal]) -> Error {
    if is_gone(error) && call::fstat(at).is_err_and(is_gone) {
        return Error::Disconnected;
    }
    refused(error, likely)
}

/// Whether this is the error of a scheme whose server is gone.
fn is_gone(error: libredox::error::Error) -> bool {
    [ENODEV, ESRCH].contains(&error.errno())
}

fn refused(error: libredox::error::Error, likely: &[Refusal]) -> Error {
    Error::from_errno(Errno(error.errno()), likely)
}

impl Memory {
    /// Maps `length` bytes of the object behind `fd`, from `offset` on.
    pub(super) fn of(fd: usize, offset: u64, length: usize) -> Result<Self, Error> {
        let (prot, flags) = (PROT_READ | PROT_WRITE, MAP_SHARED);
        let request = MmapArgs { addr: std::ptr::null_mut(), length, prot, flags, fd, offset };
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory that Rust knows.
        let base = unsafe { mmap(request) }.map_err(io::Error::from)?;
        let base = NonNull::new(base.cast()).ok_or(ProtocolError::Memory)?;
        Ok(Self { base, length })
    }
}
