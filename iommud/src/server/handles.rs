//! Open handles. A handle is a capability: the rights of its opener are decided once, at open.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;

use iommu_protocol::Refusal;
use iommu_protocol::path::Path;

use crate::policy::{BufferId, ClientId, GroupId, SessionId, UnitIndex};

/// A handle as the platform names it. The number of a closed handle is not reused before all others were used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

impl Handle {
    /// The highest number of a handle. The platform uses higher ones for things that are no handles.
    pub const LAST: Self = Self(u32::MAX - 256);
}

/// The object of a handle.
#[derive(Clone, Debug)]
pub(super) enum Object {
    /// A directory.
    Directory(Path),
    /// A text as of the time of opening.
    Text(String),
    /// A device, writable.
    Session(SessionId),
    /// A device whose session an administrator ended.
    Ended,
    /// An object that takes administrators' requests.
    Control(Control),
    /// A buffer.
    Buffer {
        /// The buffer.
        buffer: BufferId,
        /// Its length in bytes.
        length: u64,
    },
}

/// The action of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// Brings a failed unit up again.
    Reset(UnitIndex),
    /// Walks configuration space again.
    Rescan,
    /// Ends the sessions on the devices of a group.
    Release(GroupId),
}

#[derive(Clone)]
struct Open {
    client: ClientId,
    object: Object,
    watched: bool,
}

/// Number of session handles that are found without a search.
const RECENT: usize = 128;

/// The place of a recently used session handle.
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
    /// The start of the search for the next number: behind the last one that was given.
    next: Handle,
    limit: u32,
    /// Recently used session handles, each in the place given by its number.
    recent: [Option<(Handle, SessionId)>; RECENT],
}

impl Handles {
    /// Creates a table without handles; each client may open `limit`.
    pub(super) const fn new(limit: u32) -> Self {
        Self {
            open: BTreeMap::new(),
            per_client: BTreeMap::new(),
            of_session: BTreeMap::new(),
            ready: VecDeque::new(),
            next: Handle(0),
            limit,
            recent: [None; RECENT],
        }
    }

    /// Whether `client` may open one more.
    ///
    /// # Errors
    /// `Quota`.
    pub(super) fn admit(&self, client: ClientId) -> Result<(), Refusal> {
        let used = self.per_client.get(&client).copied().unwrap_or(0);
        if used >= self.limit { Err(Refusal::Quota) } else { Ok(()) }
    }

    /// The first number from `self.next` on without an open handle; 0 follows the last. Memory for handles ends long
    /// before their numbers do.
    fn free_number(&self) -> Handle {
        let free = self.first_free(self.next);
        if free <= Handle::LAST { free } else { self.first_free(Handle(0)) }
    }

    /// The first number from `from` on without an open handle; above [`Handle::LAST`] when there is none.
    fn first_free(&self, from: Handle) -> Handle {
        let taken = (from.0..).zip(self.open.range(from..));
        let run = taken.take_while(|(number, (handle, _))| handle.0 == *number).last();
        run.map_or(from, |(number, _)| Handle(number.saturating_add(1)))
    }

    /// Opens a handle. The caller has called [`Handles::admit`].
    pub(super) fn insert(&mut self, client: ClientId, object: Object) -> Handle {
        let handle = self.free_number();
        self.next = Handle(handle.0.saturating_add(1));
        if let Object::Session(session) = object {
            self.of_session.insert(session, handle);
        }
        *self.per_client.entry(client).or_insert(0) += 1;
        self.open.insert(handle, Open { client, object, watched: false });
        handle
    }

    /// Closes a handle and returns its object.
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

    /// Takes the session out of its handle, which stays open and names nothing from now on. Whoever watches it is told.
    /// Returns the handle.
    pub(super) fn end_session(&mut self, session: SessionId) -> Option<Handle> {
        let handle = *self.of_session.get(&session)?;
        self.session_readable(session);
        self.of_session.remove(&session);
        if let Some(place) = self.recent.get_mut(place_of(handle)) {
            *place = None;
        }
        if let Some(open) = self.open.get_mut(&handle) {
            open.object = Object::Ended;
        }
        Some(handle)
    }

