//! The registry: all that is known of units, functions, groups, domains, buffers and sessions.

use alloc::vec::Vec;

use iommu_protocol::ids::{PciAddress, RequesterId, Slot};
use iommu_protocol::status::Refusal;

use crate::addr::PhysRange;
use crate::policy::config::Config;
use crate::policy::event::{Event, Outcome, Refused};
use crate::policy::ids::{BufferId, GroupId, SessionId, UnitIndex};
use crate::policy::plan::Plan;
use crate::policy::view::{
    BufferView, Counts, FunctionView, GroupView, RegionView, SessionView, UnitView,
};
use crate::topology::firmware::Firmware;

/// The state of everything, and what may become of it.
#[derive(Debug)]
pub struct Registry {
    config: Config,
    firmware: Firmware,
}

impl Registry {
    /// A registry of a machine whose units are not up and whose functions are not known yet.
    ///
    /// `ram` is the memory of the machine, `own` what the server keeps for itself from the start: tables,
    /// queues, pools of buffers. No domain of policy maps `own`.
    #[must_use]
    pub fn new(config: Config, firmware: Firmware, ram: &[PhysRange], own: &[PhysRange]) -> Self {
        let _ = (ram, own);
        Self { config, firmware }
    }

    /// Decides what comes of an event. Until the plan is consumed, no other event may be decided.
    ///
    /// # Errors
    /// What the event is refused for; nothing has changed.
    pub fn decide(&mut self, event: &Event) -> Result<Plan, Refused> {
        let _ = event;
        Err(Refusal::Unsupported.into())
    }

    /// Takes note that every step of the plan was carried out.
    pub fn commit(&mut self, plan: Plan) -> Outcome {
        plan.outcome
    }

    /// Takes note that the plan was not carried out and its steps were undone: everything is as before
    /// [`Registry::decide`].
    pub fn abort(&mut self, plan: Plan) {
        drop(plan);
    }

    /// As [`Registry::abort`], when undoing could not be proved (`StepFailure::unproved`): memory that the
    /// plan entered into a domain may still be reached by a device. It goes to quarantine; the memory of a
    /// refused [`Event::Allocate`] must not be given back either.
    pub fn quarantine(&mut self, plan: Plan) {
        drop(plan);
    }

    /// The policy of the machine.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What firmware says.
    #[must_use]
    pub fn firmware(&self) -> &Firmware {
        &self.firmware
    }

    /// Whether a buffer of `length` bytes may be allocated for a session now, before memory is looked for.
    /// Returns whether a unit confines the device: else the memory must be one segment, and meet the
    /// request's alignment, boundary and reach with its own address.
    ///
    /// # Errors
    /// As [`Event::Allocate`] would be refused.
    pub fn admit_buffer(&self, session: SessionId, length: u64) -> Result<bool, Refusal> {
        let _ = (session, length);
        Err(Refusal::Unsupported)
    }

    /// The number that the next buffer must have.
    #[must_use]
    pub fn next_buffer(&self) -> BufferId {
        BufferId(0)
    }

    /// All units, in firmware order.
    pub fn units(&self) -> impl Iterator<Item = UnitView> + '_ {
        core::iter::empty()
    }

    /// One unit.
    #[must_use]
    pub fn unit(&self, unit: UnitIndex) -> Option<UnitView> {
        self.units().find(|view| view.index == unit)
    }

    /// The addresses of all functions, in order.
    pub fn functions(&self) -> impl Iterator<Item = PciAddress> + '_ {
        core::iter::empty()
    }

    /// One function.
    #[must_use]
    pub fn function(&self, address: PciAddress) -> Option<FunctionView> {
        let _ = address;
        None
    }

    /// All groups, in order of their numbers.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        core::iter::empty()
    }

    /// One group.
    #[must_use]
    pub fn group(&self, group: GroupId) -> Option<GroupView> {
        let _ = group;
        None
    }

    /// One session.
    #[must_use]
    pub fn session(&self, session: SessionId) -> Option<SessionView> {
        let _ = session;
        None
    }

    /// The session that a fault of this requester behind this unit is told to: that of the function, or, when
    /// several functions share the requester id, of one that is attached.
    #[must_use]
    pub fn session_of(&self, unit: UnitIndex, source: RequesterId) -> Option<SessionId> {
        let _ = (unit, source);
        None
    }

    /// A buffer as the session names it.
    #[must_use]
    pub fn buffer(&self, session: SessionId, slot: Slot) -> Option<BufferView> {
        let _ = (session, slot);
        None
    }

    /// The slot under which a session knows a buffer.
    #[must_use]
    pub fn slot_of(&self, session: SessionId, buffer: BufferId) -> Option<Slot> {
        let _ = (session, buffer);
        None
    }

    /// I/O virtual addresses that clients may not use in the domains of this session's device.
    #[must_use]
    pub fn regions(&self, session: SessionId) -> Vec<RegionView> {
        let _ = session;
        Vec::new()
    }

    /// Numbers of live objects.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts::default()
    }
}
