//! iommud is killed, again and again, under load.
//!
//! Every round a driver's device has a write under way, for 100 ms, to an I/O virtual address that equals the
//! physical address of a page which is none of its business. The server dies somewhere in these 100 ms, and
//! every other time some of the next ones die too, while they come up. The write may land in the driver's buffer, or
//! be blocked. A server that gave the device back to `compat`, let it through untranslated, or gave the
//! buffer's memory to others too early would let it land in one of the pages that are looked at.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use iommu_client::Connection;
use rustix::fs::{FallocateFlags, fallocate};

use super::churn::{Random, get_metric};
use super::{field, worker};
use crate::edu::{EDU, Edu, MAX_COUNT};
use crate::kept::{DIRECTORY, Kept, SERVER_PAGES, files, free_pages, root_is_held};
use crate::memory::{HUGE_PAGE, HugePage};
use crate::pci::Function;
use crate::process::{Process, Puppet, until};
use crate::report::{check, log};
use crate::role::{pattern, word};
use crate::unit::Registers;

/// How long edu takes for a DMA, and some more.
pub(super) const DMA: Duration = Duration::from_millis(130);

/// Seeds of patterns: what the device writes, and what the pages hold.
pub(super) const WRITTEN: u64 = 11;
const INNOCENT: u64 = 12;
const RECYCLED: u64 = 13;
const LEGACY: u64 = 14;

/// Numbers of the text `metrics` that are 0 when nobody is there.
const SETTLED: [&str; 6] =
    ["sessions", "sessions_attached", "groups_claimed", "buffers", "buffer_bytes", "mappings"];

/// The most servers that are killed one after the other while they come up.
const MOST_EARLY: usize = 6;

/// Huge pages that are asked for after a file was cut: the kernel hands out what it got last.
const TAKEN: usize = 8;

const WORKER_OUTPUT: &str = "/tmp/worker.log";
/// How long the other driver may take, when all kills are over, to copy once.
const PATIENCE: Duration = Duration::from_secs(5);

struct Scene {
    kept: Option<Kept>,
    first: String,
    other: String,
    legacy: Function,
    /// Huge pages free when a server serves and nobody is there.
    baseline: usize,
}

/// Kills the server this many times.
pub(crate) fn run(kills: usize) {
    let mut scene = match Scene::new() {
        Ok(scene) => scene,
        Err(error) => return log(&format!("{error:#}")),
    };
    check(1, || scene.one());
    check(2, || scene.many(kills));
    check(3, || scene.settled());
    check(4, || Ok(format!("{}; {}", scene.cut_file(false)?, scene.cut_file(true)?)));
    check(5, || scene.extended_file());
    check(6, || scene.stopped());
    check(7, || scene.keeper());
    check(8, || scene.end());
}

impl Scene {
    fn new() -> Result<Self> {
        let mut functions = Function::find(EDU.0, EDU.1)?.into_iter();
        let mut next = || functions.next().context("an edu device is missing");
        let (first, other, legacy) = (next()?.scheme_name(), next()?.scheme_name(), next()?);
        Ok(Self { kept: None, first, other, legacy, baseline: 0 })
    }

    fn kept(&self) -> Result<&Kept> {
        self.kept.as_ref().context("iommud does not run")
    }

    fn reaches(device: &str) -> Result<String> {
        field(&Connection::system()?.text(&format!("devices/{device}"))?, "reaches")
    }

    /// Checks that the server says what the driver of a device lost with the one before.
    fn check_lost(device: &str) -> Result<()> {
        let status = Connection::system()?.text("status")?;
        let begin = format!("lost by restart: {device}: ");
        let lost = status.lines().find_map(|line| line.strip_prefix(&begin));
        let expected = "attached, 1 buffers of 4096 bytes, 2 mappings of 8192 bytes";
        ensure!(lost == Some(expected), "{device} lost {lost:?}");
        Ok(())
    }

    /// Check 1.
    fn one(&mut self) -> Result<String> {
        self.kept = Some(Kept::start()?);
        self.baseline = free_pages()?;
        let mut pages = Pages::new()?;
        let (told, _) = self.round(&mut pages, &mut Random(1), 0)?;
        let quiet = Self::reaches(&self.first)?;
        ensure!(quiet == "what policy maps", "after a clean end its device reaches {quiet}");
        Ok(format!("the client is told: {told}; it opens again, and ends cleanly"))
    }

