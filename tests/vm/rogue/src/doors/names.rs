//! Other objects of the system: by path, through descriptors that are open, as another user.

use std::fs::File;

use libredox::call;
use libredox::flag::{O_CLOEXEC, O_DIRECTORY, O_RDONLY, O_RDWR};

use super::Door::{self, Held, Open};

/// Names with which a driver would reach more than its device.
const PATHS: [&str; 14] = [
    "/scheme/memory/physical@uc",
    "/scheme/memory/zeroed@wb?phys_contiguous",
    "/scheme/memory/translation",
    "/scheme/irq/bsp",
    "/scheme/irq/1",
    "/scheme/pci/access",
    "/scheme/iommu/status",
    "/scheme/acpi/tables",
    "/scheme/sys/context",
    "/scheme/proc",
    "/scheme/debug",
    "/scheme/event",
    "/scheme/rand",
    "/scheme/initfs/bin/init",
];

/// Opens each name, and lists all that there are.
pub(super) fn by_path() -> Door {
    let listed = std::fs::read_dir("/scheme/").into_iter().flatten().flatten().count();
    if listed > 0 {
        return Open(format!("{listed} names are listed"));
    }
    let opened: Vec<_> = PATHS.iter().filter(|path| opens(path)).collect();
    if opened.is_empty() {
        Held(format!("none of {} names", PATHS.len()))
    } else {
        Open(format!("{opened:?}"))
    }
}

fn opens(path: &str) -> bool {
    let directory = || call::open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0).is_ok();
    File::options().read(true).write(true).open(path).is_ok()
        || File::open(path).is_ok()
        || directory()
}

/// Numbers of descriptors: those of the program, and those of the C library, in a table of its own (redox_syscall,
/// `UPPER_FDTBL_TAG`).
fn numbers() -> impl Iterator<Item = usize> {
    (0..256).chain((0..256).map(|number| 1 << (usize::BITS - 2) | number))
}

/// Opens every name relative to every descriptor: one of a name space, of a scheme's root, or of a directory would do.
pub(super) fn by_descriptor() -> Door {
    let (mut found, mut opened) = (0, Vec::new());
    for number in numbers() {
        if call::fcntl(number, F_GETFD, 0).is_ok() {
            found += 1;
        }
        let schemes =
            ["/scheme/memory", "/scheme/irq", "/scheme/pci", "/scheme/iommu", "/scheme/proc"];
        let inside = ["physical@uc", "bsp", "access", "status", "devices", "init"];
        for (path, kind) in
            schemes.map(|path| (path, O_DIRECTORY)).into_iter().chain(inside.map(|path| (path, 0)))
        {
            for access in [O_RDONLY, O_RDWR] {
                if call::openat(number, path, access | kind | O_CLOEXEC, 0).is_ok() {
                    opened.push(format!("{number:#x}/{path}"));
                }
            }
        }
    }
    if opened.is_empty() {
        Held(format!("nothing through {found} descriptors"))
    } else {
        Open(format!("{opened:?}"))
    }
}

/// Command of `fcntl` that reads a descriptor's flags (relibc, `fcntl.h`).
const F_GETFD: usize = 1;

/// Opens files by paths that begin in the working directory.
pub(super) fn by_directory() -> Door {
    let paths =
        [".", "..", "bin/init", "init", "etc", "lib", "usr", "../bin/init", "../../scheme/memory"];
    let opened: Vec<_> = paths.iter().filter(|path| opens(path)).collect();
    if opened.is_empty() {
        Held("no relative path opens".into())
    } else {
        Open(format!("{opened:?}"))
    }
}

/// Becomes the first user again.
#[allow(unsafe_code)]
pub(super) fn other_user() -> Door {
    // SAFETY: no memory is passed.
    let (now, user, group) = unsafe { (libc::getuid(), libc::setuid(0), libc::setgid(0)) };
    if now == 0 || user == 0 || group == 0 {
        Open(format!("uid {now}; setuid(0): {user}, setgid(0): {group}"))
    } else {
        Held(format!("uid {now} stays"))
    }
}

/// Signals other processes, with the signal that only asks whether it may.
#[allow(unsafe_code)]
pub(super) fn other_processes() -> Door {
    let own = std::process::id();
    let others = (1..256).filter(|pid| u32::try_from(*pid) != Ok(own));
    // SAFETY: no memory is passed.
    let reached: Vec<i32> = others.filter(|pid| unsafe { libc::kill(*pid, 0) } == 0).collect();
    if reached.is_empty() {
        Held("no other process can be signalled".into())
    } else {
        Open(format!("{reached:?}"))
    }
}
