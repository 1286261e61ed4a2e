//! The session of this process, and what stands in for it where there is none. Decided at the first allocation.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use iommu_client::{
    BufferOptions, BusMasterPermission, Connection, Device, DmaBuffer, Error as Client, PAGE,
    PciAddress, Refusal, SessionFlags,
};

use crate::errno::errno;
use crate::home::Home;
use crate::platform::{self, ENODEV, Error, Result};
use crate::pool::{CHUNK_LENGTH, MOST, Pool};
use crate::words;

/// Where memory comes from.
#[derive(Clone)]
pub(crate) enum Access {
    /// From the session.
    Confined(Arc<Session>),
    /// From the operating system.
    Plain,
}

/// The state of the process.
struct State {
    /// `None` before the first allocation that was not refused.
    access: Option<Access>,
    given: Option<(Connection, PciAddress)>,
}

static STATE: Mutex<State> = Mutex::new(State { access: None, given: None });

/// A session with its device attached.
pub(crate) struct Session {
    device: Device,
    pool: Arc<Pool>,
    /// `None` if the session was inherited with its device attached.
    _permission: Option<BusMasterPermission>,
}

/// [`through`] came after the first allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late;

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the first allocation is past")
    }
}

impl std::error::Error for Late {}

/// Names the server and the function of this process, for one that nothing started for a function: a test, say.
///
/// # Errors
/// An allocation has decided already.
pub fn through(connection: Connection, function: PciAddress) -> Result<(), Late> {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if state.access.is_some() {
        return Err(Late);
    }
    state.given = Some((connection, function));
    Ok(())
}

/// Where memory comes from. The first call decides; a refused one leaves that to the next.
pub(crate) fn access() -> Result<Access> {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(access) = &state.access {
        return Ok(access.clone());
    }
    let access = decide(state.given.clone()).map_err(|refused| {
        words::refused(&refused);
        errno(&refused.error)
    })?;
    state.access = Some(access.clone());
    Ok(access)
}

/// A refusal, and what was refused.
struct Refused {
    error: Client,
    of: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.of, self.error)
    }
}

/// Adds to an error what it is about.
fn of(what: impl fmt::Display) -> impl FnOnce(Client) -> Refused {
    move |error| Refused { error, of: what.to_string() }
}

fn decide(given: Option<(Connection, PciAddress)>) -> Result<Access, Refused> {
    if let Some(inherited) = platform::inherited() {
        return inherited.and_then(admit).map_err(of("the inherited session"));
    }
    let (connection, address) = match given {
        Some(given) => given,
        None => {
            let connection = match Connection::system() {
                Ok(connection) => connection,
                Err(Client::Disconnected) => return plain("iommud does not serve"),
                Err(error) => return Err(of("iommud")(error)),
            };
            match platform::function().map_err(of("the function that pcid started"))? {
                Some(address) => (connection, address),
                None => return plain("no function was handed to it"),
            }
        }
    };
    match Device::claim(&connection, address).and_then(admit) {
        Err(error) if unconfined(&connection, address, &error) => {
            plain(format_args!("{address}: {error}"))
        }
        decided => decided.map_err(of(address)),
    }
}

fn plain(why: impl fmt::Display) -> Result<Access, Refused> {
    words::not_confined(why);
    Ok(Access::Plain)
}

/// Attaches the device of a session. If no unit confines it, the session ends again.
fn admit(device: Device) -> Result<Access, Client> {
    let flags = device.query()?.flags;
    if !flags.contains(SessionFlags::CONFINED) {
        words::not_confined(format_args!("no unit stands in front of {}", device.address()));
        return Ok(Access::Plain);
    }
    let attached = flags.contains(SessionFlags::ATTACHED);
    let permission = if attached { None } else { Some(device.attach()?) };
    let pool = Arc::default();
    Ok(Access::Confined(Arc::new(Session { device, pool, _permission: permission })))
}

/// Whether policy lets a device that cannot be claimed reach all memory, because no unit confines it. A text that
/// cannot be read, or says anything else, is a no.
fn unconfined(connection: &Connection, address: PciAddress, error: &Client) -> bool {
    use Refusal::{NotProbed, NotReady, UnitFailed};
    match error.refusal() {
        Some(UnitFailed | NotReady) => {
            let text = connection.text(&format!("devices/{address}")).unwrap_or_default();
            let policy = line(&text, "policy: ");
            let open = [Some("compat"), Some("off")].contains(&policy);
            open && line(&text, "reaches: ").is_some_and(|reach| reach.ends_with("NOT CONFINED"))
        }
        Some(NotProbed) => {
            let text = connection.text("status").unwrap_or_default();
            line(&text, "confinement: ").is_some_and(|what| what.starts_with("NOT CONFINED"))
        }
        _ => false,
    }
}

/// The rest of the line that begins so.
fn line<'text>(text: &'text str, start: &str) -> Option<&'text str> {
    text.lines().find_map(|line| line.strip_prefix(start))
}

impl Session {
    /// Allocates whole pages of zeros, and returns their address for the device.
    pub(crate) fn allocate(&self, length: usize) -> Result<(Home, usize)> {
        let (home, iova) = self.pages(length).map_err(|error| {
            let device = self.device.address();
            match error {
                Client::Disconnected => words::gone(device),
                _ => words::no_memory(device, length, &error),
            }
            errno(&error)
        })?;
        let physical = usize::try_from(iova).map_err(|_| Error::new(ENODEV))?;
        Ok((home, physical))
    }

    fn pages(&self, length: usize) -> Result<(Home, u64), Client> {
        use Refusal::{Full, NoMemory, NoSpace, Quota};
        let length = u64::try_from(length).map_err(|_| Client::Outside)?;
        let count = u32::try_from(length / PAGE).ok().filter(|count| *count <= MOST);
        if let Some(count) = count {
            match self.pool.take(count, || self.buffer(CHUNK_LENGTH)) {
                // There may be room for this length, if not for a chunk.
                Err(Client::Refused(Quota | Full | NoMemory | NoSpace)) => {}
                taken => {
                    let block = taken?;
                    let iova = block.iova().ok_or(Client::Outside)?;
                    return Ok((Home::Block(block), iova));
                }
            }
        }
        let buffer = self.buffer(length)?;
        let iova = buffer.iova();
        Ok((Home::Buffer(buffer), iova))
    }

    fn buffer(&self, length: u64) -> Result<DmaBuffer, Client> {
        // No alignment is asked for: the server aligns to the next power of two, as long as there is room.
        self.device.allocate(length, BufferOptions::default())
    }
}
