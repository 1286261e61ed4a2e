//! pcid's services for a driver, on a function's channel. A request is written whole. Its answer is read: first a
//! length of 8 bytes, then the data. Numbers are little-endian, of fixed size; an alternative is its number in 4
//! bytes (the format of the crate bincode 1; pcid's `driver_interface`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use iommu_protocol::ids::PciAddress;

use crate::error::Error;
use crate::platform::Memory;

/// Numbers of requests and of the answers to them.
const CONFIGURATION: (u32, u32) = (1, 1);
const ENABLE: (u32, u32) = (4, 4);
const INFORMATION: (u32, u32) = (5, 7);
const READ: (u32, u32) = (7, 9);
const WRITE: (u32, u32) = (8, 10);

/// The feature MSI-X: interrupt vectors of the function's own.
const VECTORS: u32 = 1;

/// Fields of the offset at which registers are mapped: the base address register, and a memory type (pcid's scheme,
/// `mmap_prep`).
const BAR_BIT: u32 = 61;
const UNCACHED: u64 = 1 << 59;

/// The longest answer that is read, in bytes.
const LONGEST: u64 = 4096;

/// Place of the table of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VectorTable {
    /// Base address register.
    pub(super) bar: u8,
    /// Bytes from its start.
    pub(super) offset: u32,
}

/// The channel of a function.
#[derive(Debug)]
pub(super) struct Channel(File);

impl Channel {
    pub(super) const fn new(file: File) -> Self {
        Self(file)
    }

    /// The function's address.
    pub(super) fn address(&self) -> io::Result<PciAddress> {
        let answer = self.ask(CONFIGURATION, &[])?;
        let [s0, s1, bus, device, function] = first(&answer)?;
        let segment = u16::from_le_bytes([s0, s1]);
        PciAddress::new(segment, bus, device, function).ok_or(io::ErrorKind::InvalidData.into())
    }

    /// Finds the table of vectors; `Unsupported` if there is none.
    pub(super) fn vectors(&self) -> io::Result<VectorTable> {
        let answer = self.ask(INFORMATION, &VECTORS.to_le_bytes())?;
        // The feature, the kind of information, the register, the offset.
        let [_, _, _, _, _, _, _, _, bar, o0, o1, o2, o3] = first(&answer)?;
        Ok(VectorTable { bar, offset: u32::from_le_bytes([o0, o1, o2, o3]) })
    }

    /// Lets the function use its vectors.
    pub(super) fn enable_vectors(&self) -> io::Result<()> {
        self.ask(ENABLE, &VECTORS.to_le_bytes()).map(|_| ())
    }

    /// Reads 4 bytes of configuration space.
    pub(super) fn read(&self, offset: u16) -> io::Result<u32> {
        Ok(u32::from_le_bytes(first(&self.ask(READ, &offset.to_le_bytes())?)?))
    }

    /// Writes 4 bytes of configuration space.
    pub(super) fn write(&self, offset: u16, value: u32) -> io::Result<()> {
        let [o0, o1] = offset.to_le_bytes();
        let [v0, v1, v2, v3] = value.to_le_bytes();
        self.ask(WRITE, &[o0, o1, v0, v1, v2, v3]).map(|_| ())
    }

    /// Maps registers behind a memory base address register, from the first on: pcid ignores where a mapping is to
    /// begin (it adds the offset to a pointer to nothing), and does not check the length.
    pub(super) fn registers(&self, bar: u8, length: usize) -> Result<Memory, Error> {
        if bar > 5 {
            return Err(Error::Outside);
        }
        Memory::of(descriptor(&self.0)?, u64::from(bar) << BAR_BIT | UNCACHED, length)
    }

    /// Sends a request, and returns the answer behind its number; `Unsupported` if the answer has another number.
    fn ask(&self, (request, answer): (u32, u32), body: &[u8]) -> io::Result<Vec<u8>> {
        let mut file = &self.0;
        let message = [&request.to_le_bytes(), body].concat();
        if file.write(&message)? != message.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let mut bytes = Vec::new();
        file.take(u64::from_le_bytes(length).min(LONGEST)).read_to_end(&mut bytes)?;
        let found = bytes.first_chunk().map(|number| u32::from_le_bytes(*number));
        if found == Some(answer) {
            Ok(bytes.split_off(4))
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

fn first<const N: usize>(bytes: &[u8]) -> io::Result<[u8; N]> {
    bytes.first_chunk().copied().ok_or(io::ErrorKind::InvalidData.into())
}

pub(super) fn descriptor(file: &File) -> io::Result<usize> {
    usize::try_from(file.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
