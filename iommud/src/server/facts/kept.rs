//! The store of facts of this server, and what an earlier one left in it.

use alloc::boxed::Box;
use core::fmt::{self, Write};

use crate::facts::{CellMemory, Left, LostSession, Store, Unreadable, read};
use crate::policy::{Plan, Registry};

/// Facts for the next server, and those of the one before.
#[derive(Debug, Default)]
pub(in crate::server) struct Facts {
    store: Option<Store>,
    left: Option<Result<Left, Unreadable>>,
}

/// A checkpoint keeps no facts: a store has one writer.
impl Clone for Facts {
    fn clone(&self) -> Self {
        Self { store: None, left: self.left.clone() }
    }
}

impl Facts {
    /// Reads the facts that an earlier server left in `memory`, and begins a new store there.
    pub(in crate::server) fn after(memory: Box<dyn CellMemory>) -> Self {
        let left = read(&*memory);
        match &left {
            Ok(None) => {}
            Ok(Some(Left { sessions, .. })) => {
                for session in sessions {
                    log::warn!("lost by restart: {}", Words(session));
                }
            }
            Err(error) => log::warn!("facts of the server before cannot be read: {error}"),
        }
        Self { store: Store::begin(memory), left: left.transpose() }
    }

    /// Commits the facts of a plan that was carried out.
    #[inline]
    pub(in crate::server) fn record<T>(&mut self, registry: &mut Registry, plan: &Plan<T>) {
        if let Some(store) = &mut self.store {
            store.record(registry, plan.changes());
        }
    }

    /// Commits, cells in use, and facts for which there was no room.
    pub(in crate::server) fn counts(&self) -> [u64; 3] {
        let of = |store: &Store| [store.commits(), store.kept(), store.missed()];
        self.store.as_ref().map(of).unwrap_or_default()
    }

    /// The lines about what ended with the server before.
    pub(in crate::server) fn lines(&self, out: &mut dyn Write) -> fmt::Result {
        match &self.left {
            None => Ok(()),
            Some(Err(error)) => writeln!(out, "lost by restart: not known: {error}"),
            Some(Ok(Left { missed, sessions, .. })) => {
                for session in sessions {
                    writeln!(out, "lost by restart: {}", Words(session))?;
                }
                if *missed > 0 {
                    writeln!(out, "lost by restart: more than that: {missed} facts had no room")?;
                }
                Ok(())
            }
        }
    }
}

/// A session that was lost, in words.
struct Words<'a>(&'a LostSession);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LostSession { device, attached, buffers, buffer_bytes, mappings, mapped_bytes, .. } =
            self.0;
        let attached = if *attached { "attached" } else { "not attached" };
        write!(
            f,
            "{device}: {attached}, {buffers} buffers of {buffer_bytes} bytes, \
             {mappings} mappings of {mapped_bytes} bytes"
        )
    }
}
