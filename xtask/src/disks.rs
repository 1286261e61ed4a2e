//! NVMe controllers of the guest.

use anyhow::{Context, Result};

use crate::guest::Parts;
use crate::qemu::Machine;

/// Bytes of the disks whose data is compared.
const DISK: u64 = 64 << 20;
const SECOND_DISK: u64 = 16 << 20;

/// Adds three NVMe controllers: one with two namespaces, one with requests of 400 ms each, and one on a bus that the
/// unit does not translate. The guest names them in the order of their addresses.
pub(crate) fn add(machine: &mut Machine, parts: &Parts) -> Result<()> {
    for (name, length) in [("confined", DISK), ("second", SECOND_DISK), ("open", DISK)] {
        let path = parts.directory.join(format!("{name}.disk"));
        let file = std::fs::File::create(&path)?;
        file.set_len(length).with_context(|| format!("sizing {}", path.display()))?;
        let drive = format!("if=none,id={name},format=raw,cache=unsafe,file={}", path.display());
        machine.args(["-drive", &drive]);
    }
    let slow = "if=none,id=slow,driver=null-co,size=64M,read-zeroes=on,latency-ns=400000000";
    machine.args(["-drive", slow]);
    for device in [
        "nvme,id=first,bus=pcie.0,addr=08.0,serial=confined",
        "nvme-ns,bus=first,nsid=1,drive=confined",
        "nvme-ns,bus=first,nsid=2,drive=second,logical_block_size=4096,physical_block_size=4096",
        "nvme,bus=pcie.0,addr=09.0,serial=slow,drive=slow",
        "pxb-pcie,id=free,bus_nr=32,bus=pcie.0,addr=0a.0,bypass_iommu=on",
        "pcie-root-port,id=freeport,bus=free,chassis=9",
        "nvme,bus=freeport,serial=open,drive=open",
    ] {
        machine.args(["-device", device]);
    }
    Ok(())
}
