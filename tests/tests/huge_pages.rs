//! What clients can do with descriptors of real huge pages.
//!
//! This is a program of its own, not a `#[test]`: it needs root, and takes huge pages of a system where nobody has any.
//! Elsewhere it says so and claims nothing.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iommud::hw::{BufferMemory, Constraints};
use iommud::platform::linux::link::{Link, Message};
use iommud::platform::linux::memory::{DirectoryError, HugeBuffers, HugeDirectory, LeftOver};
use iommud::platform::linux::memory::{PageSource, Pin};
use iommud::platform::{HUGE_PAGE, HUGE_PAGE_LENGTH, Mapping, Sharing};
use rustix::fs::{FallocateFlags, fallocate, fstat};

/// How many huge pages there are, and how many of them nobody has (Linux Documentation/admin-guide/mm/hugetlbpage.rst).
const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// How many are taken: two servers of 8, and the notes.
const TAKEN: u64 = 17;

/// Blocks of 512 bytes in a huge page (stat(2)).
const BLOCKS: u64 = 4096;

/// How long a thief may take until it has stolen a page.
const PATIENCE: Duration = Duration::from_secs(30);

type Check = (&'static str, fn(&System));

const CHECKS: [Check; 5] = [
    ("the_next_server_has_what_a_client_took", the_next_server_has_what_a_client_took),
    ("a_hole_keeps_no_server_from_its_start", a_hole_keeps_no_server_from_its_start),
    ("a_page_that_a_client_holds_is_not_renewed", a_page_that_a_client_holds_is_not_renewed),
    ("a_pin_of_the_keeper_outlives_its_server", a_pin_of_the_keeper_outlives_its_server),
    ("a_stolen_page_comes_back_with_the_thiefs_end", a_stolen_page_comes_back_with_the_thiefs_end),
];

fn main() -> ExitCode {
    let asked: Vec<_> = CHECKS.into_iter().filter(|(name, _)| is_asked_for(name)).collect();
    if asked.is_empty() {
        return ExitCode::SUCCESS;
    }
    let system = match System::take() {
        Ok(system) => system,
        Err(missing) => {
            println!("huge pages: not run, {missing}");
            return result(0, 0, asked.len());
        }
    };
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in asked {
        let ok = catch_unwind(|| check(&system)).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        *(if ok { &mut passed } else { &mut failed }) += 1;
    }
    drop(system);
    result(passed, failed, 0)
}

/// Whether the arguments of `cargo test` select this check, and not a list of tests.
fn is_asked_for(name: &str) -> bool {
    let names = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let mut names = names.peekable();
    let listing = std::env::args().any(|argument| argument == "--list");
    !listing && (names.peek().is_none() || names.any(|part| name.contains(&part)))
}

fn result(passed: usize, failed: usize, ignored: usize) -> ExitCode {
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A hugetlbfs, and pages for it, as long as this lives.
struct System {
    mount: PathBuf,
}

impl System {
    fn take() -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{PAGES}: {error}");
        let there = number(PAGES)?;
        if there != 0 {
            return Err(format!("somebody has huge pages here: {there}"));
        }
        let mount = std::env::temp_dir().join(format!("iommud-huge-{}", std::process::id()));
        fs::create_dir(&mount).map_err(failed)?;
        let system = Self { mount };
        let mut command = Command::new("mount");
        command.args(["-t", "hugetlbfs", "-o", "pagesize=2M", "none"]).arg(&system.mount);
        let mounted = command.output().map_err(|error| format!("mount: {error}"))?;
        if !mounted.status.success() {
            return Err(String::from_utf8_lossy(&mounted.stderr).trim().to_owned());
        }
        fs::write(PAGES, TAKEN.to_string()).map_err(failed)?;
        match number(FREE)? {
            TAKEN => Ok(system),
            free => Err(format!("the system has {free} huge pages, not {TAKEN}")),
        }
    }

    /// A directory of a server's memory that no other check uses.
    fn directory(&self, name: &str) -> Directory {
        assert_eq!(free(), TAKEN, "a check before this one left something");
        Directory { path: self.mount.join(name) }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // Where it was not mounted, umount says so.
        let _ = Command::new("umount").arg(&self.mount).output();
        let _ = fs::remove_dir(&self.mount);
        let _ = fs::write(PAGES, "0");
    }
}

fn number(path: &str) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    text.trim().parse().map_err(|_| format!("{path}: {text}"))
}

