//! The other side of [`crate::process::Puppet`]: a driver process that does as it is told. It answers each
//! line of its input with one line, `ok WORDS` or `err REFUSAL: TEXT`.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use iommu_client::platform::linux::pci;
use iommu_client::{
    Access, BufferOptions, BusMasterPermission, Connection, Device, DmaBuffer, Placement,
    SessionFlags,
};

use crate::edu::{Edu, MAX_COUNT};
use crate::pci::Function;
use crate::process::number;

/// Does as it is told until its input ends.
pub(crate) fn puppet() {
    let mut role = Role::default();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let answer = match role.obey(&line) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) => format!("err {}", describe(&error)),
        };
        let mut output = std::io::stdout().lock();
        if writeln!(output, "{}", answer.replace('\n', " / ")).and(output.flush()).is_err() {
            return;
        }
    }
}

fn describe(error: &anyhow::Error) -> String {
    match error.downcast_ref::<iommu_client::Error>().and_then(iommu_client::Error::refusal) {
        Some(refusal) => format!("{refusal:?}: {error:#}"),
        None => format!("{error:#}"),
    }
}

/// What a driver holds, in the order in which it is let go.
#[derive(Default)]
struct Role {
    edu: Option<Edu>,
    buffers: BTreeMap<u64, DmaBuffer>,
    permission: Option<BusMasterPermission>,
    function: Option<pci::Function>,
    device: Option<Device>,
}

impl Role {
    fn obey(&mut self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let verb = words.next().context("an empty line")?;
        let rest: Vec<&str> = words.collect();
        let value = |index: usize| {
            rest.get(index)
                .with_context(|| format!("{verb}: too few words"))
                .and_then(|w| number(w))
        };
        match verb {
            "claim" => self.claim(rest.first().copied().context("claim what?")?),
            "claim-within" => {
                let name = rest.first().copied().context("claim what?")?;
                let wait = Duration::from_secs(value(1)?);
                self.device = Some(Device::open_within(&Connection::system()?, name, wait)?);
                Ok(String::new())
            }
            "attach" => self.attach(),
            "detach" => self.detach(),
            "query" => self.query(),
            "allocate" => self.allocate(value(0)?, value(1)?),
            "free" => {
                self.buffers.remove(&value(0)?).context("no such buffer")?;
                Ok(String::new())
            }
            "unmap" => {
                self.buffer(value(0)?)?.unmap()?;
                Ok(String::new())
            }
            "map-at" => self.map_at(value(0)?, value(1)?, Access::READ | Access::WRITE),
            "map-read-only" => self.map_at(value(0)?, value(1)?, Access::READ),
            "fill" => self.fill(value(0)?, value(1)?),
            "check" => self.check(value(0)?, value(1)?, u64::MAX),
            // What the device can copy at once is less than a page.
            "copied" => self.check(value(0)?, value(1)?, MAX_COUNT),
            "load" => self.dma(value(0)?, value(1)?, false),
            "store" => self.dma(value(0)?, value(1)?, true),
            "start-store" => {
                self.edu()?.start(value(0)?, value(1)?, true)?;
                Ok(String::new())
            }
            "fault" => self.fault(value(0)?),
            "time-calls" => {
                let rounds = usize::try_from(value(1)?)?;
                crate::calls::against_empty(self.device()?, self.buffer_at(value(0)?)?, rounds)
            }
            _ => bail!("{verb}?"),
        }
    }

    fn device(&self) -> Result<&Device> {
        self.device.as_ref().context("no device is claimed")
    }

    fn edu(&self) -> Result<&Edu> {
        self.edu.as_ref().context("no edu device is attached")
    }

    fn buffer_at(&self, index: u64) -> Result<&DmaBuffer> {
        self.buffers.get(&index).context("no such buffer")
    }

    fn buffer(&mut self, index: u64) -> Result<&mut DmaBuffer> {
        self.buffers.get_mut(&index).context("no such buffer")
    }

