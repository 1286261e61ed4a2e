//! The checks of each scenario, fixed in advance. A check without a report counts as failed. `xtask` compiles this
//! file too.

/// The scenario that a guest is booted for. Its name is on the kernel's command line as `iommud.scenario=NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Properties of the machine that the other scenarios rely on; iommud does not run.
    Machine,
    /// The story on a machine with a VT-d unit.
    Intel,
    /// The story on a machine with an AMD-Vi unit.
    Amd,
    /// The story on a machine without a unit.
    None,
    /// The story on a machine with a VT-d unit and a damaged DMAR.
    Table,
    /// iommud is killed `iommud.kills=N` times, on a machine with a unit of either family.
    Kills,
    /// Isolation groups of the kernel and of iommud, on a machine with many bridges.
    Groups,
    /// The story of the NVMe driver.
    Nvme,
    /// Hot-plug of devices, on a machine with a VT-d unit.
    HotPlug,
    /// A prompt.
    Shell,
}

impl Scenario {
    /// Every scenario.
    pub(crate) const ALL: [Self; 10] = [
        Self::Machine,
        Self::Intel,
        Self::Amd,
        Self::None,
        Self::Table,
        Self::Kills,
        Self::Groups,
        Self::Nvme,
        Self::HotPlug,
        Self::Shell,
    ];

    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Intel => "intel",
            Self::Amd => "amd",
            Self::None => "none",
            Self::Table => "table",
            Self::Kills => "kills",
            Self::Groups => "groups",
            Self::Nvme => "nvme",
            Self::HotPlug => "hotplug",
            Self::Shell => "shell",
        }
    }

    /// Returns the scenario of this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scenario| scenario.name() == name)
    }

    /// Titles of the scenario's checks; the first is number 1.
    pub(crate) const fn checks(self) -> &'static [&'static str] {
        match self {
            Self::Machine => &MACHINE,
            Self::Intel | Self::Amd => &UNIT,
            Self::None => &NONE,
            Self::Table => &TABLE,
            Self::Kills => &KILLS,
            Self::Groups => &GROUPS,
            Self::Nvme => &NVME,
            Self::HotPlug => &HOT_PLUG,
            Self::Shell => &[],
        }
    }
}

const MACHINE: [&str; 6] = [
    "firmware table DMAR is readable and names a unit",
    "registers of the unit are reachable through /dev/mem: version 1.0",
    "huge pages have known, aligned physical addresses",
    "three edu devices answer through their sysfs BARs",
    "edu copies memory both ways with translation off",
    "no kernel driver holds an edu device or the unit",
];

const UNIT: [&str; 16] = [
    "status: table parsed, unit enabled, policy compat, groups listed",
    "an unclaimed device works as before under compat",
    "under compat it can't write iommud's tables or registers",
    "edud claims its device and does DMA both ways through the IOVA",
    "DMA to an address never granted is blocked and reported to the owner",
    "DMA into the other driver's buffer is blocked",
    "DMA after unmap is blocked, memory untouched",
    "a second process asking for the same device is refused: NotOwner",
    "kill -9 in the middle of a DMA: device cut off, memory given on stays untouched",
    "the other driver noticed nothing",
    "strict policy: unclaimed devices are blocked from the first instant",
    "sixteen processes live and die at random for 20 seconds: nothing leaks",
    "SIGTERM: every device is left as policy says",
    "iommuctl: the tree names the driver, four faults are explained, the self-test passes",
    "no client ever saw a physical address",
    "the trace of all of this is replayed without a difference; a planted one is found",
];

const NONE: [&str; 7] = [
    "status says loudly that nothing is confined",
    "edud runs unchanged: DMA both ways through its buffer's address",
    "query says not confined",
    "a second process asking for the same device is refused: NotOwner",
    "a device that nobody claims works",
    "kill -9 of a driver: its device can be claimed again, its memory is counted back",
    "SIGTERM ends iommud",
];

const TABLE: [&str; 8] = [
    "a DMAR with a wrong checksum: iommud runs, and says failed, why, and that nothing is confined",
    "edud and an unclaimed device work there, and edud is told",
    "strict policy there: what nothing confines is handed to nobody: NoUnit",
    "a DMAR cut short: failed, and why",
    "a DRHD that lies about its length: that unit failed, its devices are refused: UnitFailed",
    "noise instead of structures: the same",
    "the table as it was: the unit is enabled, edud is confined",
    "damaged once a unit translates: its tables stay where they are, and stay in force",
];

const KILLS: [&str; 9] = [
    "kill -9 of iommud: the keeper's next server takes over, the client is told and opens again",
    "kill -9 again and again under load: no DMA lands where it was not granted",
    "memory of all dead servers is given back",
    "a client that cuts its buffer's file loses it; nobody else gets the memory under its device",
    "a client that puts all huge pages into its buffer's file keeps no next server from its start",
    "a unit stops: a dead driver's memory is kept, a claim waits, and both get what they wait for when it is back",
    "kill -9 of the keeper: its server ends, the next keeper's server takes over",
    "SIGTERM to the keeper ends both",
    TRANSLATION_STAYS_ON,
];

const GROUPS: [&str; 3] = [
    "the kernel drives the unit and has made groups of all functions",
    "iommud takes the unit over from the kernel",
    "iommud's groups are the kernel's",
];

/// Checked outside the guest, by the emulator's own record of the bit.
pub(crate) const TRANSLATION_STAYS_ON: &str =
    "translation was turned on once, and never off, by the emulator's own record";

const HOT_PLUG: [&str; 6] = [
    "plugged in behind a root port: iommud hears of it and puts it under policy",
    "claimed and attached, it does DMA both ways",
    "pulled out in the middle of a DMA: cut off, its session dead",
    "another function in its place has another generation; the old session stays dead, its memory goes with it",
    "the first one again in its place is claimed and does DMA: a third generation",
    "the other driver noticed nothing, and a walk that is asked for finds nothing new",
];

const NVME: [&str; 12] = [
    "the driver starts three controllers, of which one is behind no unit",
    "64 MiB are written, read back and compared through the IOMMU",
    "a second namespace, of blocks of 4096 bytes, likewise; the first keeps what it had",
    "the same driver with translation off, in turn: rates and their ratio",
    "a command with an address never granted: blocked, told, reset, and on",
    "kill -9 in the middle of writes: no DMA, memory given on stays untouched",
    "the next instance of the driver works on the same controller",
    "requests that are late: aborted, or the controller reset and they are sent again; or told",
    "an NVMe driver that sleeps until its controller's interrupt",
    "several queues hold requests at once, which a slow controller carries out together",
    "memory granted for each transfer: written, read back and compared; rates in every mode",
    "nothing is left",
];
