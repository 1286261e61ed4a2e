//! Keeps facts for the next server.

mod kept;

use alloc::boxed::Box;

use crate::facts::CellMemory;
use crate::hw::{BufferMemory, Unit};
use crate::server::Server;

pub(super) use kept::Facts;

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Reads the facts that an earlier server left in `memory`, then keeps this server's there. To be called before
    /// the first client is served.
    pub fn keep_facts(&mut self, memory: Box<dyn CellMemory>) {
        self.facts = Facts::after(memory);
    }
}
