//! Implements the scheme's operations, which the kernel requests, by calls of the [`Server`].

use std::collections::BTreeMap;

use iommu_protocol::Refusal;
use iommu_protocol::frame::READABLE;
use redox_scheme::scheme::SchemeSync;
use redox_scheme::{CallerCtx, OpenResult};
use syscall::dirent::{DirEntry, DirentBuf, DirentKind};
use syscall::error::{EACCES, EBADF, EINVAL, ENOSYS, ENOTDIR, Error, Result};
use syscall::flag::{EventFlags, MapFlags, MunmapFlags, O_DIRECTORY, O_WRONLY};
use syscall::schemev2::NewFdFlags;

use crate::addr::{PAGE_SIZE, PhysRange};
use crate::hw::{BufferMemory, Nanos, Unit};
use crate::policy::ClientId;
use crate::server::{Handle, Server};

use super::claims::Claims;
use super::keys::Keys;

mod opening;

/// The number of the scheme's root directory. No handle has it.
pub const ROOT: usize = iommu_protocol::frame::ROOT as usize;

/// The number of the server's memory as a whole. Only its keeper has a descriptor of it.
pub const MEMORY: usize = ROOT - 1;

const _: () = assert!(MEMORY > Handle::LAST.0 as usize);

/// Metadata of a call on [`MEMORY`]: the keeper reports that everything is mapped.
pub const HELD: u64 = 1;

/// Metadata of a call on [`MEMORY`]: asks whether the memory of earlier servers may be freed. The result is 1 (yes)
/// or 0 (no).
pub const GIVE_UP: u64 = 2;

/// Metadata of a call on a session: makes the session expect one buffer. The server writes the key for it into the
/// payload, which has 16 bytes.
pub const EXPECT: u64 = 1;

/// Metadata of a call on a buffer: shares it with the session that expects the key in the payload, which has 16
/// bytes. The result is the buffer's slot in that session.
pub const BRING: u64 = 2;

/// Metadata of a call on a session, or on a claim that waits to become one. The answer comes when the claim is
/// decided. The result is 0 when there is a session, otherwise the code of the refusal.
pub const AWAIT: u64 = 3;

/// A bit that is set in the numbers of clients that are sessions, and clear in those of processes.
const SESSION_CLIENT: u32 = 1 << 31;

const MODE_TYPE: u32 = 0o170_000;
const MODE_DIRECTORY: u32 = 0o040_000;

/// The address of a buffer in this process: the answer to a request to map the buffer. The kernel maps the same
/// frames into the client. It keeps the buffer's handle open as long as they are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Virtual address of the first byte, a multiple of the page size.
    pub address: usize,
}

/// The scheme `iommu`.
///
/// The scheme checks the caller's user id when a device is opened, and never again: on Redox later requests carry no
/// reliable user id. Paths reach the scheme through the name space's server, so the process id of an absolute open is
/// 0. So every session counts as a client of its own.
pub struct IommuScheme<U: Unit, B: BufferMemory> {
    server: Server<U, B>,
    /// The client of each session. Everything opened below a session counts as that client's, too.
    clients: BTreeMap<Handle, ClientId>,
    /// The client number that the last session got.
    last_client: u32,
    /// The keys of expected buffers, each with the session that expects it.
    expected: BTreeMap<[u8; 16], Handle>,
    /// The source of the keys. Without it, no session can expect a buffer.
    keys: Option<Keys>,
    /// Claims that wait for their unit, or waited for it.
    claims: Claims,
    /// Memory of earlier servers that may still be freed. `None` when it may never be, or was given up already.
    left: Option<Vec<PhysRange>>,
}

impl<U: Unit, B: BufferMemory<Share = Window>> IommuScheme<U, B> {
    /// A scheme over a started server.
    #[must_use]
    pub const fn new(server: Server<U, B>) -> Self {
        Self {
            server,
            clients: BTreeMap::new(),
            last_client: u32::MAX,
            expected: BTreeMap::new(),
            keys: None,
            claims: Claims::new(),
            left: None,
        }
    }

    /// Adds the memory of earlier servers, which units may have used until they switched to the tables of this one.
    /// That memory is never given up unless `all_known`. Otherwise a unit that the firmware's table does not describe
    /// may still use it.
    #[must_use]
    pub fn after(self, left: Vec<PhysRange>, all_known: bool) -> Self {
        Self { left: all_known.then_some(left), ..self }
    }

    /// Adds the source of keys for shared buffers. `seed` must be unpredictable. Without a seed there are no keys.
    #[must_use]
    pub fn with_keys(self, seed: Option<[u8; 32]>) -> Self {
        Self { keys: seed.map(Keys::new), ..self }
    }

    /// Adds a clock that never goes back, so that claims can wait.
    #[must_use]
    pub fn with_clock(mut self, clock: impl FnMut() -> Nanos + 'static) -> Self {
        self.claims.set_clock(Box::new(clock));
        self
    }

    /// Returns the number of the next watched descriptor that became readable.
    pub fn next_ready(&mut self) -> Option<usize> {
        let handle = self.server.next_ready()?;
        self.claims.number(handle).or_else(|| usize::try_from(handle.0).ok())
    }

