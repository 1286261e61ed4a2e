//! A device that faults without end is silenced. Faults of others are reported, and others' requests cost no more
//! than before.

use alloc::format;
use alloc::string::String;

use iommu_protocol::ids::PciAddress;
use iommu_protocol::wire::{Empty, Operation};

use super::server::{Served, encoded};
use super::{Outcome, ensure};
use crate::println;

/// Most faults taken from one source.
const TAKEN: u64 = 16;

/// An address that was never granted.
const NOWHERE: u64 = 0x5000_0000;

pub fn silenced(served: &mut Served) -> Outcome {
    // Makes a pause, which resets the server's counts.
    (0..3).for_each(|_| served.tick());
    let before = faults(served)?;
    let quiet = attach_other(served)?;
    let (_, calm) = served.timed_text("activity")?;
    let mut attempts = 0;
    for _ in 0..100 {
        served.attempt(0, NOWHERE);
        attempts += 1;
        served.tick();
        let taken = faults(served)? - before;
        ensure!(taken <= TAKEN, "{taken} faults taken after {attempts}");
    }
    let taken = faults(served)? - before;
    ensure!(taken == TAKEN, "{taken} faults taken of {attempts}");
    let status = served.text("status")?;
    let wanted = format!("silenced: {} after 16 faults", served.device(0));
    ensure!(status.contains(&wanted), "no \"{wanted}\" in: {status}");
    ensure!(served.reaches_buffer(), "silenced, the device does not reach its buffer");

    // The other device is unclaimed, and policy keeps the tables out of its reach.
    served.attempt(1, super::server::TABLES);
    served.tick();
    let others = faults(served)? - before - taken;
    ensure!(others == 1, "{others} faults of the other device were taken");
    let log = served.text("faults")?;
    let other = served.device(1);
    ensure!(log.lines().last().is_some_and(|line| line.contains(&format!("{other}"))), "{log}");

    for _ in 0..40 {
        served.attempt(0, NOWHERE);
    }
    let stormy = attach_other(served)?;
    let (activity, read) = served.timed_text("activity")?;
    println!("@@count {quiet} instructions of the server to attach a device");
    println!("@@count {stormy} instructions of the server to attach a device while another storms");
    ensure!(
        stormy <= 2 * quiet,
        "attaching took {stormy} instructions in the storm, {quiet} without"
    );

    println!("@@count {read} instructions for the text of activity while a device storms");
    ensure!(
        read <= 2 * calm,
        "{read} instructions to say what happens in the storm, {calm} without"
    );
    ensure!(activity.contains("silenced true"), "{activity}");

    let empty = encoded(&Empty::default())?;
    served.call(Operation::Detach, &empty)?;
    served.call(Operation::Attach, &empty)?;
    let before = faults(served)?;
    served.attempt(0, NOWHERE);
    served.tick();
    ensure!(faults(served)? == before + 1, "attached again, its faults are not reported");
    Ok(format!("{taken} faults of {attempts} taken; attach {stormy} instructions, {quiet} before"))
}

/// Claims another device, attaches it and gives it back. Returns the instructions of the attach.
fn attach_other(served: &mut Served) -> Result<u64, String> {
    let device: PciAddress = served.device(1);
    served.with_session(device, |served| {
        let empty = encoded(&Empty::default())?;
        let spent = served.call(Operation::Attach, &empty)?;
        served.call(Operation::Detach, &empty)?;
        Ok(spent)
    })
}

/// Faults that the server has taken.
fn faults(served: &mut Served) -> Result<u64, String> {
    let metrics = served.text("metrics")?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("faults "));
    line.and_then(|number| number.parse().ok()).ok_or_else(|| "no faults".into())
}