    /// A life of a driver in which the server dies. The driver is told, and opens its device again.
    fn round(
        &self,
        pages: &mut Pages,
        random: &mut Random,
        more: usize,
    ) -> Result<(String, Duration)> {
        let kept = self.kept()?;
        pages.prepare()?;
        let mut driver = Puppet::start()?;
        driver.tell(&format!("claim {}", self.first)).context("before the kill")?;
        driver.tell("attach")?;
        driver.ask("allocate 0 4096")?;
        driver.tell(&format!("map-at 0 {:#x}", pages.innocent.physical))?;
        driver.tell(&format!("fill 0 {WRITTEN}"))?;
        driver.tell(&format!("load {:#x} {MAX_COUNT}", pages.innocent.physical))?;
        let started = Instant::now();
        driver.tell(&format!("start-store {:#x} {MAX_COUNT}", pages.innocent.physical))?;
        std::thread::sleep(Duration::from_millis(random.below(110) as u64));
        let killed = Instant::now();
        let mut server = kept.kill_server(None)?;
        for _ in 0..more {
            kept.server(Some(server))?;
            std::thread::sleep(Duration::from_millis(random.below(150) as u64));
            server = kept.kill_server(Some(server))?;
        }
        let registers = Registers::open()?;
        kept.serves_and(|| root_is_held(&registers))?;
        let down = killed.elapsed();
        let reaches = Self::reaches(&self.first)?;
        ensure!(
            reaches.starts_with("nothing: its owner ended"),
            "after the kill its device reaches {reaches}"
        );
        if more == 0 {
            Self::check_lost(&self.first)?;
        }
        // Memory that dead servers gave back is the first to be handed out.
        pages.recycle()?;
        std::thread::sleep(DMA.saturating_sub(started.elapsed()));
        pages.check()?;
        let told = driver.expect_gone();
        ensure!(told == "iommud is not there", "the client is told {told}");
        drop(driver);
        let mut again = Puppet::start()?;
        again.tell(&format!("claim {}", self.first)).context("after the kill")?;
        again.tell("attach")?;
        again.ask("allocate 0 4096")?;
        again.tell("detach")?;
        Ok((told, down))
    }