    /// Makes a new key for a session, and revokes the session's previous key. The server makes the key for two
    /// reasons. No client can choose a key that another session has, and a driver without a name space has no source
    /// of randomness.
    fn expect(&mut self, session: Handle, payload: &mut [u8]) -> Result<usize> {
        let place: &mut [u8; 16] = payload.try_into().map_err(|_| Error::new(EINVAL))?;
        let key = self.keys.as_mut().ok_or(Error::new(ENOSYS))?.make();
        self.expected.retain(|_, other| *other != session);
        self.expected.insert(key, session);
        *place = key;
        Ok(0)
    }

    /// Gives the memory of earlier servers up, if every unit uses the tables of this one. Returns 1 if it does, else
    /// 0.
    fn give_up(&mut self) -> usize {
        if !self.server.all_units_enabled() {
            return 0;
        }
        let Some(left) = &self.left else { return 0 };
        // A range that policy could not map yet stays held, and the keeper asks again later.
        if left.iter().filter(|range| !self.server.memory_returned(**range)).count() > 0 {
            return 0;
        }
        self.left = None;
        1
    }

    /// Runs a request of the platform itself. `word` is the first word of the metadata.
    fn told(&mut self, id: usize, word: u64, payload: &mut [u8]) -> Result<usize> {
        if id == MEMORY {
            return if word == GIVE_UP { Ok(self.give_up()) } else { Err(Error::new(EINVAL)) };
        }
        if word == AWAIT {
            let session = handle(id).is_ok_and(|handle| self.clients.contains_key(&handle));
            return if session { Ok(0) } else { self.claims.ask(id) };
        }
        let at = self.handle(id)?;
        match word {
            EXPECT if self.clients.contains_key(&at) => self.expect(at, payload),
            BRING => {
                let key: [u8; 16] = (&*payload).try_into().map_err(|_| Error::new(EINVAL))?;
                let session = self.expected.remove(&key).ok_or(Error::new(EBADF))?;
                let slot = self.server.bring(session, at).map_err(refused)?;
                usize::try_from(slot).map_err(|_| Error::new(EINVAL))
            }
            _ => Err(Error::new(EINVAL)),
        }
    }

    /// The server.
    pub const fn server_mut(&mut self) -> &mut Server<U, B> {
        &mut self.server
    }

    /// The handle behind a descriptor's number.
    fn handle(&self, id: usize) -> Result<Handle> {
        self.claims.session(id).map_or_else(|| handle(id), Ok)
    }

    fn is_directory(&mut self, number: usize) -> Result<bool> {
        let Ok(handle) = self.handle(number) else { return Ok(false) };
        let mode = self.server.stat(handle).map_err(refused)?.mode;
        Ok(mode & MODE_TYPE == MODE_DIRECTORY)
    }

    fn close(&mut self, handle: Handle) {
        if let Some(client) = self.clients.remove(&handle)
            && !self.clients.values().any(|other| *other == client)
        {
            self.server.forget_process(client);
        }
        self.expected.retain(|_, session| *session != handle);
        self.server.close(handle);
    }
}

impl<U: Unit, B: BufferMemory<Share = Window>> SchemeSync for IommuScheme<U, B> {
    fn scheme_root(&mut self) -> Result<usize> {
        Ok(ROOT)
    }

    /// Opening for writing claims a device, or serves an administrator's request ([`Server::write`]). All other opens
    /// are of texts, directories and buffers.
    fn openat(
        &mut self,
        at: usize,
        path: &str,
        flags: usize,
        _fcntl_flags: u32,
        caller: &CallerCtx,
    ) -> Result<OpenResult> {
        let opened = self.open(at, path, flags & O_WRONLY != 0, caller)?;
        if flags & O_DIRECTORY != 0 && !self.is_directory(opened)? {
            self.on_close(opened);
            return Err(Error::new(ENOTDIR));
        }
        Ok(result(opened))
    }

    /// Opens a path below a session. So a driver needs no descriptor other than that of its session.
    fn dup(&mut self, id: usize, path: &[u8], caller: &CallerCtx) -> Result<OpenResult> {
        let session = self.handle(id)?;
        if !self.clients.contains_key(&session) {
            return Err(Error::new(EBADF));
        }
        let path = str::from_utf8(path).map_err(|_| Error::new(EINVAL))?;
        let member = path.trim_matches('/').starts_with("devices/");
        self.open(id, path, member, caller).map(result)
    }

    /// Reads a handle. `EAGAIN` when there is no fault record: an event announces the next one.
    fn read(
        &mut self,
        id: usize,
        out: &mut [u8],
        offset: u64,
        _fcntl_flags: u32,
        _caller: &CallerCtx,
    ) -> Result<usize> {
        self.server.read(self.handle(id)?, offset, out).map_err(refused)
    }

    /// Runs an administrator's request: `reset` on a unit, any bytes on `rescan`.
    fn write(
        &mut self,
        id: usize,
        bytes: &[u8],
        _offset: u64,
        _fcntl_flags: u32,
        _caller: &CallerCtx,
    ) -> Result<usize> {
        self.server.write(self.handle(id)?, bytes).map_err(refused)
    }

