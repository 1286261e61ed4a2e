//! Views for `activity`: what sessions have mapped so far, and the little that a line of a device needs.

use iommu_protocol::ids::{PciAddress, RequesterId};

use crate::policy::ids::UnitIndex;
use crate::policy::registry::Registry;
use crate::policy::state::tally::Tally;
use crate::policy::view::DeviceView;

impl Registry {
    /// What sessions on each device have mapped and unmapped. A device comes once for all sessions that have ended,
    /// and once for each session that is open.
    pub fn tallies(&self) -> impl Iterator<Item = (PciAddress, Tally)> + '_ {
        let open = self.state.sessions.iter().map(|(_, session)| (session.address, session.tally));
        self.state.tallies.iter().chain(open)
    }

    /// A function without its requester ids; `None` when there is none at the address.
    #[must_use]
    pub fn device(&self, address: PciAddress) -> Option<DeviceView> {
        let machine = &self.state.machine;
        let (index, known) = machine.find(address)?;
        let function = machine.table.get(index)?;
        let session = known.session.and_then(|session| self.state.sessions.get(session.0));
        let account = session.and_then(|session| self.state.accounts.get(session.client));
        let owner = account.map(|account| account.client);
        let own = known.unit.map(|unit| (unit, address.requester));
        Some(DeviceView {
            vendor: function.vendor,
            device: function.device,
            owner,
            silenced: own.is_some_and(|key| machine.sources.is_silenced(key)),
        })
    }

    /// The device that a requester id behind a unit stands for: the function with that id, else the first of those
    /// whose requests may carry it.
    #[must_use]
    pub fn device_of(&self, unit: UnitIndex, source: RequesterId) -> Option<PciAddress> {
        let machine = &self.state.machine;
        let users = || {
            let users = machine.sources.get((unit, source)).map(|source| &source.users);
            let users = users.into_iter().flat_map(|users| users.iter());
            users.filter_map(|user| machine.table.get(*user)).map(|function| function.address)
        };
        users().find(|user| user.requester == source).or_else(|| users().next())
    }
}