    /// Check 2.
    fn many(&self, kills: usize) -> Result<String> {
        let mut random = Random(0x5eed_0000_0028_0001);
        let mut pages = Pages::new()?;
        let output = File::create(WORKER_OUTPUT)?;
        let mut load = Process::start("/init", &["worker", &self.other], Some(output))?;
        let legacy = Edu::open(self.legacy.clone())?;
        let (stop, writes) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (mut done, mut early, mut longest) = (0, 0, Duration::ZERO);
        let result = std::thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| legacy_load(&legacy, &stop, &writes));
            let rounds = (|| {
                while done < kills {
                    let more = random.below(2) * (1 + random.below(MOST_EARLY));
                    let more = more.min(kills - done - 1);
                    let (_, down) = self
                        .round(&mut pages, &mut random, more)
                        .with_context(|| format!("after {done} kills"))?;
                    done += 1 + more;
                    early += more;
                    longest = longest.max(down);
                    if done / 100 != (done - 1 - more) / 100 {
                        log(&format!("{done} kills, {} huge pages free", free_pages()?));
                    }
                    let ended = load.ended()?;
                    ensure!(ended.is_none(), "the other driver ended: {}", load_output()?);
                }
                // Few kills leave it no time in between; with the last server it goes on.
                let copied = || Ok((worker::counts(&load_output()?).1 > 0).then_some(()));
                until(PATIENCE, copied)?;
                Ok(())
            })();
            stop.store(true, Ordering::SeqCst);
            writer.join().map_err(|_| anyhow!("the writer panicked"))??;
            rounds
        });
        load.kill()?;
        result?;
        let (told, rounds) = worker::counts(&load_output()?);
        ensure!(told > 0 && rounds > 0, "the other driver: {rounds} rounds, told {told} times");
        Ok(format!(
            "{done} kills, {early} of them while the next server came up; at most {longest:.1?} without one; no byte \
             outside changed; the other driver copied {rounds} times and was told {told} times; {} writes of \
             the device under compat all arrived",
            writes.load(Ordering::SeqCst)
        ))
    }

    /// Check 3.
    fn settled(&self) -> Result<String> {
        let kept = self.kept()?;
        let mut last = String::new();
        let done = until(Duration::from_secs(5), || {
            let metrics = kept.metrics()?;
            for name in SETTLED {
                let value = get_metric(&metrics, name)?;
                if value != 0 {
                    last = format!("{name} is {value}");
                    return Ok(None);
                }
            }
            let (free, files) = (free_pages()?, files()?.len());
            last = format!("{free} huge pages are free, {} were; {files} files", self.baseline);
            // A page that somebody takes while the server renews it is lost to the server, and free later.
            let all = free + files == self.baseline + SERVER_PAGES;
            Ok((files <= SERVER_PAGES && all).then_some(()))
        })?;
        done.with_context(|| last.clone())?;
        Ok(last)
    }

    /// Check 4: the file is cut with a write under way, and whoever then asks for memory gets some. Once more when the
    /// server is dead: the keeper holds the page.
    fn cut_file(&self, dead: bool) -> Result<String> {
        let mut driver = Puppet::start()?;
        driver.tell(&format!("claim {}", self.first))?;
        driver.tell("attach")?;
        let iova = driver.ask("allocate 0 4096")?;
        driver.tell(&format!("fill 0 {WRITTEN}"))?;
        driver.tell(&format!("load {iova:#x} {MAX_COUNT}"))?;
        let (name, physical) = file_starting_with(word(WRITTEN, 0))?;
        driver.tell(&format!("start-store {iova:#x} {MAX_COUNT}"))?;
        let file = std::fs::OpenOptions::new().write(true).open(&name).context(name.clone())?;
        let server = self.kept()?.server(None)?;
        if dead {
            self.kept()?.kill_server(None)?;
        }
        file.set_len(0).context("cutting")?;
        let mut taken = Vec::new();
        for _ in 0..TAKEN {
            let mut pages = Pages::new()?;
            pages.prepare()?;
            ensure!(pages.innocent.physical != physical, "the memory was handed out");
            taken.push(pages);
        }
        std::thread::sleep(DMA);
        taken.iter().try_for_each(Pages::check)?;
        drop((taken, file));
        self.kept()?.serves()?;
        ensure!(dead == (self.kept()?.server(None)? != server), "which server serves");
        driver.kill()?;
        self.settled()?;
        let mut next = Puppet::start()?;
        next.tell(&format!("claim {}", self.first))?;
        next.tell("attach")?;
        next.tell("detach")?;
        let end = if dead {
            "when the next server had cut its device off"
        } else {
            "with its driver's end"
        };
        Ok(format!("{TAKEN} pages were handed out after it; its own, {physical:#x}, {end}"))
    }

    /// Check 5: every huge page that is free goes into the file, and its own out of it. When the server dies the file's
    /// memory is what the next one lacks.
    fn extended_file(&self) -> Result<String> {
        let kept = self.kept()?;
        let mut driver = Puppet::start()?;
        driver.tell(&format!("claim {}", self.first))?;
        driver.tell("attach")?;
        driver.ask("allocate 0 4096")?;
        driver.tell(&format!("fill 0 {WRITTEN}"))?;
        let (name, _) = file_starting_with(word(WRITTEN, 0))?;
        let file = std::fs::OpenOptions::new().write(true).open(&name).context(name)?;
        let page = HUGE_PAGE as u64;
        let places = (1..).map(|index| index * page);
        let more = |at: &u64| fallocate(&file, FallocateFlags::empty(), *at, page).is_ok();
        let pages = places.take_while(more).count();
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, hole, 0, page).context("the hole")?;
        let free = free_pages()?;
        ensure!(pages > SERVER_PAGES && free == 0, "{pages} pages in the file, {free} are free");
        kept.kill_server(None)?;
        let registers = Registers::open()?;
        kept.serves_and(|| root_is_held(&registers))?;
        let reaches = Self::reaches(&self.first)?;
        ensure!(reaches.starts_with("nothing: its owner ended"), "its device reaches {reaches}");
        let told = driver.expect_gone();
        ensure!(told == "iommud is not there", "the client is told {told}");
        drop((driver, file));
        let settled = self.settled()?;
        Ok(format!("{pages} pages put into a file, and a hole; the next server: {settled}"))
    }

    /// Check 6.
    fn stopped(&self) -> Result<String> {
        let told = super::stopped::check(self.kept()?, &self.first)?;
        let settled = self.settled()?;
        Ok(format!("{told}; {settled}"))
    }

    /// Check 7.
    fn keeper(&mut self) -> Result<String> {
        let mut pages = Pages::new()?;
        pages.prepare()?;
        let mut driver = Puppet::start()?;
        driver.tell(&format!("claim {}", self.first))?;
        driver.tell("attach")?;
        driver.ask("allocate 0 4096")?;
        driver.tell(&format!("map-at 0 {:#x}", pages.innocent.physical))?;
        driver.tell(&format!("start-store {:#x} {MAX_COUNT}", pages.innocent.physical))?;
        self.kept.take().context("iommud does not run")?.kill_keeper()?;
        self.kept = Some(Kept::start()?);
        pages.recycle()?;
        std::thread::sleep(DMA);
        pages.check()?;
        let reaches = Self::reaches(&self.first)?;
        ensure!(reaches.starts_with("nothing: its owner ended"), "its device reaches {reaches}");
        drop((driver, pages));
        let settled = self.settled()?;
        Ok(format!("its server ended with it; the next keeper's took over: {settled}"))
    }

    /// Check 8.
    fn end(&mut self) -> Result<String> {
        self.kept.take().context("iommud does not run")?.stop()?;
        let left = free_pages()?;
        ensure!(left >= self.baseline, "{left} huge pages free, {} were", self.baseline);
        Ok("both ended with status 0".into())
    }
}

