//! Devices plugged in behind a root port and removed. The host does it on request, and the kernel notifies iommud.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Story, field};
use crate::edu::{EDU, MAX_COUNT};
use crate::pci::Function;
use crate::process::{Puppet, until};
use crate::report::{check, log, please};

/// Time limit for plugging. The kernel scans the bus and assigns registers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Seeds of patterns.
const SENT: u64 = 40;
const KEPT: u64 = 50;

/// State shared by the checks.
struct HotPlug {
    story: Story,
    /// iommud's name for the slot behind the port.
    place: Option<String>,
    /// The driver of the removed device.
    orphan: Option<Puppet>,
}

/// Runs the scenario.
pub(crate) fn run() {
    let story = match Story::new() {
        Ok(story) => story,
        Err(error) => return log(&format!("{error:#}")),
    };
    let mut all = HotPlug { story, place: None, orphan: None };
    let s = &mut all;
    check(1, || appears(s));
    check(2, || works(s));
    check(3, || pulled_out(s));
    check(4, || another(s));
    check(5, || again(s));
    check(6, || undisturbed(s));
}

impl HotPlug {
    fn place(&self) -> Result<&str> {
        self.place.as_deref().context("nothing was plugged in")
    }

    fn text(&self) -> Result<String> {
        self.story.server()?.text(&format!("devices/{}", self.place()?))
    }

    /// Whether iommud lists a function behind the port.
    fn is_known(&self) -> Result<bool> {
        Ok(self
            .story
            .server()?
            .names("devices")?
            .iter()
            .any(|name| Some(name) == self.place.as_ref()))
    }

    fn wait_known(&self, known: bool) -> Result<()> {
        let seen = until(PATIENCE, || Ok((self.is_known()? == known).then_some(())))?;
        seen.with_context(|| {
            format!("{}: known to iommud: {}", self.place().unwrap_or("?"), !known)
        })
    }

    /// Requests the removal, and waits until iommud has processed it.
    fn unplug(&self) -> Result<()> {
        please("unplug");
        self.wait_known(false)
    }
}

fn edus() -> Result<Vec<String>> {
    Ok(Function::find(EDU.0, EDU.1)?.iter().map(Function::scheme_name).collect())
}

/// Check 1.
fn appears(s: &mut HotPlug) -> Result<String> {
    s.story.serve("compat")?;
    s.story.start_other()?;
    let before = edus()?;
    please("plug edu");
    let found = until(PATIENCE, || Ok(edus()?.into_iter().find(|name| !before.contains(name))))?;
    s.place = Some(found.context("the kernel found nothing new")?);
    s.wait_known(true)?;
    let text = s.text()?;
    ensure!(field(&text, "generation")? == "1" && field(&text, "policy")? == "compat", "{text}");
    ensure!(field(&text, "reaches")? == "what policy maps", "{text}");
    Ok(format!("{}, group {}", s.place()?, field(&text, "group")?))
}

/// Copies a pattern through the device and back, with a driver that has it attached.
fn copies(driver: &mut Puppet) -> Result<()> {
    let source = driver.ask("allocate 0 4096")?;
    let target = driver.ask("allocate 1 4096")?;
    driver.tell(&format!("fill 0 {SENT}"))?;
    driver.tell(&format!("fill 1 {KEPT}"))?;
    driver.tell(&format!("load {source:#x} {MAX_COUNT}"))?;
    driver.tell(&format!("fill 0 {KEPT}"))?;
    for (index, to) in [source, target].iter().enumerate() {
        driver.tell(&format!("store {to:#x} {MAX_COUNT}"))?;
        driver.tell(&format!("copied {index} {SENT}"))?;
    }
    Ok(())
}

/// Check 2.
fn works(s: &mut HotPlug) -> Result<String> {
    let mut driver = Story::driver(s.place()?)?;
    copies(&mut driver)?;
    s.orphan = Some(driver);
    let reach = field(&s.text()?, "reaches")?;
    ensure!(reach == "what its session maps", "{reach}");
    Ok(format!("{MAX_COUNT} bytes each way"))
}

/// Check 3.
fn pulled_out(s: &mut HotPlug) -> Result<String> {
    let mut driver = s.orphan.take().context("nobody drives it")?;
    let target = driver.ask("allocate 2 4096")?;
    driver.tell(&format!("fill 2 {KEPT}"))?;
    driver.tell(&format!("start-store {target:#x} {MAX_COUNT}"))?;
    s.unplug()?;
    driver.expect_refusal("allocate 3 4096", "NotProbed")?;
    let mut other = Puppet::start()?;
    let claim = format!("claim {}", s.place()?);
    other.expect_refusal(&claim, "NotProbed")?;
    let metrics = s.story.server()?.metrics()?;
    let attached = metrics.get("sessions_attached").copied();
    ensure!(attached == Some(1), "attached: {attached:?}");
    let cut = driver.tell(&format!("check 2 {KEPT}")).is_ok();
    // The buffers still belong to the driver until it ends.
    driver.tell(&format!("fill 2 {SENT}"))?;
    std::thread::sleep(Duration::from_millis(200));
    driver.tell(&format!("check 2 {SENT}"))?;
    s.orphan = Some(driver);
    Ok(format!("the DMA {} when it went", if cut { "was under way" } else { "had just ended" }))
}

/// Check 4.
fn another(s: &mut HotPlug) -> Result<String> {
    please("plug rng");
    s.wait_known(true)?;
    let text = s.text()?;
    ensure!(field(&text, "generation")? == "2", "{text}");
    let id = field(&text, "id")?;
    ensure!(id.starts_with("1af4:"), "{text}");
    ensure!(field(&text, "reaches")? == "what policy maps", "{text}");
    let mut driver = s.orphan.take().context("nobody drove the first one")?;
    driver.expect_refusal("allocate 3 4096", "NotProbed")?;
    let before = s.story.server()?.metric("buffers")?;
    driver.kill()?;
    let fewer = until(PATIENCE, || {
        let now = s.story.server()?.metric("buffers")?;
        Ok((now == before - 3).then_some(()))
    })?;
    fewer.context("the memory of its dead driver is not given back")?;
    ensure!(
        field(&s.text()?, "reaches")? == "what policy maps",
        "the old session's end cut it off"
    );
    Ok(id)
}

/// Check 5.
fn again(s: &mut HotPlug) -> Result<String> {
    s.unplug()?;
    please("plug edu");
    s.wait_known(true)?;
    let generation = field(&s.text()?, "generation")?;
    ensure!(generation == "3", "generation {generation}");
    let mut driver = Story::driver(s.place()?)?;
    copies(&mut driver)?;
    driver.tell("detach")?;
    let reach = field(&s.text()?, "reaches")?;
    ensure!(reach == "what policy maps", "{reach}");
    Ok(format!("generation {generation}"))
}

/// Check 6.
fn undisturbed(s: &mut HotPlug) -> Result<String> {
    let server = s.story.server()?;
    server.rescan()?;
    let text = server.text("rescan")?;
    ensure!(text == "last walk: 0 new, 0 gone\n", "{text}");
    let undisturbed = super::ownership::undisturbed(&mut s.story)?;
    s.story.stop()?;
    Ok(undisturbed)
}
