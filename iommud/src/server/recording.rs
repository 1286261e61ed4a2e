//! What the server records besides requests and events: facts, and the ring for its platform.

use iommu_protocol::Refusal;

use crate::hw::{BufferMemory, Unit};
use crate::policy::{SessionId, UnitIndex};
use crate::server::Server;
use crate::trace::{Fact, Ring};

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// The records of the latest events, if they are recorded. The platform takes them when half of the ring is full.
    pub const fn trace(&mut self) -> Option<&mut Ring> {
        self.trace.ring()
    }

    /// Adds a unit to the engine.
    pub(super) fn install(&mut self, unit: UnitIndex, hardware: U) {
        self.engine.install(unit, hardware);
        self.record_installed(unit);
    }

    /// Records a unit that the engine has, if it has it.
    pub(super) fn record_installed(&mut self, unit: UnitIndex) {
        if let Some(capabilities) = self.engine.capabilities(unit) {
            self.trace.fact(&Fact::Installed(unit, capabilities));
        }
    }

    /// No plan uses the unit from now on.
    pub(super) fn lose(&mut self, unit: UnitIndex) {
        self.trace.fact(&Fact::Lost(unit));
        self.registry.lose(unit);
    }

    /// Records that a buffer was refused before memory for it was looked for; returns the refusal.
    #[cold]
    pub(super) fn not_admitted(
        &mut self,
        session: SessionId,
        length: u64,
        refusal: Refusal,
    ) -> Refusal {
        self.trace.fact(&Fact::NotAdmitted(session, length, refusal));
        refusal
    }

    /// Takes over the size of the memory for buffers. True when it has changed.
    pub(super) fn set_buffer_pool(&mut self) -> bool {
        let pool = self.buffers.pool();
        let changed = self.registry.set_buffer_pool(pool.capacity, pool.granule);
        if changed {
            self.trace.fact(&Fact::Pool(pool.capacity, pool.granule));
        }
        changed
    }
}
