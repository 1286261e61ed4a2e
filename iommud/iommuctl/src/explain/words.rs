//! Causes in words: where the fault was, what usually causes it, and what to try.

use super::cause::{Cause, NEAR};
use crate::names;
use crate::output::size;
use crate::server::domain::{Buffer, Mapping, Unmapped};

/// What is known of the place; `None` where it says nothing.
pub(super) fn place(cause: &Cause, owner: &str) -> Option<String> {
    let told = match cause {
        Cause::Forbidden(mapping) => {
            format!("The address is inside {}: {}.", mapped(mapping), mapping.access())
        }
        Cause::Allowed(mapping) => {
            format!("The address is inside {}, which allows the access now.", mapped(mapping))
        }
        Cause::NotGranted(buffer) => {
            format!(
                "The address belongs to {}, no part of which is granted there now.",
                held(buffer)
            )
        }
        Cause::Unmapped(Unmapped { first, last, age }) => {
            let bytes = size(last.saturating_sub(*first).saturating_add(1));
            format!("{bytes} at {first:#x} were mapped there, unmapped {age} ms ago by {owner}.")
        }
        Cause::Behind(mapping, 0) => {
            format!("The address is directly behind the end of {}.", mapped(mapping))
        }
        Cause::Behind(mapping, distance) => {
            format!("The address is {} behind the end of {}.", size(*distance), mapped(mapping))
        }
        Cause::Before(mapping, distance) => {
            format!("The address is {} before {}.", size(*distance), mapped(mapping))
        }
        Cause::Foreign(domain, mapping) => {
            format!("In domain {domain}, another owner's, the address is in {}.", mapped(mapping))
        }
        Cause::TooHigh(last) => format!("The domain of the device ends at {last:#x}."),
        Cause::Nowhere => format!("No listed mapping of its domain is within {}.", size(NEAR)),
        _ => return None,
    };
    Some(told)
}

fn mapped(mapping: &Mapping) -> String {
    let Mapping { device, slot, first, .. } = mapping;
    let device = names::address(*device);
    format!("buffer {slot} of {device} ({} mapped at {first:#x})", size(mapping.bytes()))
}

fn held(buffer: &Buffer) -> String {
    let device = names::address(buffer.device);
    format!("buffer {} of {device} ({})", buffer.slot, size(buffer.bytes))
}

/// What usually causes it, and what to try.
pub(super) const fn advice(cause: &Cause) -> &'static str {
    match cause {
        Cause::Forbidden(_)
        | Cause::Allowed(_)
        | Cause::NotGranted(_)
        | Cause::Behind(..)
        | Cause::Before(..)
        | Cause::Unmapped(_)
        | Cause::Foreign(..)
        | Cause::TooHigh(_)
        | Cause::Nowhere => of_place(cause),
        Cause::Notice => "The unit reports none of its faults until an owner attaches it again.",
        Cause::Unit => {
            "No device did this. A unit that fails is brought up again. Try: iommuctl status, iommuctl units."
        }
        Cause::Unknown => {
            "A device that makes up requester ids, or one that was just plugged in. Try: iommuctl rescan."
        }
        Cause::InterruptRequest => {
            "The unit remaps interrupts, and has no entry for this one. \
             Usually the device has an old message address. Try: set its interrupts up again."
        }
        Cause::DeviceCache => {
            "The device uses translations of its own (ATS), asks for pages, or names processes (PASID). \
             iommud grants none of it. Try: turn these off in the device."
        }
        Cause::Tables => {
            "No driver causes this: memory of the tables is damaged, or iommud has a defect. \
             Try: iommuctl status, and report it."
        }
        Cause::Window => {
            "Addresses in the window of interrupts are no memory. \
             Usually a wrong address in a descriptor. Try: compare it with the address that the buffer tells."
        }
        Cause::Early => {
            "It was blocked then and is attached now: it ran before its driver attached it. \
             Try: reset the device, attach, and only then let it master the bus."
        }
        Cause::NotAttached => {
            "Usually the device still runs after its driver ended. \
             Try: start the driver again, so that it resets the device."
        }
        Cause::Policy(true) => {
            "No driver has claimed it. Policy compat allows all memory but the server's own. \
             Usually a wrong address. Try: a driver that opens the device through iommud."
        }
        Cause::Policy(false) => {
            "No driver has claimed it, and policy does not allow the access. \
             Try: a driver that opens it through iommud, or policy compat for it."
        }
        Cause::NoAddress => "The unit did not record where. Look at the reason.",
    }
}

const fn of_place(cause: &Cause) -> &'static str {
    match cause {
        Cause::Forbidden(_) => {
            "Usually the direction of the transfer is wrong. \
             Try: map or grant the buffer for what the transfer does."
        }
        Cause::Allowed(_) => {
            "Usually the transfer began before the mapping was made. \
             Try: start it only when the mapping is there."
        }
        Cause::NotGranted(_) => {
            "Usually a use after revoke, or a transfer that began before its grant. \
             Try: wait for the device's completion before revoking."
        }
        Cause::Unmapped(_) => {
            "Usually a use after unmap: the device was not done with the buffer. \
             Try: wait for the device's completion before unmapping or releasing."
        }
        Cause::Behind(..) => {
            "Usually a transfer longer than its buffer. Try: compare the length in the descriptor."
        }
        Cause::Before(..) => {
            "Usually a wrong offset, or a buffer that was there and is gone. \
             Try: compare the address in the descriptor."
        }
        Cause::Foreign(..) => {
            "Addresses of one domain mean nothing in another. \
             Usually an address was handed from driver to driver. Try: import the buffer into the session."
        }
        Cause::TooHigh(_) => {
            "Usually a physical address, or one cut from a wrong pointer. \
             Try: give the device the address that the buffer tells."
        }
        _ => {
            "Usually a use after unmap, or a physical address given to the device. \
             Try: give the device the address that the buffer tells, and unmap only what is complete."
        }
    }
}
