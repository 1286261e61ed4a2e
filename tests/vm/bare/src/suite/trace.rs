//! What it costs to record an event.

use alloc::format;
use alloc::string::String;
use alloc::vec;

use iommu_protocol::wire::{Allocate, AllocateResult, Empty, Map, MapResult, Operation, Unmap};
use iommud::trace::{Kind, Record, Recorder, Ring, State, Status};

use super::server::{Served, encoded};
use super::{Outcome, ensure};
use crate::firmware::StartInfo;
use crate::println;

/// Most instructions to record an event.
const RECORDED: u64 = 60;

/// Rounds before a measurement.
const WARM_UP: usize = 4;

/// Records of the ring.
const RECORDS: usize = 1024;

/// Requests that are measured.
const NAMES: [&str; 4] = ["an attach", "a map", "an unmap", "a detach"];

/// The instructions of the same requests on a server that records, and on one that does not.
pub fn costs(info: &StartInfo, base: u64) -> Outcome {
    let (off, nothing) = measured(info, base, Recorder::default())?;
    ensure!(nothing.is_none(), "a server records that was not asked to");
    let ring = Ring::new(vec![[0; 8]; RECORDS + 1].leak()).ok_or("no ring")?;
    let (on, last) = measured(info, base, ring.into())?;
    let last = last.ok_or("nothing was recorded")?;
    ensure!(last[0] & 0xff == u64::from(Kind::Detach.code()), "the last record is {last:x?}");
    let status = Status::from_bits(last[7]).map(|status| status.state);
    ensure!(status == Some(State::Committed), "the last record is {last:x?}");
    let mut most = 0;
    for (name, (off, on)) in NAMES.iter().zip(off.iter().zip(on)) {
        let cost = on.saturating_sub(*off);
        println!("@@count {cost} instructions to record {name}");
        most = most.max(cost);
    }
    ensure!(most <= RECORDED, "{most} instructions to record an event, more than {RECORDED}");
    Ok(format!("{most} at most, of {}", off.iter().max().copied().unwrap_or(0)))
}

/// The instructions of each request, and the last record.
fn measured(
    info: &StartInfo,
    base: u64,
    recorder: Recorder,
) -> Result<([u64; 4], Option<Record>), String> {
    let mut served = Served::start_recorded(info, base, recorder)?;
    served.claim()?;
    let empty = encoded(&Empty::default())?;
    let (mut counts, mut slot) = ([0; 4], None);
    for _ in 0..=WARM_UP {
        counts[0] = served.call(Operation::Attach, &empty)?;
        let slot = match slot {
            Some(slot) => slot,
            None => {
                let request = Allocate { length: 1 << 21, access: 3, ..Allocate::default() };
                served.call(Operation::Allocate, &encoded(&request)?)?;
                *slot.insert(served.result::<AllocateResult>()?.slot)
            }
        };
        let map = Map { slot, access: 3, length: 4096, ..Map::default() };
        counts[1] = served.call(Operation::Map, &encoded(&map)?)?;
        let MapResult { iova } = served.result()?;
        counts[2] = served.call(Operation::Unmap, &encoded(&Unmap { iova, length: 4096 })?)?;
        counts[3] = served.call(Operation::Detach, &empty)?;
    }
    let mut last = None;
    if let Some(ring) = served.ring() {
        ring.take(|records| last = records.last().copied());
    }
    Ok((counts, last))
}
