//! What the device reaches, and what else a session may ask for.

use std::time::Duration;

use edud::{Direction, Driver, Failure};
use iommu_client::handover::{INTERRUPT_VARIABLE, InterruptHandover};
use iommu_client::platform::redox::BufferKey;
use iommu_client::{BufferOptions, Device};
use libredox::call;

use super::Door::{self, Held, Open};

/// Time limit for the report of a fault.
const PATIENCE: Duration = Duration::from_secs(2);

/// Opens other devices through the session.
pub(super) fn other_devices(device: &Device) -> Door {
    let mut tried = 0;
    for number in 0..32_u8 {
        for function in 0..8_u8 {
            let Ok(address) = format!("0000--00--{number:02x}.{function}").parse() else {
                continue;
            };
            if address == device.address() {
                continue;
            }
            tried += 1;
            if device.open_member(address).is_ok() {
                return Open(format!("{address} opens as a member of the group"));
            }
        }
    }
    Held(format!("none of {tried} addresses is of the group"))
}

/// Gives a buffer to a session that does not expect it, with keys that were not made for it.
pub(super) fn other_buffers(driver: &Driver<'_>, device: &Device) -> Door {
    let keys = [[0; 16], [0xff; 16], [1; 16]];
    if keys.into_iter().any(|key| driver.buffer.bring(BufferKey(key)).is_ok()) {
        return Open("a guessed key is accepted".into());
    }
    match device.allocate(1 << 40, BufferOptions::default()) {
        Ok(_) => Open("1 TiB was allocated".into()),
        Err(error) => Held(format!("no session takes a buffer; 1 TiB: {error}")),
    }
}

/// Lets the device read and write memory that it was not granted: the kernel's, registers of a unit and of other
/// devices, addresses beside its own buffer, where buffers of others are in their domains.
pub(super) fn other_memory(driver: &mut Driver<'_>, device: &Device) -> Result<Door, Failure> {
    let own = driver.buffer.iova();
    let places =
        [0, 0x0140_0000, 0x0200_0000, 0xfed9_0000, 0xfeb0_0000, own + 4096, own + (1 << 20)];
    for place in places {
        for direction in [Direction::FromMemory, Direction::ToMemory] {
            driver.edu.dma(place, 64, direction)?;
            if device.wait_fault(PATIENCE)?.is_none() {
                return Ok(Open(format!("no fault at {place:#x}, {direction:?}")));
            }
        }
    }
    Ok(Held(format!("a fault at each of {} addresses, both ways", places.len())))
}

/// Address of messages to local interrupt controllers, and the position of an identifier in it (Intel SDM volume 3,
/// 11.11.1).
const MESSAGES: u64 = 0xfee0_0000;
const IDENTIFIER: u32 = 12;

/// Lets the device write a message: a write like that to any vector is an interrupt to the processor. The vector is
/// the driver's own, so that nothing else is disturbed.
pub(super) fn other_vectors(driver: &mut Driver<'_>) -> Result<Door, Failure> {
    let text = std::env::var(INTERRUPT_VARIABLE)?;
    let own: InterruptHandover = text.parse()?;
    let counter = usize::try_from(own.counter)?;
    let count = || -> Result<u64, Failure> {
        let mut bytes = [0; 8];
        call::read(counter, &mut bytes)?;
        call::write(counter, &bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    };
    let before = count()?;
    driver.buffer.write(0, &u32::from(own.vector).to_le_bytes())?;
    driver.edu.dma(driver.buffer.iova(), 4, Direction::FromMemory)?;
    driver.edu.dma(MESSAGES | u64::from(own.processor) << IDENTIFIER, 4, Direction::ToMemory)?;
    std::thread::sleep(Duration::from_millis(20));
    Ok(match count()? {
        after if after == before => {
            Held(format!("a message written to vector {} raised nothing", own.vector))
        }
        after => Open(format!(
            "a message written by DMA raised vector {}: {before}, then {after}",
            own.vector
        )),
    })
}
