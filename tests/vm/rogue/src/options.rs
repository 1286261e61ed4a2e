//! The command line.

use std::fmt;

pub(crate) const USAGE: &str = "\
usage: rogue [--device SSSS--BB--DD.F] --iova HEX [--read] | --unmap-then-dma | --loop | --hold
                                     | --doors

The device may be left out by a driver that iommu-run started.

Copies a pattern to the edu device and back by DMA as edud does, then
  --iova HEX        lets the device write (or --read) 64 bytes at an address it was not
                    granted, and expects the fault
  --unmap-then-dma  ends the mapping, lets the device write there once more, and expects
                    the fault and untouched memory
  --loop            copies and checks until it is killed, a line a hundred rounds
  --hold            lets the device write its buffer until it is killed
  --doors           on Redox: tries every way out of a driver that iommu-run
                    started, and says of each whether it is held or open
exit: 0 as expected, 1 failed, 2 usage, 3 refused by iommud";

/// The task after the first copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// DMA to an address that was never granted.
    Rogue { iova: u64, read: bool },
    /// DMA after the mapping has ended.
    UnmapThenDma,
    /// Copies and compares for ever.
    Loop,
    /// Does DMA for ever.
    Hold,
    /// Tries every way out.
    Doors,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// `None` for the device that a launcher handed on.
    pub(crate) device: Option<String>,
    pub(crate) task: Task,
}

/// The invalid argument.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadUsage(String);

impl fmt::Display for BadUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad usage: {}\n{USAGE}", self.0)
    }
}

impl Options {
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, BadUsage> {
        let mut words = words.into_iter();
        let (mut device, mut task, mut read) = (None, None, false);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| BadUsage(format!("{word} what?")));
            let chosen = match word.as_str() {
                "--device" => {
                    device = Some(value()?);
                    continue;
                }
                "--read" => {
                    read = true;
                    continue;
                }
                "--iova" => Task::Rogue { iova: hexadecimal(&value()?)?, read: false },
                "--unmap-then-dma" => Task::UnmapThenDma,
                "--loop" => Task::Loop,
                "--hold" => Task::Hold,
                "--doors" => Task::Doors,
                _ => return Err(BadUsage(word)),
            };
            if task.replace(chosen).is_some() {
                return Err(BadUsage(word));
            }
        }
        let mut task = task.ok_or_else(|| BadUsage("nothing to do".into()))?;
        match &mut task {
            Task::Rogue { read: wanted, .. } => *wanted = read,
            _ if read => return Err(BadUsage("--read".into())),
            _ => {}
        }
        Ok(Self { device, task })
    }
}

fn hexadecimal(text: &str) -> Result<u64, BadUsage> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|_| BadUsage(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, BadUsage> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn tasks_are_read_and_exclude_each_other() {
        let task = |line: &str| parse(&format!("--device x {line}")).map(|options| options.task);
        assert_eq!(task("--iova 0xfee00000"), Ok(Task::Rogue { iova: 0xfee0_0000, read: false }));
        assert_eq!(task("--read --iova 10"), Ok(Task::Rogue { iova: 16, read: true }));
        assert_eq!(task("--unmap-then-dma"), Ok(Task::UnmapThenDma));
        for bad in ["", "--read", "--iova", "--iova x", "--loop --hold", "--what"] {
            assert!(task(bad).is_err(), "{bad}");
        }
        let inherited = Options { device: None, task: Task::Doors };
        assert_eq!(parse("--doors"), Ok(inherited));
    }
}