    fn fstat(&mut self, id: usize, stat: &mut syscall::Stat, _caller: &CallerCtx) -> Result<()> {
        if id == ROOT {
            stat.st_mode = syscall::flag::MODE_DIR | 0o500;
            return Ok(());
        }
        let found = self.server.stat(self.handle(id)?).map_err(refused)?;
        stat.st_mode = u16::try_from(found.mode).map_err(|_| Error::new(EBADF))?;
        stat.st_nlink = 1;
        stat.st_size = found.size;
        stat.st_blksize = u32::try_from(PAGE_SIZE).unwrap_or(0);
        Ok(())
    }

    fn getdents<'buf>(
        &mut self,
        id: usize,
        mut entries: DirentBuf<&'buf mut [u8]>,
        first: u64,
    ) -> Result<DirentBuf<&'buf mut [u8]>> {
        let first = usize::try_from(first).map_err(|_| Error::new(EINVAL))?;
        let mut next = u64::try_from(first).map_err(|_| Error::new(EINVAL))?;
        let mut written = Ok(());
        let mut sink = |name: &str| {
            next += 1;
            let kind = DirentKind::Unspecified;
            let put = entries.entry(DirEntry { inode: 0, next_opaque_id: next, name, kind });
            if put.is_err() && next == u64::try_from(first).unwrap_or(0) + 1 {
                written = put;
            }
            put.is_ok()
        };
        self.server.names(self.handle(id)?, first, &mut sink).map_err(|refusal| match refusal {
            Refusal::BadOperation => Error::new(ENOTDIR),
            other => refused(other),
        })?;
        written.map(|()| entries)
    }

    fn fevent(&mut self, id: usize, flags: EventFlags, _caller: &CallerCtx) -> Result<EventFlags> {
        let bits = if flags.contains(EventFlags::EVENT_READ) { READABLE } else { 0 };
        let now = self.server.watch(self.handle(id)?, bits).map_err(refused)?;
        Ok(if now & READABLE != 0 { EventFlags::EVENT_READ } else { EventFlags::empty() })
    }

    /// Runs the protocol request in `payload`. The reply replaces it.
    fn call(
        &mut self,
        id: usize,
        payload: &mut [u8],
        metadata: &[u64],
        _caller: &CallerCtx,
    ) -> Result<usize> {
        match metadata.first() {
            None | Some(0) => {}
            Some(word) => return self.told(id, *word, payload),
        }
        let length = payload.len();
        self.server.call(self.handle(id)?, payload, length).map_err(refused)
    }

    /// Accepts only shared mappings without execution. With a private mapping, the kernel would copy a frame at the
    /// next store of either side, and the device would not see the copy.
    fn mmap_prep(
        &mut self,
        id: usize,
        offset: u64,
        size: usize,
        flags: MapFlags,
        _caller: &CallerCtx,
    ) -> Result<usize> {
        if !flags.contains(MapFlags::MAP_SHARED) {
            return Err(Error::new(EINVAL));
        }
        if flags.contains(MapFlags::PROT_EXEC) {
            return Err(Error::new(EACCES));
        }
        let (window, length) = self.server.share(self.handle(id)?).map_err(refused)?;
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        let end = offset.checked_add(size).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
        if size == 0 || end.is_none_or(|end| end > length) || !offset.is_multiple_of(PAGE_SIZE) {
            return Err(refused(Refusal::Range));
        }
        let offset = usize::try_from(offset).map_err(|_| refused(Refusal::Range))?;
        window.address.checked_add(offset).ok_or(refused(Refusal::Range))
    }

    /// Does nothing but check the number. The kernel has already unmapped the frames from the client, and closing the
    /// handle does the rest.
    fn munmap(
        &mut self,
        id: usize,
        _offset: u64,
        _size: usize,
        _flags: MunmapFlags,
        _caller: &CallerCtx,
    ) -> Result<()> {
        if id == MEMORY { Ok(()) } else { self.handle(id).map(|_| ()) }
    }

    /// Closes a handle whose last descriptor is closed. The death of a process is not distinguished from a close.
    fn on_close(&mut self, id: usize) {
        if id == MEMORY {
            log::error!("the keeper is gone: nobody holds this server's memory when it dies");
        }
        match self.claims.remove(id) {
            Some(Ok(session)) => self.close(session),
            Some(Err(ticket)) => self.server.forget_claims(&[ticket]),
            None => {
                if let Ok(handle) = handle(id) {
                    self.close(handle);
                }
            }
        }
    }
}

fn handle(id: usize) -> Result<Handle> {
    match u32::try_from(id) {
        Ok(number) if id != MEMORY && number != iommu_protocol::frame::ROOT => Ok(Handle(number)),
        _ => Err(Error::new(EBADF)),
    }
}

fn result(number: usize) -> OpenResult {
    OpenResult::ThisScheme { number, flags: NewFdFlags::POSITIONED }
}

fn refused(refusal: Refusal) -> Error {
    Error::new(refusal.errno().0)
}

#[cfg(test)]
mod tests;
