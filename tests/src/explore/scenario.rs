//! The scenarios of the ordering contract. A scenario counts only when its conditions were seen in answers and in
//! hardware (`history.rs`), and all checks passed.

/// A scenario: number, title, required observation, checked invariants.
pub struct Scenario {
    /// 1 to 32.
    pub number: usize,
    /// Its title in the contract.
    pub title: &'static str,
    /// The observation that makes an interleaving count.
    pub observed: &'static str,
    /// The invariants that it concerns.
    pub invariants: &'static str,
}

const fn scenario(
    number: usize,
    title: &'static str,
    observed: &'static str,
    invariants: &'static str,
) -> Scenario {
    Scenario { number, title, observed, invariants }
}

/// All of them, in order.
pub const SCENARIOS: [Scenario; 32] = [
    scenario(
        1,
        "C1 and C2 probe D1, pipelined",
        "C1 holds D1; C2's claim right behind it is refused, no word of a table changed, D1 has one record and the same ids to everybody",
        "I1 I5",
    ),
    scenario(
        2,
        "probes of D1 and D2 in any order",
        "the last member of a group appears: one group, and one default domain in the entries of all its members",
        "I2 I3",
    ),
    scenario(
        3,
        "a probe behind U2 before U2 is up",
        "a claim was refused NotReady, and the same claim succeeds after U2 came; or it waited, and is granted when U2 comes, to whoever asked first",
        "I5 I3",
    ),
    scenario(
        4,
        "U2 comes up while C1 is active behind U1",
        "D1 driven behind U1 when U2 turns translation on: D1's entry and all it reaches are the same",
        "I8",
    ),
    scenario(
        5,
        "failed unit, no unit, unit off",
        "claims were refused UnitFailed, NoUnit and NotReady in one interleaving",
        "I5",
    ),
    scenario(
        6,
        "attach, map, detach before probe",
        "attach, map or detach without a session is refused, no word of a table changed",
        "I5",
    ),
    scenario(
        7,
        "a probe fails at its k-th allocation or hardware step",
        "an event failed at one injected point, state as before; after an allocation that failed, the retry succeeded",
        "I5 I6",
    ),
    scenario(
        8,
        "failed probe of D1 while C2 holds a look-up of its group",
        "C2 looked at D2, C1's claim of D1 fails for memory, C2's claim of D2 then finds the ids it saw",
        "I1 I5",
    ),
    scenario(
        9,
        "the same request again after its reply was lost",
        "attach of an attached or detach of a detached device is granted again; entry and reach are the same",
        "I7 I8",
    ),
    scenario(
        10,
        "DMA set-up between group creation and default domain",
        "a claim of a device whose unit has not come is refused NotReady; when it comes, no instant of translation is open",
        "I3 I4",
    ),
    scenario(
        11,
        "removal of D1 during its probe",
        "D1 goes between its claim and its attach: its entry denies",
        "I4 I6",
    ),
    scenario(
        12,
        "removal of D1 during attach",
        "the attach of a device that went is refused NotProbed, its entry denies",
        "I4 I5",
    ),
    scenario(
        13,
        "removal of D1 while mapped",
        "D1 goes while it is driven and mapped: it reaches nothing; added again, it has the next generation",
        "I1 I4 I6",
    ),
    scenario(
        14,
        "hot-add of D3 into a group owned by C1",
        "D3 appears in a claimed group: it reaches nothing",
        "I3 I4",
    ),
    scenario(
        15,
        "C1 dies between probe and attach",
        "another client claims a group whose owner died before it attached",
        "I1 I4",
    ),
    scenario(
        16,
        "C1 dies with mappings",
        "a client dies driving a device with mappings: nothing reached and memory given back, or, behind a failed unit, memory kept",
        "I4 I6",
    ),
    scenario(
        17,
        "C1 dies while its invalidation is under way",
        "a request timed out with descriptors in the queue, its client died, the queue then went on",
        "I6",
    ),
    scenario(
        18,
        "D1 and D2 to different domains: refused; to the same: fine",
        "an owner's second, independent claim in its group is refused NotOwner, and the member joins its domain",
        "I5 I3",
    ),
    scenario(
        19,
        "C2 claims D2 while C1 owns D1",
        "refused NotOwner, no word of a table changed",
        "I5 I8",
    ),
    scenario(20, "C1 claims both", "both members driven through one page table", "I3"),
    scenario(
        21,
        "C2 guesses C1's handle or numbers",
        "every guess refused while C1 has what was guessed",
        "I4 I8",
    ),
    scenario(
        22,
        "reserved regions",
        "map or unmap over a reserved region is refused; the region is mapped in the device's domain",
        "I4 I5",
    ),
    scenario(
        23,
        "functions in any order, bridge or alias last",
        "all functions behind a bridge are there, in whatever order: the partition written by hand; or a bridge that would merge a claimed group is refused Busy",
        "I2 I8",
    ),
    scenario(
        24,
        "one domain over U1 and U2",
        "an unmap in a domain that devices behind both units use: both have forgotten the page by its reply, and so has one that attaches later",
        "I4 I6",
    ),
    scenario(
        25,
        "detach of D1 while D2 is attached",
        "D2's entry and reach are the same; the last detach takes the group back to policy",
        "I8 I3",
    ),
    scenario(
        26,
        "function-level reset during attach",
        "D1 is announced again between its claim and its attach: nothing changes, the attach is granted",
        "I1 I5",
    ),
    scenario(
        27,
        "a unit faults or its queue stops mid-request",
        "that client is refused UnitFailed, and another client behind the other unit is served after it",
        "I6 I7",
    ),
    scenario(
        28,
        "server restarted while translation is on",
        "a new server takes over units that translate while a device is driven: no open instant, and the device stays cut off",
        "I4",
    ),
    scenario(
        29,
        "driverless devices",
        "a unit turns translation on with an unclaimed device behind it: from that instant it reaches what policy says",
        "I3 I4",
    ),
    scenario(30, "map over quota", "refused Quota, no word of a table changed", "I5"),
    scenario(
        31,
        "fault storm from D1",
        "C2 is served behind a storm of 100 faults, within a bounded number of CPU actions",
        "I7 I8",
    ),
    scenario(
        32,
        "request bytes changed between check and use",
        "a batch whose reply overwrites its own bytes maps what was asked when it was sent",
        "I4",
    ),
];

/// A set of scenarios.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(pub u32);

impl Seen {
    /// Adds a scenario by its number.
    pub const fn add(&mut self, number: usize) {
        self.0 |= 1 << (number - 1);
    }

    /// Whether a scenario is in the set.
    #[must_use]
    pub const fn has(self, number: usize) -> bool {
        self.0 & 1 << (number - 1) != 0
    }

    /// The numbers of the scenarios in the set.
    pub fn numbers(self) -> impl Iterator<Item = usize> {
        (1..=32).filter(move |number| self.has(*number))
    }
}
