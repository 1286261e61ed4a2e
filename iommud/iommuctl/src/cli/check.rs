//! The self-test.

use std::io::Write;

use iommu_client::{Connection, Device};
use iommu_protocol::ids::PciAddress;

use super::outcome::{CommandError, Found};
use crate::check::{self, Kind, PickError};
use crate::names;
use crate::output::{Look, Tone, document, write_json, write_lines};
use crate::server::machine::Machine;

pub(super) fn run(
    wanted: Option<PciAddress>,
    force: bool,
    server: &Connection,
    json: bool,
    look: Look,
    out: &mut dyn Write,
) -> Result<Found, CommandError> {
    let (kind, address) = pick(&Machine::read(server)?, wanted, force)?;
    let device = Device::claim(server, address)?;
    let (permission, mut offender) = check::start(kind, &device)?;
    let mut buffer = check::memory(&device, offender.as_ref())?;
    let checked = check::check(&device, offender.as_mut(), &mut buffer);
    drop(offender); // bus mastering off, before the memory is anybody else's
    drop(buffer);
    let checked = checked?;
    if json {
        write_json(out, &document("check", checked.json()))?;
    } else {
        let text = checked.text();
        let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let tone = if checked.confines() { Tone::Good } else { Tone::Bad };
        write_lines(out, look, &format!("{}\n{rest}", look.paint(tone, head)))?;
    }
    // Without a detach the session ends attached, and the group of a device that may write later stays blocked.
    if checked.quiet {
        device.detach(permission).map_err(iommu_client::Error::from)?;
    }
    Ok(if checked.confines() { Found::Nothing } else { Found::Something })
}

/// The device to test with: the one that was asked for, or an edu device that nobody has claimed. A disk is not taken
/// without being asked for: a driver that knows nothing of iommud may be using it.
fn pick(
    machine: &Machine,
    wanted: Option<PciAddress>,
    force: bool,
) -> Result<(Kind, PciAddress), PickError> {
    let drivable = |device| Some((check::drivable(device)?, device.address()));
    if let Some(address) = wanted {
        let device = machine.devices.iter().find(|device| device.address() == address);
        let unknown = || PickError::Unknown(names::address(address));
        return match device.and_then(drivable).ok_or_else(unknown)? {
            (Kind::Nvme, address) if !force => Err(PickError::Disk(names::address(address))),
            picked => Ok(picked),
        };
    }
    let free = machine.devices.iter().filter(|device| device.owner.is_none());
    let free: Vec<_> = free.filter_map(drivable).collect();
    let edu = free.iter().find(|(kind, _)| *kind == Kind::Edu).copied();
    edu.ok_or_else(|| PickError::Nobody {
        candidates: free.iter().map(|(_, address)| names::address(*address)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::server;

    fn address(device: u8) -> PciAddress {
        PciAddress::new(0, if device == 0 { 1 } else { 0 }, device, 0).unwrap()
    }

    #[test]
    fn a_disk_is_taken_only_by_name() {
        let mut machine = Machine::read(&server()).unwrap();
        let disk = address(0);
        assert_eq!(pick(&machine, None, true), Ok((Kind::Edu, address(4))));
        assert_eq!(pick(&machine, Some(disk), true), Ok((Kind::Nvme, disk)));
        let named = PickError::Disk("0000:01:00.0".into());
        assert_eq!(pick(&machine, Some(disk), false), Err(named));
        machine.devices.retain(|device| device.address() != address(4));
        assert_eq!(pick(&machine, None, true), Err(PickError::Nobody { candidates: Vec::new() }));
        machine.devices.iter_mut().for_each(|device| device.owner = None);
        let candidates = vec!["0000:01:00.0".to_owned()];
        assert_eq!(pick(&machine, None, true), Err(PickError::Nobody { candidates }));
    }

    #[test]
    fn a_device_that_nobody_can_drive_is_told() {
        let machine = Machine::read(&server()).unwrap();
        let port = PciAddress::new(0, 0, 0x1c, 0).unwrap();
        assert_eq!(
            pick(&machine, Some(port), true),
            Err(PickError::Unknown("0000:00:1c.0".into()))
        );
    }
}
