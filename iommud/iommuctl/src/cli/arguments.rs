//! The command line. Help, completions and the manual page are made of the comments here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use iommu_protocol::ids::PciAddress;

use crate::output::Colour;

/// Ends the help of the program and its manual page.
const EXIT_STATUS: &str = "\
Exit status:
  0  done
  1  not done: a file cannot be read, or iommud refused
  2  the command line is wrong
  3  done, and it found something: see the command
  4  iommud is not there

With --json each command prints one JSON document; SCHEMA.md of iommuctl describes them.";

/// Shows what the IOMMU of this machine does.
#[derive(Clone, Debug, Parser)]
#[command(name = "iommuctl", version, after_help = EXIT_STATUS, subcommand_required = true)]
pub struct Arguments {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Print one JSON document
    #[arg(long, global = true)]
    pub json: bool,
    /// Colour the output
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = Colour::Auto)]
    pub color: Colour,
    /// Where iommud listens (Linux) [default: $IOMMU_SOCKET, else /run/iommu.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// A command.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Commands that read what the server says.
    #[command(flatten)]
    Show(Show),
    /// Requests of administrators.
    #[command(flatten)]
    Ask(Ask),
    /// Commands that need no server.
    #[command(flatten)]
    Local(Local),
}

/// A command that reads what the server says.
#[derive(Clone, Debug, Subcommand)]
pub enum Show {
    /// Show units, confinement and what needs attention; status 3 when a device is not confined
    Status,
    /// Show what each unit can do
    Units {
        /// Only this unit
        unit: Option<u32>,
    },
    /// Show units, segments, groups and devices, and why devices are in one group
    Tree(Tree),
    /// Show one device: owner, policy, domain, group and why others are in it
    Device {
        /// Its address, as 0000:00:04.0 or 00:04.0
        #[arg(value_parser = address)]
        address: PciAddress,
    },
    /// Show the addresses of a domain: what is mapped, for what access, and what is reserved
    Domain {
        /// Its number, as tree shows it
        number: u32,
        /// Draw the addresses to scale into a file; - is standard output
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        svg: Option<PathBuf>,
    },
    /// Show the latest faults
    Faults {
        /// Go on with those that come; with --json one document a line
        #[arg(long, short)]
        follow: bool,
    },
    /// Explain a fault: where it was, what usually causes it, what to try
    Explain {
        /// Its number, as faults shows it [default: the latest]
        fault: Option<u64>,
    },
    /// Show the counters of the server
    Metrics {
        /// In the text format of Prometheus
        #[arg(long, conflicts_with = "json")]
        prometheus: bool,
    },
    /// Show what devices do now: maps, unmaps, bytes, faults, and how long invalidations take
    Top(Top),
    /// Look at policy files
    #[command(subcommand)]
    Policy(Policy),
}

/// A request of an administrator.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Ask {
    /// Test whether this machine confines: a device writes to memory that was taken from it; status 3 when it could
    Check {
        /// The device to test with: an edu device, or with --force an NVMe controller [default: an edu device]
        #[arg(long, value_parser = address)]
        device: Option<PciAddress>,
        /// Take an NVMe controller, which no driver may be using: it is reset, and one block of it is read
        #[arg(long, requires = "device")]
        force: bool,
    },
    /// End the sessions on a device and on those of its group, as if their drivers had died
    Release {
        /// Its address
        #[arg(value_parser = address)]
        device: PciAddress,
    },
    /// Look for devices that came or went
    Rescan,
    /// Bring something up again
    #[command(subcommand)]
    Reset(Reset),
}

/// A command that needs no server.
#[derive(Clone, Debug, Subcommand)]
pub enum Local {
    /// Decode a DMAR or IVRS table: what iommud would do with it, and what is wrong with it
    Decode(Decode),
    /// Judge this host without iommud: who reaches all of memory; status 3 when somebody does
    Audit {
        /// A folder that stands in for the root: DIR/sys, DIR/proc
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
    /// Run again what iommud recorded with --trace, over units in software; status 3 when anything is not as it was
    Replay {
        /// The trace
        file: PathBuf,
    },
    /// Print the manual page, or write one page for each command
    Man {
        /// Folder for iommuctl.1, iommuctl-decode.1 and so on
        folder: Option<PathBuf>,
    },
    /// Print the completions of a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// Shells that completions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash
    Bash,
    /// Fish
    Fish,
}

/// Arguments of `decode`.
#[derive(Clone, Debug, Args)]
pub struct Decode {
    /// A binary table or the text of acpidump; - is standard input
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Print every field, too
    #[arg(long)]
    pub fields: bool,
}

/// Arguments of `tree`.
#[derive(Clone, Debug, Args)]
pub struct Tree {
    /// Draw it into a file; - is standard output
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub svg: Option<PathBuf>,
    /// Print it for Graphviz
    #[arg(long, conflicts_with_all = ["json", "svg"])]
    pub dot: bool,
}

/// Arguments of `top`.
#[derive(Clone, Debug, Args)]
pub struct Top {
    /// Time between two readings, in seconds, from 0.1 to 3600
    #[arg(long, short, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub interval: Duration,
    /// End after this many intervals [default: never]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Show all counts since iommud started, and end
    #[arg(long, conflicts_with_all = ["interval", "count"])]
    pub once: bool,
}

/// What is brought up again.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Reset {
    /// A unit that failed
    Unit {
        /// Its number, in firmware order
        unit: u32,
    },
}

/// What is done with a policy file.
#[derive(Clone, Debug, Subcommand)]
pub enum Policy {
    /// Show what each device would get; status 3 when the file is wrong
    Check {
        /// The file
        file: PathBuf,
        /// Take the devices of this Linux host, without iommud
        #[arg(long)]
        offline: bool,
    },
}

/// Reads a number of seconds. Each reading costs iommud a text, so the least is bounded.
///
/// # Errors
/// A sentence that says which are taken.
pub fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "from 0.1 to 3600 seconds".to_owned())
}

/// Reads `0000--00--04.0`, `0000:00:04.0` or `00:04.0`.
///
/// # Errors
/// A sentence that says how an address looks.
pub fn address(text: &str) -> Result<PciAddress, String> {
    let name = text.replace("--", ":");
    let whole = if name.matches(':').count() == 1 { format!("0000:{name}") } else { name };
    whole.replace(':', "--").parse().map_err(|_| "an address looks like 0000:00:04.0".to_owned())
}