    fn claim(&mut self, name: &str) -> Result<String> {
        self.device = Some(Device::open(&Connection::system()?, name)?);
        Ok(String::new())
    }

    /// Bus mastering is off while the device changes hands, so that what its last driver started ends
    /// before this one's memory is in reach.
    fn attach(&mut self) -> Result<String> {
        let device = self.device()?;
        let function = pci::Function::open(device.address())?;
        let edu = Edu::new(Function::from_scheme_name(&device.address().to_string()))?;
        edu.alive()?;
        edu.wait()?;
        let permission = device.attach()?;
        function.enable_bus_mastering(&permission)?;
        (self.edu, self.function, self.permission) = (Some(edu), Some(function), Some(permission));
        Ok(String::new())
    }

    fn detach(&mut self) -> Result<String> {
        self.function.as_ref().context("not attached")?.disable_bus_mastering()?;
        let permission = self.permission.take().context("not attached")?;
        self.device()?.detach(permission)?;
        self.edu = None;
        Ok(String::new())
    }

    fn query(&self) -> Result<String> {
        let query = self.device()?.query()?;
        let confined =
            if query.flags.contains(SessionFlags::CONFINED) { "confined" } else { "open" };
        Ok(format!("{confined} {:#x} {:#x}", query.iova_first, query.iova_last))
    }

    /// Buffer `index` of `length` bytes; answers with its address.
    fn allocate(&mut self, index: u64, length: u64) -> Result<String> {
        let buffer = self.device()?.allocate(length, BufferOptions::default())?;
        let iova = buffer.iova();
        self.buffers.insert(index, buffer);
        Ok(format!("{iova:#x}"))
    }

    /// Maps a buffer once more, at a fixed address, for as long as the process lives.
    fn map_at(&mut self, index: u64, iova: u64, access: Access) -> Result<String> {
        let buffer = self.buffer(index)?;
        let mapping = buffer.slot().map(0..buffer.length(), access, Placement::At(iova))?;
        std::mem::forget(mapping);
        Ok(String::new())
    }

    fn fill(&mut self, index: u64, seed: u64) -> Result<String> {
        let buffer = self.buffer(index)?;
        let length = usize::try_from(buffer.length())?;
        buffer.write(0, &pattern(seed, length))?;
        Ok(String::new())
    }

    fn check(&mut self, index: u64, seed: u64, most: u64) -> Result<String> {
        let buffer = self.buffer(index)?;
        let length = usize::try_from(buffer.length().min(most))?;
        let mut found = vec![0; length];
        buffer.read(0, &mut found)?;
        let differs = found.iter().zip(pattern(seed, length)).position(|(a, b)| *a != b);
        ensure!(differs.is_none(), "byte {} of the buffer differs", differs.unwrap_or(0));
        Ok(String::new())
    }

    fn dma(&self, address: u64, count: u64, to_memory: bool) -> Result<String> {
        let edu = self.edu()?;
        edu.start(address, count, to_memory)?;
        edu.wait()?;
        Ok(String::new())
    }

    /// The next fault within so many milliseconds: `none`, or source, access, address and words.
    fn fault(&self, ms: u64) -> Result<String> {
        let Some(fault) = self.device()?.wait_fault(Duration::from_millis(ms))? else {
            return Ok("none".into());
        };
        let address = fault.address.map_or("unknown".into(), |address| format!("{address:#x}"));
        Ok(format!(
            "{} {:?} {address} {} {}",
            fault.source,
            fault.access,
            fault.reason,
            fault.words()
        ))
    }
}

/// Bytes that differ from seed to seed and from any repeated word.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..length.div_ceil(8) as u64).flat_map(|index| word(seed, index).to_le_bytes()).collect();
    bytes.truncate(length);
    bytes
}

/// Word `index` of the pattern.
pub(crate) const fn word(seed: u64, index: u64) -> u64 {
    (seed ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
