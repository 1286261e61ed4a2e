//! Which process a client is, where the platform knows it.

use alloc::collections::BTreeMap;

use crate::policy::ClientId;

/// The processes of clients.
#[derive(Clone, Debug, Default)]
pub(super) struct Processes(BTreeMap<ClientId, u32>);

impl Processes {
    /// Notes a client's process.
    pub(super) fn set(&mut self, client: ClientId, process: u32) {
        self.0.insert(client, process);
    }

    /// Forgets a client that is gone.
    pub(super) fn forget(&mut self, client: ClientId) {
        self.0.remove(&client);
    }

    /// The process of a client.
    pub(super) fn of(&self, client: ClientId) -> Option<u32> {
        self.0.get(&client).copied()
    }
}
