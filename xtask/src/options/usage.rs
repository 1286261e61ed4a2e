//! What each command is for, and its options.

/// A command.
pub(crate) struct Usage {
    /// Its name.
    pub(crate) name: &'static str,
    /// What follows it.
    pub(crate) line: &'static str,
    /// What it does, in a line.
    pub(crate) about: &'static str,
    /// Its options, a line each.
    pub(crate) options: &'static str,
}

/// All commands.
pub(crate) const COMMANDS: [Usage; 12] = [
    Usage {
        name: "demo",
        line: "[OPTIONS]",
        about: "boot a guest in QEMU and watch iommud confine real driver processes",
        options: "\
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
  --json FILE              also write the checks to FILE: an array of {name, ok, detail}
",
    },
    Usage {
        name: "shell",
        line: "[OPTIONS]",
        about: "a prompt in a guest of Linux or Redox, with iommud running and five things to try",
        options: "\
  --iommu intel|amd|none   the unit of the guest's machine (default: intel)
  --program PACKAGE        the program of this package of the workspace is in the guest too, in /bin
  --device ARGUMENT        the machine has this device too, as QEMU's -device takes it
  --redox DIR              a guest of Redox, from the finished tree in DIR (see redox)
  --tour                   type the five things and compare what they print, instead of waiting for
                           somebody to type
",
    },
    Usage {
        name: "new-driver",
        line: "NAME",
        about: "a driver begun as a copy of edud, in drivers/NAME",
        options: "",
    },
    Usage {
        name: "bare",
        line: "[OPTIONS]",
        about: "the register-level suite, on a machine without an operating system",
        options: "\
  --iommu intel|amd        amd: AMD-Vi, on a newer QEMU (default: intel)
  --caching-mode on|off    VT-d CAP.CM (default: off)
  --qemu installed|newer   newer: QEMU 11 or later, unpacked into the cache
",
    },
    Usage {
        name: "test",
        line: "[STAGE...]",
        about: "everything CI runs, or the stages of these names",
        options: "",
    },
    Usage {
        name: "explore",
        line: "[OPTIONS]",
        about: "every order of events through the server over software units",
        options: "\
  --long                   many more orders, all plays on AMD-Vi too, deeper (over 20 minutes)
  --write                  write tests/ORDERING.md anew
",
    },
    Usage {
        name: "fuzz",
        line: "[TARGET...] [OPTIONS]",
        about: "look for inputs from outside that break something",
        options: "\
  TARGET...                only these (default: all)
  --seconds N              time for each target (default: 60)
",
    },
    Usage {
        name: "mutants",
        line: "[PATH...] [OPTIONS]",
        about: "change one place of the server at a time; a test must fail (takes hours)",
        options: "\
  PATH...                  change only these files and folders (default: policy, engine, hw, server)
  --shard K/N              only every Nth mutant, beginning with the Kth (from 0)
  --again                  only what survived last time, or was not tried
  --slow                   survivors meet the slow tests too (up to minutes for each)
  --explore                survivors meet the explorer too (minutes for each)
",
    },
    Usage {
        name: "bench",
        line: "[ROW...] [OPTIONS]",
        about: "the targets of performance: measured, wanted, and what peers do in the same run",
        options: "\
  ROW...                   only these, on this machine: core range iova pool calls
                           sockets alone probe memory storm; in guests: bare nvme
  --whole                  nvme: transfers of every size and depth in every mode
  --json FILE              also write the table to FILE: an array of objects
",
    },
    Usage {
        name: "redox",
        line: "[OPTIONS]",
        about: "an image of Redox with iommud in it, booted",
        options: "\
  --tree DIR               a finished Redox tree; without it: what one consists of
  --iommu intel|amd|none   the unit of the machine (default: intel)
  --late                   iommud is started from the root file system, while a disk is read
  --oneshot                iommud is started as a plain oneshot service
  --damage                 the unit's table cannot be read
  --boots N                boots N times each with neither, a unit, and iommud too; says how long each took
  --keep                   keep the image, and say where it is
  --verbose                show the console too
  --json FILE              also write the checks to FILE: an array of {name, ok, detail}
",
    },
    Usage {
        name: "package",
        line: "--tree DIR --out DIR",
        about: "packages for the installer of Redox",
        options: "\
  --tree DIR               a finished Redox tree; without it: what one consists of
  --out DIR                the cookbook that the packages go to, signed with its key; what is
                           missing is made
",
    },
    Usage {
        name: "check-redox",
        line: "",
        about: "everything that Redox gets compiles for it",
        options: "",
    },
];

/// The usage of a command, or a line for each.
pub(crate) fn usage(command: Option<&str>) -> String {
    let of = |usage: &&Usage| Some(usage.name) == command;
    if let Some(Usage { name, line, about, options }) = COMMANDS.iter().find(of) {
        let line = format!("usage: cargo xtask {name} {line}");
        return format!("{}\n\n{about}\n\n{options}", line.trim_end()).trim_end().to_owned();
    }
    let mut text = String::from("usage: cargo xtask COMMAND [OPTIONS]\n\n");
    for Usage { name, about, .. } in &COMMANDS {
        text.push_str(&format!("  {name:<12} {about}\n"));
    }
    text.push_str("\ncargo xtask COMMAND --help says more of one.");
    text
}
