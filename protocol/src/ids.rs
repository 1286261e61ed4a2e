//! Identities that both sides use.

use core::fmt;
use core::str::FromStr;

/// The 16-bit identity a PCI function puts on its requests: bus 15:8, device 7:3, function 2:0
/// (PCI Express Base Specification 6.0, section 2.2.6.2). VT-d calls it source-id, AMD-Vi DeviceID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequesterId(pub u16);

impl RequesterId {
    /// Builds the id from its parts; `None` when `device` is above 31 or `function` above 7.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self(u16::from_be_bytes([bus, device << 3 | function])))
    }

    /// Bus number, 0 to 255.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.devfn() >> 3
    }

    /// Function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.devfn() & 7
    }

    /// Device and function as one byte: the index into a context table.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.0.to_be_bytes()[1]
    }
}

impl fmt::Debug for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

/// A PCI function of the machine: segment and requester id. Written as pcid writes it,
/// `SSSS--BB--DD.F` in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// PCI segment group, 0 on most machines.
    pub segment: u16,
    /// Bus, device and function.
    pub requester: RequesterId,
}

impl PciAddress {
    /// Builds an address; `None` when `device` is above 31 or `function` above 7.
    #[must_use]
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        match RequesterId::new(bus, device, function) {
            Some(requester) => Some(Self { segment, requester }),
            None => None,
        }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.requester;
        write!(f, "{:04x}--{:02x}--{:02x}.{:x}", self.segment, id.bus(), id.device(), id.function())
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a name in the form that [`PciAddress`] is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadName;

impl FromStr for PciAddress {
    type Err = BadName;

    /// Accepts exactly what `Display` writes: lower-case hexadecimal, full width.
    fn from_str(text: &str) -> Result<Self, BadName> {
        let bytes: &[u8; 14] = text.as_bytes().try_into().map_err(|_| BadName)?;
        let [s0, s1, s2, s3, b'-', b'-', b0, b1, b'-', b'-', d0, d1, b'.', f0] = *bytes else {
            return Err(BadName);
        };
        let high = hex_pair(s0, s1)?;
        let low = hex_pair(s2, s3)?;
        Self::new(u16::from_be_bytes([high, low]), hex_pair(b0, b1)?, hex_pair(d0, d1)?, hex(f0)?)
            .ok_or(BadName)
    }
}

fn hex_pair(high: u8, low: u8) -> Result<u8, BadName> {
    Ok(hex(high)? << 4 | hex(low)?)
}

fn hex(digit: u8) -> Result<u8, BadName> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(BadName),
    }
}

/// A buffer's number in its session. Slots are local to a session: the slot of one session means nothing in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

#[cfg(test)]
mod tests {
    extern crate alloc;
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn name_is_written_as_pcid_writes_it() {
        let address = PciAddress::new(0, 0x3a, 0x1f, 7).unwrap();
        assert_eq!(address.to_string(), "0000--3a--1f.7");
        assert_eq!(address.requester.0, 0x3aff);
        assert_eq!("0000--3a--1f.7".parse(), Ok(address));
    }

    #[test]
    fn only_the_exact_form_is_a_name() {
        for bad in [
            "",
            "0000--3a--1f.8",
            "0000--3a--20.0",
            "0000--3A--1f.7",
            "0000:3a:1f.7",
            "000--3a--1f.7",
            "0000--3a--1f.7 ",
            "0000--3a--1f.+",
        ] {
            assert_eq!(bad.parse::<PciAddress>(), Err(BadName), "{bad}");
        }
    }
}
