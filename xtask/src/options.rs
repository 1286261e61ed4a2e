//! The options of the command line.

mod parse;

use std::path::PathBuf;

use crate::emulator::Emulator;

pub(crate) use parse::parse;

/// Printed for `--help` and after a mistake.
pub(crate) const USAGE: &str = "\
usage: cargo xtask COMMAND [OPTIONS]

commands:
  demo    boot a guest in QEMU and watch iommud confine real driver processes
  bare    the register-level suite, on a machine without an operating system
  test    everything CI runs
  explore every order of events through the server over software units
  fuzz    look for inputs from outside that break something
  mutants change one place of the server at a time; a test must fail (takes hours)
  bench   the targets of performance: measured, wanted, and what peers do in the same run
  redox   an image of Redox with iommud in it, booted
  check-redox
          everything that Redox gets compiles for it

options of bare:
  --iommu intel|amd        amd: AMD-Vi, on a newer QEMU (default: intel)
  --caching-mode, --qemu   as of demo

options of bench:
  --json FILE              also write the table to FILE: an array of objects
  ROW...                   only these, on this machine: core range iova pool calls
                           sockets alone probe memory storm

options of redox:
  --tree DIR               a finished Redox tree; without it: what one consists of
  --iommu intel|amd|none   the unit of the machine (default: intel)
  --late                   iommud is started from the root file system, while a disk is read
  --oneshot                iommud is started as a plain oneshot service
  --damage                 the unit's table cannot be read
  --boots N                boots N times each with neither, a unit, and iommud too; says how long each took
  --keep, --verbose, --json FILE
                           as of demo

options of explore:
  --long                   many more orders, all plays on AMD-Vi too, deeper
  --write                  write tests/ORDERING.md anew

options of mutants:
  PATH...                  change only these files and folders (default: policy, engine, hw, server)
  --shard K/N              only every Nth mutant, beginning with the Kth (from 0)

options of fuzz:
  TARGET ...               only these (default: all)
  --seconds N              time for each target (default: 60)

options of demo:
  --iommu intel|amd|none   the unit of the guest's machine (default: intel)
  --caching-mode on|off    VT-d CAP.CM of that unit (default: off)
  --qemu installed|newer   newer: QEMU 11 or later, unpacked into the cache
  --kernel FILE            this kernel's image; without it: Debian's, unpacked into the cache
  --kills N                not the story: kill -9 of iommud, N times, under load
  --groups                 not the story: isolation groups on a machine of many bridges,
                           compared with those of the guest's kernel
  --capture FILE           with --groups: write configuration space and groups to FILE
  --machine                check what the story takes for granted, not the story
  --damaged-table          another story: what iommud does with a broken DMAR
  --nvme                   the story of the NVMe driver
  --hot-plug               devices that are plugged in and pulled out
  --keep                   keep the guest's files, and say where they are
  --verbose                show the guest's console too
  --json FILE              also write the checks to FILE: an array of {name, ok, detail}";

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
            capture: None,
            keep: false,
            verbose: false,
            json: None,
        }
    }
}

/// Options of `bench`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BenchOptions {
    /// Parts to measure; all of them, on the host and in guests, when empty.
    pub(crate) rows: Vec<String>,
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
}

/// The command to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Prints the usage.
    Help,
    /// The demo.
    Demo(DemoOptions),
    /// The register-level suite.
    Bare(BareOptions),
    /// Boots Redox.
    Redox(RedoxOptions),
    /// Compiles for Redox.
    CheckRedox,
    /// Everything CI runs.
    Test,
    /// The fuzzer.
    Fuzz(FuzzOptions),
    /// Mutation testing.
    Mutants(MutantsOptions),
    /// The explorer of the ordering contract, with its arguments.
    Explore(Vec<&'static str>),
    /// Measurements.
    Bench(BenchOptions),
}