/// The file of the server's memory that begins with this word, and where its memory is.
fn file_starting_with(first: u64) -> Result<(String, u64)> {
    for name in files()? {
        let path = format!("{DIRECTORY}/{name}");
        let Some(page) = HugePage::of_file(path.as_ref())? else { continue };
        if page.memory.read64(0)? == first {
            return Ok((path, page.physical));
        }
    }
    bail!("no file has the buffer")
}

fn load_output() -> Result<String> {
    Ok(std::fs::read_to_string(WORKER_OUTPUT)?)
}

/// Pages that nobody granted to the device.
pub(super) struct Pages {
    innocent: HugePage,
    recycled: Option<HugePage>,
}

impl Pages {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { innocent: HugePage::new("innocent")?, recycled: None })
    }

    pub(super) fn prepare(&mut self) -> Result<()> {
        self.recycled = None;
        self.innocent.memory.fill(0, usize::try_from(MAX_COUNT)?, |index| word(INNOCENT, index))
    }

    pub(super) fn recycle(&mut self) -> Result<()> {
        let page = HugePage::new("recycled")?;
        page.memory.fill(0, usize::try_from(MAX_COUNT)?, |index| word(RECYCLED, index))?;
        self.recycled = Some(page);
        Ok(())
    }

    pub(super) fn check(&self) -> Result<()> {
        let length = usize::try_from(MAX_COUNT)?;
        let innocent = self.innocent.memory.bytes(0, length)?;
        if innocent != pattern(INNOCENT, length) {
            bail!("ESCAPE: the write landed at the physical address that equals its iova");
        }
        if let Some(page) = &self.recycled
            && page.memory.bytes(0, length)? != pattern(RECYCLED, length)
        {
            bail!("ESCAPE: the write landed in memory that was given back");
        }
        Ok(())
    }
}

/// A device that nobody claims writes to a page of its driver's all the time, under compat: every write
/// arrives, whichever server there is, or none.
fn legacy_load(edu: &Edu, stop: &AtomicBool, writes: &AtomicUsize) -> Result<()> {
    let page = HugePage::new("legacy")?;
    let length = usize::try_from(MAX_COUNT)?;
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        round += 1;
        page.memory.fill(0, length, |index| word(LEGACY + round, index))?;
        page.memory.fill(4096, length, |_| 0)?;
        edu.read_memory(page.physical, MAX_COUNT)?;
        edu.write_memory(page.physical + 4096, MAX_COUNT)?;
        ensure!(
            page.memory.bytes(4096, length)? == pattern(LEGACY + round, length),
            "copy {round} of the device under compat did not arrive"
        );
        writes.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}
