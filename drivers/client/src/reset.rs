//! Function-level reset: ends whatever a function was doing for an earlier driver.
//!
//! ```text
//! command register cleared -> no transaction pending, or 100 ms -> reset -> 150 ms -> function answers, or 1 s
//!   -> header and device control written back, without bus mastering
//! ```

use std::fmt;
use std::io;
use std::time::Duration;

/// The first 256 bytes of a function's configuration space.
pub trait ConfigSpace {
    /// Reads 4 bytes. `offset` is a multiple of 4. A function that does not answer reads as ones.
    ///
    /// # Errors
    /// Configuration space cannot be read.
    fn read(&mut self, offset: u8) -> io::Result<u32>;

    /// Writes 4 bytes. `offset` is a multiple of 4.
    ///
    /// # Errors
    /// Configuration space cannot be written; `Unsupported` if this process has no way to do so.
    fn write(&mut self, offset: u8, value: u32) -> io::Result<()>;

    /// Sleeps for `time`.
    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Why a function was not reset.
#[derive(Debug)]
#[non_exhaustive]
pub enum ResetError {
    /// The function has no reset of its own, or this process cannot write its configuration space. Nothing has
    /// changed.
    Unsupported,
    /// The function does not answer. Nothing has changed.
    Absent,
    /// The list of capabilities has a loop, or leaves its place. Nothing has changed.
    BadCapabilities {
        /// Where the list is wrong.
        offset: u8,
    },
    /// The function did not come back within a second. The driver must not attach it.
    NotEnded,
    /// Configuration space failed. The driver must not attach the function.
    Io(io::Error),
}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported => f.write_str("the function cannot be reset by itself"),
            Self::Absent => f.write_str("the function does not answer"),
            Self::BadCapabilities { offset } => write!(f, "bad capability list at {offset:#04x}"),
            Self::NotEnded => f.write_str("the function did not come back from its reset"),
            Self::Io(error) => write!(f, "configuration space: {error}"),
        }
    }
}

impl std::error::Error for ResetError {}

impl From<io::Error> for ResetError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::Unsupported => Self::Unsupported,
            _ => Self::Io(error),
        }
    }
}

/// Offsets of the header (PCI Local Bus Specification 3.0, section 6.1).
const IDS: u8 = 0x00;
const COMMAND: u8 = 0x04;
const HEADER_TYPE: u8 = 0x0c;
const CAPABILITIES: u8 = 0x34;

/// Registers of the header that a reset clears, but for the command register: cache line and latency, base addresses,
/// expansion ROM, interrupt line. Each with its writable bits. A one in the upper half of the first starts a self-test.
const HEADER: [(u8, u32); 9] = [
    (0x0c, 0xffff),
    (0x10, u32::MAX),
    (0x14, u32::MAX),
    (0x18, u32::MAX),
    (0x1c, u32::MAX),
    (0x20, u32::MAX),
    (0x24, u32::MAX),
    (0x30, u32::MAX),
    (0x3c, 0xff),
];

/// Command register: the function may master the bus.
const BUS_MASTER: u32 = 1 << 2;
/// Status register, above the command register: there is a list of capabilities.
const HAS_CAPABILITIES: u32 = 1 << 20;
/// Header type 0, of a function that is no bridge. Bit 7 is for the device.
const TYPE: u32 = 0x7f << 16;

/// The first byte of a capability.
const FIRST: u8 = 0x40;
/// Capabilities of 4 bytes that fit behind the header: a list with more has a loop.
const MOST: usize = 48;

/// PCI Express (PCI Express Base Specification 4.0, section 7.5.3).
const EXPRESS: u8 = 0x10;
/// Advanced features (PCI-SIG ECN "Advanced Capabilities for Conventional PCI", 2006).
const ADVANCED: u8 = 0x13;

/// How long transactions may stay pending before the reset. It is done then all the same.
const IDLE: Duration = Duration::from_millis(100);
/// Time from the reset to the first access: 100 ms (section 6.6.2). A sleep on Redox may be 48 ms too short.
const SETTLE: Duration = Duration::from_millis(150);
/// How long the function may then take to answer (section 6.6.1).
const READY: Duration = Duration::from_secs(1);
/// Time between two looks.
const STEP: Duration = Duration::from_millis(10);

/// The registers of one way to reset a function.
#[derive(Clone, Copy, Debug)]
struct Method {
    /// Register with the bit that starts the reset. Its upper half is cleared by ones or is read-only.
    control: u8,
    start: u32,
    /// Bits of `control` that the reset clears.
    kept: u32,
    /// Bit of `control` that says that transactions are pending.
    pending: u32,
    /// Register with more control bits that the reset clears, in its lower half.
    second: Option<u8>,
}

