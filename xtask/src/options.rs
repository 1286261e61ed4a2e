//! The options of the command line.

mod parse;
mod usage;

use std::path::PathBuf;

use crate::emulator::Emulator;

pub(crate) use parse::parse;
#[cfg(test)]
pub(crate) use parse::parse_words;

pub(crate) use usage::{COMMANDS, usage};

/// The unit of a guest's machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Iommu {
    /// QEMU's intel-iommu.
    #[default]
    Intel,
    /// QEMU's amd-iommu.
    Amd,
    /// No unit.
    None,
}

/// The QEMU to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Qemu {
    /// The installed one.
    #[default]
    Installed,
    /// See [`Emulator::newer`].
    Newer,
}

impl Qemu {
    /// Ensures that it is available.
    pub(crate) fn get(self) -> anyhow::Result<Emulator> {
        match self {
            Self::Installed => Emulator::installed(),
            Self::Newer => Emulator::newer(),
        }
    }
}

/// Options of `bare`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BareOptions {
    /// The unit.
    pub(crate) iommu: Iommu,
    /// VT-d CAP.CM.
    pub(crate) caching_mode: bool,
    /// The QEMU to use.
    pub(crate) qemu: Qemu,
}

impl BareOptions {
    /// A machine with AMD-Vi. It needs the newer QEMU, because the installed one's unit never translates.
    pub(crate) const fn amd() -> Self {
        Self { iommu: Iommu::Amd, caching_mode: false, qemu: Qemu::Newer }
    }
}

/// The scenario that the guest is booted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Story {
    /// The story for the machine's unit.
    #[default]
    Whole,
    /// Only the properties that the story relies on.
    Machine,
    /// The story of a damaged DMAR.
    DamagedTable,
    /// iommud is killed this many times.
    Kills(u32),
    /// Isolation groups, compared with the kernel's.
    Groups,
    /// The story of the NVMe driver.
    Nvme,
    /// Hot-plug of devices.
    HotPlug,
}

/// Options of `demo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DemoOptions {
    /// The unit.
    pub(crate) iommu: Iommu,
    /// VT-d CAP.CM.
    pub(crate) caching_mode: bool,
    /// The QEMU to use.
    pub(crate) qemu: Qemu,
    /// A kernel's image, instead of Debian's.
    pub(crate) kernel: Option<PathBuf>,
    /// The story to run.
    pub(crate) story: Story,
    /// Measures the NVMe driver with every size and depth, for its story.
    pub(crate) whole_table: bool,
    /// Its rates are to be compared with others: programs as they ship.
    pub(crate) measured: bool,
    /// File for the captured configuration space and groups.
    pub(crate) capture: Option<PathBuf>,
    /// Keep the guest's files.
    pub(crate) keep: bool,
    /// Show the guest's console.
    pub(crate) verbose: bool,
    /// Additional file for the checks.
    pub(crate) json: Option<PathBuf>,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self {
            iommu: Iommu::Intel,
            caching_mode: false,
            qemu: Qemu::Installed,
            kernel: None,
            story: Story::Whole,
            whole_table: false,
            measured: false,
            capture: None,
            keep: false,
            verbose: false,
            json: None,
        }
    }
}

/// Options of `shell`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShellOptions {
    /// The unit.
    pub(crate) iommu: Iommu,
    /// Types the tour and compares what it prints, instead of letting the user type.
    pub(crate) tour: bool,
    /// The Redox tree, for a guest of Redox.
    pub(crate) redox: Option<PathBuf>,
    /// Packages of the workspace whose programs are in the guest too.
    pub(crate) programs: Vec<String>,
    /// More devices of the machine, as QEMU's `-device` takes them.
    pub(crate) devices: Vec<String>,
}

/// Options of `bench`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BenchOptions {
    /// Parts to measure; all of them, on the host and in guests, when empty.
    pub(crate) rows: Vec<String>,
    /// Row 15 with every size and depth.
    pub(crate) whole: bool,
    /// Additional file for the table.
    pub(crate) json: Option<PathBuf>,
}

/// The scenario on Redox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RedoxRun {
    /// iommud starts before the first driver.
    #[default]
    Early,
    /// iommud starts before the first driver, as a service of type oneshot.
    Oneshot,
    /// iommud starts from the root file system.
    Late,
    /// Firmware with an unreadable table.
    Damaged,
    /// Measures the duration of a boot, over this many boots of each kind.
    Boots(u16),
}

/// Options of `redox`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RedoxOptions {
    /// The Redox tree.
    pub(crate) tree: Option<PathBuf>,
    /// The unit.
    pub(crate) iommu: Iommu,
    /// The scenario, which determines the image.
    pub(crate) run: RedoxRun,
    /// Keep the image.
    pub(crate) keep: bool,
    /// Show the console.
    pub(crate) verbose: bool,
    /// Additional file for the checks.
    pub(crate) json: Option<PathBuf>,
}

/// Options of `package`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PackageOptions {
    /// A finished Redox tree.
    pub(crate) tree: Option<PathBuf>,
    /// The cookbook.
    pub(crate) out: PathBuf,
}

/// Options of `fuzz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FuzzOptions {
    /// Time for each target.
    pub(crate) seconds: u32,
    /// The targets; all of them when empty.
    pub(crate) targets: Vec<String>,
}

impl Default for FuzzOptions {
    fn default() -> Self {
        Self { seconds: 60, targets: Vec::new() }
    }
}

/// Options of `mutants`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MutantsOptions {
    /// Files and folders to mutate; policy, engine, hw and server when empty.
    pub(crate) paths: Vec<String>,
    /// `K/N`: only every Nth mutant.
    pub(crate) shard: Option<String>,
    /// Only what was not caught last time.
    pub(crate) again: bool,
    /// Survivors meet the slow tests.
    pub(crate) slow: bool,
    /// Survivors meet the explorer.
    pub(crate) explore: bool,
}

/// The command to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Prints the usage, of one command or of all.
    Help(Option<&'static str>),
    /// A prompt in a guest.
    Shell(ShellOptions),
    /// A driver of this name, begun as a copy of edud.
    NewDriver(String),
    /// The demo.
    Demo(DemoOptions),
    /// The register-level suite.
    Bare(BareOptions),
    /// Boots Redox.
    Redox(RedoxOptions),
    /// Compiles for Redox.
    CheckRedox,
    /// Makes packages for Redox.
    Package(PackageOptions),
    /// Everything CI runs, or stages of it by their names.
    Test(Vec<String>),
    /// The fuzzer.
    Fuzz(FuzzOptions),
    /// Mutation testing.
    Mutants(MutantsOptions),
    /// The explorer of the ordering contract, with its arguments.
    Explore(Vec<&'static str>),
    /// Measurements.
    Bench(BenchOptions),
}
