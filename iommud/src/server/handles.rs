//! Open handles. A handle is the capability: what its opener was allowed is decided once, at open.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;

use iommu_protocol::Refusal;
use iommu_protocol::path::Path;

use crate::policy::{BufferId, ClientId, SessionId, UnitIndex};

/// A handle as the platform names it; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

/// What a handle is open on.
#[derive(Clone, Debug)]
pub(super) enum Object {
    /// A directory.
    Directory(Path),
    /// A text as it was when opened.
    Text(String),
    /// A device, writable.
    Session(SessionId),
    /// Takes an administrator's request.
    Control(Control),
    /// A buffer.
    Buffer {
        /// Which.
        buffer: BufferId,
        /// Its length in bytes.
        length: u64,
    },
}

/// What is done when something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// A unit that failed is brought up again.
    Reset(UnitIndex),
    /// Configuration space is walked again.
    Rescan,
}

#[derive(Clone)]
struct Open {
    client: ClientId,
    object: Object,
    watched: bool,
}

/// How many session handles are found without a search.
const RECENT: usize = 128;

/// Where a session handle that was asked for lately is kept.
const fn place_of(handle: Handle) -> usize {
    handle.0 as usize % RECENT
}

/// All open handles.
#[derive(Clone)]
pub(super) struct Handles {
    open: BTreeMap<Handle, Open>,
    per_client: BTreeMap<ClientId, u32>,
    of_session: BTreeMap<SessionId, Handle>,
    ready: VecDeque<Handle>,
    next: u32,
    limit: u32,
    /// Session handles that were asked for lately, each in the place that its number says.
    recent: [Option<(Handle, SessionId)>; RECENT],
}

impl Handles {
    /// No handles; each client may open `limit`.
    pub(super) const fn new(limit: u32) -> Self {
        Self {
            open: BTreeMap::new(),
            per_client: BTreeMap::new(),
            of_session: BTreeMap::new(),
            ready: VecDeque::new(),
            next: 0,
            limit,
            recent: [None; RECENT],
        }
    }

    /// Whether `client` may open one more, and there is a number for it.
    ///
    /// # Errors
    /// `Quota`.
    pub(super) fn admit(&self, client: ClientId) -> Result<(), Refusal> {
        let used = self.per_client.get(&client).copied().unwrap_or(0);
        if used >= self.limit || self.next == u32::MAX { Err(Refusal::Quota) } else { Ok(()) }
    }

    /// Opens a handle. The caller has asked [`Handles::admit`].
    pub(super) fn insert(&mut self, client: ClientId, object: Object) -> Handle {
        let handle = Handle(self.next);
        self.next = self.next.saturating_add(1);
        if let Object::Session(session) = object {
            self.of_session.insert(session, handle);
        }
        *self.per_client.entry(client).or_insert(0) += 1;
        self.open.insert(handle, Open { client, object, watched: false });
        handle
    }

    /// Closes a handle and says what it was open on.
    pub(super) fn remove(&mut self, handle: Handle) -> Option<Object> {
        if let Some(place) = self.recent.get_mut(place_of(handle)) {
            *place = None;
        }
        let open = self.open.remove(&handle)?;
        if let Object::Session(session) = open.object {
            self.of_session.remove(&session);
        }
        if let Some(count) = self.per_client.get_mut(&open.client) {
            *count -= 1;
            if *count == 0 {
                self.per_client.remove(&open.client);
            }
        }
        self.ready.retain(|ready| *ready != handle);
        Some(open.object)
    }

    /// What a handle is open on.
    ///
    /// # Errors
    /// `BadHandle`.
    pub(super) fn object(&self, handle: Handle) -> Result<&Object, Refusal> {
        self.open.get(&handle).map(|open| &open.object).ok_or(Refusal::BadHandle)
    }

    /// The session behind a handle.
    ///
    /// # Errors
    /// `BadHandle`; `BadOperation` when it is open on something else.
    #[inline]
    pub(super) fn session(&mut self, handle: Handle) -> Result<SessionId, Refusal> {
        match self.recent.get(place_of(handle)) {
            Some(Some((known, session))) if *known == handle => Ok(*session),
            _ => self.find_session(handle),
        }
    }

    #[inline(never)]
    fn find_session(&mut self, handle: Handle) -> Result<SessionId, Refusal> {
        match *self.object(handle)? {
            Object::Session(session) => {
                if let Some(place) = self.recent.get_mut(place_of(handle)) {
                    *place = Some((handle, session));
                }
                Ok(session)
            }
            _ => Err(Refusal::BadOperation),
        }
    }

    /// Announces from now on when the handle becomes readable.
    pub(super) fn watch(&mut self, handle: Handle, on: bool) {
        if let Some(open) = self.open.get_mut(&handle) {
            open.watched = on;
        }
    }

    /// The session has something to read.
    pub(super) fn session_readable(&mut self, session: SessionId) {
        let Some(&handle) = self.of_session.get(&session) else { return };
        let watched = self.open.get(&handle).is_some_and(|open| open.watched);
        if watched && !self.ready.contains(&handle) {
            self.ready.push_back(handle);
        }
    }

    /// The next watched handle that became readable.
    pub(super) fn next_ready(&mut self) -> Option<Handle> {
        self.ready.pop_front()
    }

    /// Open handles.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// All open handles, in the order they were opened.
    pub(super) fn all(&self) -> alloc::vec::Vec<Handle> {
        self.open.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_handle_names_nothing_and_gives_its_place_back() {
        let mut handles = Handles::new(1);
        let client = ClientId(7);
        let first = handles.insert(client, Object::Directory(Path::Root));
        assert_eq!(handles.admit(client), Err(Refusal::Quota));
        assert_eq!(handles.admit(ClientId(8)), Ok(()));
        assert!(handles.remove(first).is_some());
        assert!(handles.remove(first).is_none());
        assert_eq!(handles.admit(client), Ok(()));
        assert_ne!(handles.insert(client, Object::Directory(Path::Root)), first);
    }

    #[test]
    fn readiness_is_told_once_and_only_of_watched_sessions() {
        let mut handles = Handles::new(8);
        let handle = handles.insert(ClientId(0), Object::Session(SessionId(3)));
        handles.session_readable(SessionId(3));
        assert_eq!(handles.next_ready(), None);
        handles.watch(handle, true);
        handles.session_readable(SessionId(3));
        handles.session_readable(SessionId(3));
        assert_eq!(handles.next_ready(), Some(handle));
        assert_eq!(handles.next_ready(), None);
        handles.session_readable(SessionId(3));
        handles.remove(handle);
        assert_eq!(handles.next_ready(), None);
    }
}