    /// Sessions that have a handle.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.of_session.keys().copied()
    }

    /// The object of a handle.
    ///
    /// # Errors
    /// `BadHandle`.
    pub(super) fn object(&self, handle: Handle) -> Result<&Object, Refusal> {
        self.open.get(&handle).map(|open| &open.object).ok_or(Refusal::BadHandle)
    }

    /// The session behind a handle.
    ///
    /// # Errors
    /// `BadHandle`; `BadOperation` when it is open on something else; `NotProbed` when its session was ended.
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
            Object::Ended => Err(Refusal::NotProbed),
            _ => Err(Refusal::BadOperation),
        }
    }

    /// Sets whether the handle is announced when it becomes readable.
    pub(super) fn watch(&mut self, handle: Handle, on: bool) {
        if let Some(open) = self.open.get_mut(&handle) {
            open.watched = on;
        }
    }

    /// Announces the handle of a session that has something to read, if it is watched.
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

    /// Number of open handles.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// All open handles, in the order of their numbers.
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

    /// The first number follows the last. Numbers of open handles are skipped, and that of a closed one is reused
    /// only after all others were given.
    #[test]
    fn numbers_begin_anew_after_the_last() {
        let client = ClientId(0);
        let mut handles = Handles::new(100);
        let open = |handles: &mut Handles| {
            handles.admit(client)?;
            Ok::<u32, Refusal>(handles.insert(client, Object::Session(SessionId(0))).0)
        };
        let old: Vec<u32> = (0..6).map(|_| open(&mut handles).unwrap()).collect();
        assert_eq!(old, [0, 1, 2, 3, 4, 5]);
        assert!([1, 4].map(|number| handles.remove(Handle(number))).iter().all(Option::is_some));
        // As after almost 2^32 opens.
        let last = Handle::LAST.0;
        handles.next = Handle(last - 1);
        let new: Vec<u32> = (0..5).map(|_| open(&mut handles).unwrap()).collect();
        assert_eq!(new, [last - 1, last, 1, 4, 6]);
        assert!(handles.remove(Handle(4)).is_some());
        assert_eq!(
            (open(&mut handles), handles.object(Handle(4)).err()),
            (Ok(7), Some(Refusal::BadHandle))
        );
        // The last one stays open: the next search ends behind it.
        handles.next = Handle(last);
        assert_eq!(open(&mut handles), Ok(4));
        assert_eq!(handles.count(), 10);
    }

    /// A handle with a reused number is found as the new object.
    #[test]
    fn a_number_that_is_used_again_names_the_new_session() {
        let mut handles = Handles::new(8);
        let handle = handles.insert(ClientId(0), Object::Session(SessionId(3)));
        handles.watch(handle, true);
        handles.session_readable(SessionId(3));
        assert_eq!(handles.session(handle), Ok(SessionId(3)));
        handles.remove(handle);
        handles.next = handle;
        assert_eq!(handles.insert(ClientId(1), Object::Session(SessionId(4))), handle);
        assert_eq!(handles.session(handle), Ok(SessionId(4)));
        handles.session_readable(SessionId(4));
        assert_eq!(handles.next_ready(), None, "nobody watches the new one");
    }

    /// Handles whose numbers lie 128 apart have the same place among the recent ones.
    #[test]
    fn a_handle_in_the_place_of_another_is_not_taken_for_it() {
        let mut handles = Handles::new(1000);
        let session = Object::Session;
        let opened: Vec<Handle> =
            (0..300).map(|id| handles.insert(ClientId(0), session(SessionId(id)))).collect();
        for round in 0..2 {
            for (handle, id) in opened.iter().zip(0..) {
                assert_eq!(handles.session(*handle), Ok(SessionId(id)), "round {round}");
            }
        }
        let text = handles.insert(ClientId(0), Object::Text(String::new()));
        assert_eq!(handles.session(text), Err(Refusal::BadOperation));
        assert_eq!(handles.session(Handle(text.0 + 1)), Err(Refusal::BadHandle));
        // 128 handles in a row do not displace each other.
        let last: Vec<_> = opened[172..].iter().zip(172..).collect();
        let known = |(handle, id): &(&Handle, u32)| {
            handles.recent.contains(&Some((**handle, SessionId(*id))))
        };
        assert_eq!(last.iter().filter(|at| known(at)).count(), 128);
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