fn free() -> u64 {
    number(FREE).unwrap()
}

struct Directory {
    path: PathBuf,
}

impl Directory {
    /// A server that takes so many pages for buffers, and what the one before it left.
    fn server(&self, pages: u64) -> Result<(HugeBuffers<HugeDirectory>, LeftOver), DirectoryError> {
        let (mut source, left) = HugeDirectory::open(&self.path, None)?;
        let taken: Result<Vec<_>, _> = (0..pages).map(|_| source.take()).collect();
        Ok((HugeBuffers::new(source, taken?), left))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A descriptor of a new buffer's only page.
fn client(buffers: &mut HugeBuffers<HugeDirectory>, id: u32) -> OwnedFd {
    buffers.allocate(id, 4096, Constraints::default()).unwrap();
    buffers.share(id).unwrap().remove(0)
}

/// Puts all memory of the system's into a file, behind its page.
fn extend(file: &OwnedFd, flags: FallocateFlags) {
    let places = (1..).map(|page| page * HUGE_PAGE);
    let taken = places.take_while(|at| fallocate(file, flags, *at, HUGE_PAGE).is_ok()).count();
    assert!(taken > 0 && free() == 0, "{taken} taken, {} free", free());
}

fn pages_of(buffers: &HugeBuffers<HugeDirectory>) -> u64 {
    buffers.pool().capacity / HUGE_PAGE
}

/// A dead server's file has no memory but its page, also while its client lives.
fn the_next_server_has_what_a_client_took(system: &System) {
    for flags in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE] {
        let directory = system.directory("extended");
        let pages = (free() - 1) / 2;
        let (mut buffers, left) = directory.server(pages).unwrap();
        let file = client(&mut buffers, 1);
        extend(&file, flags);
        drop((buffers, left));
        let (_next, left) = directory.server(pages).unwrap();
        let found = u64::try_from(left.ranges().len()).unwrap();
        assert_eq!(found, pages, "where the dead server's pages are");
    }
}

fn a_hole_keeps_no_server_from_its_start(system: &System) {
    let directory = system.directory("hole");
    let (mut buffers, left) = directory.server(2).unwrap();
    let file = client(&mut buffers, 1);
    extend(&file, FallocateFlags::empty());
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, hole, 0, HUGE_PAGE).unwrap();
    drop((buffers, left));
    // What was in the hole was the server's until its end.
    fallocate(&file, FallocateFlags::empty(), 64 * HUGE_PAGE, HUGE_PAGE).unwrap();
    let (_next, left) = directory.server(4).unwrap();
    assert_eq!(left.ranges().len(), 1);
}

