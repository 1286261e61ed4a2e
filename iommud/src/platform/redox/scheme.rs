//! The scheme's operations, as the kernel asks for them, carried out by the [`Server`].

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

/// The scheme's own number of its root directory, which no handle has.
pub const ROOT: usize = iommu_protocol::frame::ROOT as usize;

/// The number of the server's memory as a whole, which its keeper alone has a descriptor of.
pub const MEMORY: usize = ROOT - 1;

const _: () = assert!(MEMORY > Handle::LAST.0 as usize);

/// Metadata of a call on [`MEMORY`]: everything is mapped.
pub const HELD: u64 = 1;

/// Metadata of a call on [`MEMORY`]: may the memory of servers before this one go? The result is 1 or 0.
pub const GIVE_UP: u64 = 2;

/// Metadata of a call on a session: a buffer may be brought, once, with the key that is put into the payload, which has
/// 16 bytes.
pub const EXPECT: u64 = 1;

/// Metadata of a call on a buffer: gives it to the session that expects the 16 bytes of the payload. The result is
/// its slot there.
pub const BRING: u64 = 2;

/// Metadata of a call on a session, or on a claim that waits to become one: it is answered when that is decided. The
/// result is 0 when there is a session, or the code of the refusal.
pub const AWAIT: u64 = 3;

/// Set in the number of clients that are sessions; clear in those that are processes.
const SESSION_CLIENT: u32 = 1 << 31;

const MODE_TYPE: u32 = 0o170_000;
const MODE_DIRECTORY: u32 = 0o040_000;

/// Where a buffer lies in this process: what is answered to a request to map it. The kernel gives the
/// client the same frames, and keeps the buffer's handle open as long as they are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Virtual address of the first byte, a multiple of the page size.
    pub address: usize,
}

/// The scheme `iommu`.
///
/// Who asks is looked at when a device is opened and never again: on Redox later requests do not carry a
/// user id to be relied on. Paths reach the scheme through the name space's server, so the process id of an
/// absolute open is 0; every session therefore counts as a client of its own.
pub struct IommuScheme<U: Unit, B: BufferMemory> {
    server: Server<U, B>,
    /// The client of each session, which whatever is opened below counts against too.
    clients: BTreeMap<Handle, ClientId>,
    /// The last number that a session got as a client.
    last_client: u32,
    /// What sessions expect buffers to be brought with.
    expected: BTreeMap<[u8; 16], Handle>,
    /// Where those come from; without, no session expects anything.
    keys: Option<Keys>,
    /// Claims that waited for their unit, or do.
    claims: Claims,
    /// Memory of servers before this one, if it may ever go.
    left: Option<Vec<PhysRange>>,
}

impl<U: Unit, B: BufferMemory<Share = Window>> IommuScheme<U, B> {
    /// The scheme over a server that has been started.
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

    /// The scheme after other servers, whose memory units may have used until they were told of this one's. That memory
    /// is never given up unless `all_known`: a unit that the firmware's table does not tell of may still use it.
    #[must_use]
    pub fn after(self, left: Vec<PhysRange>, all_known: bool) -> Self {
        Self { left: all_known.then_some(left), ..self }
    }

    /// The scheme with keys to bring buffers with, made from a seed that nobody can guess.
    #[must_use]
    pub fn with_keys(self, seed: Option<[u8; 32]>) -> Self {
        Self { keys: seed.map(Keys::new), ..self }
    }

    /// The scheme with a clock: claims may wait.
    #[must_use]
    pub fn with_clock(mut self, clock: impl FnMut() -> Nanos + 'static) -> Self {
        self.claims.set_clock(Box::new(clock));
        self
    }

    /// The next watched descriptor that became readable.
    pub fn next_ready(&mut self) -> Option<usize> {
        let handle = self.server.next_ready()?;
        self.claims.number(handle).or_else(|| usize::try_from(handle.0).ok())
    }

    /// Makes up a key for a session, whose last one names nothing from then on. It is the server that makes it up: no
    /// client can choose one that another session has, and a driver without a name space has no source of its own.
    fn expect(&mut self, session: Handle, payload: &mut [u8]) -> Result<usize> {
        let place: &mut [u8; 16] = payload.try_into().map_err(|_| Error::new(EINVAL))?;
        let key = self.keys.as_mut().ok_or(Error::new(ENOSYS))?.make();
        self.expected.retain(|_, other| *other != session);
        self.expected.insert(key, session);
        *place = key;
        Ok(0)
    }

    /// Lets the memory of servers before this one go, if every unit uses this one's.
    fn give_up(&mut self) -> usize {
        if !self.server.all_units_enabled() {
            return 0;
        }
        let Some(left) = &self.left else { return 0 };
        // What policy could not map yet is kept, and the keeper asks again.
        if left.iter().filter(|range| !self.server.memory_returned(**range)).count() > 0 {
            return 0;
        }
        self.left = None;
        1
    }

    /// A request of the platform itself: its word is the first of the metadata.
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

    /// Opens for writing claim a device, or are for an administrator's request ([`Server::write`]); all other opens are
    /// of texts, directories and buffers.
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

    /// A descriptor of a session is all that a driver needs: what lies below it is opened by `dup`.
    fn dup(&mut self, id: usize, path: &[u8], caller: &CallerCtx) -> Result<OpenResult> {
        let session = self.handle(id)?;
        if !self.clients.contains_key(&session) {
            return Err(Error::new(EBADF));
        }
        let path = str::from_utf8(path).map_err(|_| Error::new(EINVAL))?;
        let member = path.trim_matches('/').starts_with("devices/");
        self.open(id, path, member, caller).map(result)
    }

    /// `EAGAIN` when there is no fault record to read: an event tells of the next one.
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

    /// An administrator's request: `reset` to a unit, anything to `rescan`.
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

    /// A request of the protocol in `payload`, which the reply replaces.
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

    /// Only shared mappings without execution. A private one would make the kernel copy a frame at the next
    /// store of either side, behind the back of the device.
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

    /// The kernel has taken the frames out of the client; the handle's close does the rest.
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

    /// The last descriptor is gone, in whatever way: the end of the process looks the same.
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