/// Resets one function, and no other function of its device. The function keeps no transaction under way, and has no
/// interrupt vector and no bus mastering afterwards. Its header (base addresses too) and its device control registers
/// are as before. All else is lost: other capabilities (MSI, MSI-X, virtual functions), and the device's own state.
/// It takes between 150 ms and 1.25 s.
///
/// # Errors
/// See [`ResetError`].
pub fn function_level_reset(config: &mut impl ConfigSpace) -> Result<(), ResetError> {
    let ids = config.read(IDS)?;
    if ids & 0xffff == 0xffff {
        return Err(ResetError::Absent);
    }
    let method = find(config)?.ok_or(ResetError::Unsupported)?;
    let saved = Saved::read(config, method)?;
    // This is the first write. The function starts no more transactions.
    config.write(COMMAND, 0)?;
    let _ = within(config, IDLE, |config| Ok(config.read(method.control)? & method.pending == 0))?;
    let control = config.read(method.control)? & method.kept;
    config.write(method.control, control | method.start)?;
    config.pause(SETTLE);
    // Until it is ready, a function reads as ones, or with vendor 1 (section 2.3.2).
    let back = within(config, READY, |config| {
        Ok(config.read(IDS)? == ids && config.read(method.control)? & method.pending == 0)
    })?;
    if back { saved.write(config, method) } else { Err(ResetError::NotEnded) }
}

/// Looks until `seen` returns true, for at most `limit`. Counts its pauses, because a clock may step back.
fn within<C: ConfigSpace>(
    config: &mut C,
    limit: Duration,
    mut seen: impl FnMut(&mut C) -> Result<bool, ResetError>,
) -> Result<bool, ResetError> {
    for _ in 0..limit.as_millis() / STEP.as_millis() {
        if seen(config)? {
            return Ok(true);
        }
        config.pause(STEP);
    }
    seen(config)
}

/// Finds the first way to reset a function in its list of capabilities.
fn find(config: &mut impl ConfigSpace) -> Result<Option<Method>, ResetError> {
    let bridge = config.read(HEADER_TYPE)? & TYPE != 0;
    if bridge || config.read(COMMAND)? & HAS_CAPABILITIES == 0 {
        return Ok(None);
    }
    let [mut at, ..] = config.read(CAPABILITIES)?.to_le_bytes();
    for _ in 0..MOST {
        at &= !3;
        if at == 0 {
            return Ok(None);
        }
        if at < FIRST {
            return Err(ResetError::BadCapabilities { offset: at });
        }
        let [id, next, length, features] = config.read(at)?.to_le_bytes();
        let found = match id {
            EXPRESS => express(config, at, length & 0xf)?,
            ADVANCED => advanced(at, length, features)?,
            _ => None,
        };
        if found.is_some() {
            return Ok(found);
        }
        at = next;
    }
    Err(ResetError::BadCapabilities { offset: at })
}

/// The way of a PCI Express function.
fn express(
    config: &mut impl ConfigSpace,
    at: u8,
    version: u8,
) -> Result<Option<Method>, ResetError> {
    let register =
        |offset| at.checked_add(offset).ok_or(ResetError::BadCapabilities { offset: at });
    // Device control is behind the capabilities, so both must be inside.
    let control = register(8)?;
    if config.read(register(4)?)? & 1 << 28 == 0 {
        return Ok(None);
    }
    let second = if version < 2 { None } else { Some(register(0x28)?) };
    Ok(Some(Method { control, start: 1 << 15, kept: 0x7fff, pending: 1 << 21, second }))
}

/// The way of a conventional function. It must be able to say that transactions are pending.
fn advanced(at: u8, length: u8, features: u8) -> Result<Option<Method>, ResetError> {
    let control = at.checked_add(4).filter(|_| length >= 6);
    let control = control.ok_or(ResetError::BadCapabilities { offset: at })?;
    let method = Method { control, start: 1, kept: 0, pending: 1 << 8, second: None };
    Ok((features & 3 == 3).then_some(method))
}

/// Registers that a reset clears.
struct Saved {
    command: u32,
    header: [u32; HEADER.len()],
    control: u32,
    second: u32,
}

impl Saved {
    fn read(config: &mut impl ConfigSpace, method: Method) -> Result<Self, ResetError> {
        let command = config.read(COMMAND)? & 0xffff & !BUS_MASTER;
        let mut header = [0; HEADER.len()];
        for (value, (offset, bits)) in header.iter_mut().zip(HEADER) {
            *value = config.read(offset)? & bits;
        }
        let control = config.read(method.control)? & method.kept;
        let second = method.second.map_or(Ok(0), |offset| config.read(offset))? & 0xffff;
        Ok(Self { command, header, control, second })
    }

    /// Writes them back, the command register last: the function answers at its old addresses only.
    fn write(&self, config: &mut impl ConfigSpace, method: Method) -> Result<(), ResetError> {
        for (value, (offset, _)) in self.header.iter().zip(HEADER) {
            config.write(offset, *value)?;
        }
        if method.kept != 0 {
            config.write(method.control, self.control)?;
        }
        if let Some(offset) = method.second {
            config.write(offset, self.second)?;
        }
        Ok(config.write(COMMAND, self.command)?)
    }
}