/// The keeper's pin keeps a dead server's page, whose file a client cuts. It does not keep one from its release.
fn a_pin_of_the_keeper_outlives_its_server(system: &System) {
    let directory = system.directory("kept");
    let (keeper, server) = Link::pair().unwrap();
    let server = Link::over(server);
    let pin = || match keeper.receive().unwrap() {
        Some((Message::Pin(page), Some(pin))) => (page, pin),
        other => panic!("{other:?}"),
    };
    let (mut source, left) = HugeDirectory::open(&directory.path, Some(&server)).unwrap();
    let (kept, released) = (source.take().unwrap(), source.take().unwrap());
    let (kept_pin, (name, released_pin)) = (pin(), pin());
    assert_eq!(name.to_string(), released.name());
    let address = released.range();
    // The keeper's pin has no reference any more.
    let again = source.renew(released).unwrap();
    assert_eq!(again.range(), address);
    let unpinned = keeper.receive().unwrap().map(|(message, _)| message);
    assert_eq!(unpinned, Some(Message::Unpin(name)));
    let again_pin = pin();
    drop(released_pin);

    let file = source.share(&kept).unwrap();
    drop((source, left, kept, again));
    let before = free();
    rustix::fs::ftruncate(&file, 0).unwrap();
    assert_eq!(free(), before, "the page is held");
    let (_next, left) = HugeDirectory::open(&directory.path, Some(&server)).unwrap();
    left.remove();
    let unpinned = keeper.receive().unwrap().map(|(message, _)| message);
    assert_eq!(unpinned, Some(Message::UnpinServer(name.server)));
    assert_eq!(free(), before, "the keeper has not dropped it");
    drop((kept_pin, again_pin));
    assert_eq!(free(), before + 2);
}

/// A client can hold a reference to its page, as the server does. The page that the kernel hands out instead is not one
/// of buffers: devices that nobody has claimed may reach it.
fn a_page_that_a_client_holds_is_not_renewed(system: &System) {
    for spare in [0, 1] {
        let directory = system.directory("held");
        let all = free() - 1 - spare;
        let (mut buffers, _left) = directory.server(all).unwrap();
        let file = client(&mut buffers, 1);
        let mapping = Mapping::new(file.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Populated).unwrap();
        let held = Pin::new(&mapping).unwrap();
        drop((mapping, file));
        buffers.release(1);
        assert_eq!((pages_of(&buffers), buffers.has_lost(), free()), (all - 1, true, spare));
        drop(held);
        assert_eq!(free(), spare + 1, "the system's");
        let page = buffers.take().unwrap();
        buffers.add(page);
        assert_eq!((pages_of(&buffers), buffers.has_lost(), free()), (all, false, spare));
    }
}

/// A client that asks for memory without pause, with a descriptor of a buffer that it had, gets a page while the server
/// renews it. The server has it again when the client is gone, and not before.
fn a_stolen_page_comes_back_with_the_thiefs_end(system: &System) {
    let directory = system.directory("thief");
    let all = free() - 1;
    let (mut buffers, _left) = directory.server(all).unwrap();
    let file = client(&mut buffers, 1);
    buffers.release(1);
    assert_eq!((pages_of(&buffers), free()), (all, 0));
    let stolen = AtomicU64::new(0);
    let steal = |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            let at = stolen.load(Ordering::Relaxed) * HUGE_PAGE;
            if fallocate(&file, FallocateFlags::empty(), at, HUGE_PAGE).is_ok() {
                stolen.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let begun = Instant::now();
    let mut releases = 0_u32;
    while stolen.load(Ordering::Relaxed) < 2 {
        assert!(begun.elapsed() < PATIENCE, "{releases} pages released, and none was stolen");
        releases += 1;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| steal(&stop));
            drop(client(&mut buffers, 2));
            std::thread::sleep(Duration::from_millis(1));
            buffers.release(2);
            stop.store(true, Ordering::Relaxed);
        });
    }
    let stolen = stolen.into_inner();
    println!("{stolen} pages of {releases} that were released were stolen");
    assert_eq!(u64::try_from(fstat(&file).unwrap().st_blocks).unwrap(), stolen * BLOCKS);
    assert_eq!((pages_of(&buffers), free()), (all - stolen, 0), "what was lost is the thief's");
    assert!(buffers.take().is_err());
    drop(file);
    while buffers.has_lost() {
        let page = buffers.take().unwrap();
        buffers.add(page);
    }
    assert_eq!((pages_of(&buffers), free()), (all, 0));
    let ranges = buffers.allocate(3, all * HUGE_PAGE, Constraints::default()).unwrap();
    assert_eq!(ranges.iter().map(|range| range.length()).sum::<u64>(), all * HUGE_PAGE);
}
