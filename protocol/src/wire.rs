//! The operations of a session: one structure each for request and result.
//!
//! A call carries one request in its payload. The reply is written to the start of the same payload, which therefore
//! has room for the longer of the two (see [`Operation::payload_size`]). All numbers are little-endian. Every
//! structure has its natural C layout without padding, asserted at compile time.
//!
//! ```text
//! request  RequestHeader (16 bytes) + the operation's request structure [+ items of a batch, pages of a list]
//! reply    ReplyHeader   (24 bytes) + the operation's result structure  [+ results, regions]
//! ```
//!
//! A refused request has a reply header whose `refusal` is not 0 and no result structure.

use bitflags::bitflags;

use crate::status::Refusal;

/// The protocol version this crate speaks.
pub const VERSION: u16 = 1;

/// The most items that one batch may hold.
pub const MAX_BATCH: usize = 1024;

/// The most pages that one list may name: 32 MiB.
pub const MAX_LIST: usize = 8192;

/// The longest request or reply in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The bytes do not hold a structure of this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short;

/// A number with a fixed little-endian form.
trait Number: Copy {
    const SIZE: usize;
    fn put(self, out: &mut [u8]);
    fn get(bytes: &[u8]) -> Option<Self>;
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Number for $type {
            const SIZE: usize = size_of::<$type>();
            fn put(self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_le_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}
number!(u16, u32, u64);

/// A structure of the protocol.
pub trait Wire: Sized {
    /// Its size in bytes, a multiple of 8.
    const SIZE: usize;
    /// Writes the structure to the start of `out`.
    ///
    /// # Errors
    /// `Short` when `out` has fewer than [`Self::SIZE`] bytes; nothing is written.
    fn encode(&self, out: &mut [u8]) -> Result<(), Short>;
    /// Reads the structure from the start of `bytes`; later bytes are ignored.
    ///
    /// # Errors
    /// `Short` when `bytes` has fewer than [`Self::SIZE`] bytes.
    fn decode(bytes: &[u8]) -> Result<Self, Short>;
}

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $offset:literal,)* } = $size:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            assert!($size % 8 == 0);
            let mut sum = 0;
            $(
                assert!(core::mem::offset_of!($name, $field) == $offset);
                sum += size_of::<$type>();
            )*
            assert!(sum == $size, "no padding");
        };

        impl Wire for $name {
            const SIZE: usize = $size;
            fn encode(&self, out: &mut [u8]) -> Result<(), Short> {
                // The compiler knows this length, so that no field is checked by itself.
                let out = out.first_chunk_mut::<$size>().ok_or(Short)?;
                $(self.$field.put(out.get_mut($offset..$offset + <$type>::SIZE).ok_or(Short)?);)*
                Ok(())
            }
            fn decode(bytes: &[u8]) -> Result<Self, Short> {
                let bytes = bytes.first_chunk::<$size>().ok_or(Short)?;
                $(let $field = bytes
                    .get($offset..$offset + <$type>::SIZE)
                    .and_then(<$type as Number>::get)
                    .ok_or(Short)?;)*
                Ok(Self { $($field,)* })
            }
        }
    )*};
}

wire! {
    /// The header of every request.
    RequestHeader {
        /// [`VERSION`].
        version: u16 = 0,
        /// An [`Operation`] code.
        operation: u16 = 2,
        /// Length of the whole request in bytes, this header included.
        length: u32 = 4,
        /// Returned in the reply unchanged.
        cookie: u64 = 8,
    } = 16;

    /// The header of every reply.
    ReplyHeader {
        /// [`VERSION`], whatever version the request has.
        version: u16 = 0,
        /// The request's operation code.
        operation: u16 = 2,
        /// Length of the whole reply in bytes, this header included.
        length: u32 = 4,
        /// The request's cookie.
        cookie: u64 = 8,
        /// 0, or a [`Refusal`] code.
        refusal: u16 = 16,
        /// Zero.
        reserved: u16 = 18,
        /// In a refused batch or list: the index of the item or page that was refused; else 0.
        item: u32 = 20,
    } = 24;

    /// A request without arguments: query, attach, detach, reserved regions.
    Empty {
        /// Zero.
        reserved: u64 = 0,
    } = 8;

    /// Properties of a session.
    QueryResult {
        /// [`SessionFlags`].
        flags: u32 = 0,
        /// The group of the device.
        group: u32 = 4,
        /// How often this PCI address has been taken by a new device since start, from 1.
        generation: u32 = 8,
        /// PCI segment of the device.
        segment: u16 = 12,
        /// Requester id of the device.
        requester: u16 = 14,
        /// Lowest I/O virtual address that allocation hands out.
        iova_first: u64 = 16,
        /// Highest I/O virtual address (inclusive) that a mapping may cover.
        iova_last: u64 = 24,
        /// Bit n set: leaves of 2^n bytes exist.
        page_sizes: u64 = 32,
        /// Bytes of buffers this client may still allocate.
        memory_left: u64 = 40,
        /// Mappings this client may still make.
        mappings_left: u32 = 48,
        /// Faults of this device lost since start because they were not read in time.
        faults_lost: u32 = 52,
    } = 56;

    /// Requests a buffer.
    Allocate {
        /// Length in bytes, a multiple of 4096.
        length: u64 = 0,
        /// Alignment of the I/O virtual address: 0, or a power of two from 4096 on.
        alignment: u64 = 8,
        /// The I/O virtual address range may not cross a multiple of this: 0 (no limit) or a power of two
        /// not below the length.
        boundary: u64 = 16,
        /// [`Access`] of the mapping.
        access: u32 = 24,
        /// [`AllocateFlags`].
        flags: u32 = 28,
    } = 32;

    /// A new buffer.
    AllocateResult {
        /// First I/O virtual address (a bus address when the session is not confined).
        iova: u64 = 0,
        /// Length in bytes.
        length: u64 = 8,
        /// The buffer's slot in this session.
        slot: u32 = 16,
        /// Zero.
        reserved: u32 = 20,
    } = 24;

    /// Names a buffer: release, query buffer.
    BufferRequest {
        /// The buffer's slot in this session.
        slot: u32 = 0,
        /// Zero.
        reserved: u32 = 4,
    } = 8;

    /// Properties of a buffer.
    BufferResult {
        /// First I/O virtual address of its first mapping in this session, or the range reserved for it.
        iova: u64 = 0,
        /// Length in bytes.
        length: u64 = 8,
        /// Live mappings of it in this session's domain.
        mappings: u32 = 16,
        /// Entries that an IOTLB needs for these mappings: leaves of the page table. Those beyond 64 tables are not
        /// counted.
        iotlb_entries: u32 = 20,
    } = 24;

    /// Maps a range of a buffer.
    Map {
        /// The buffer's slot in this session.
        slot: u32 = 0,
        /// [`Access`] of the mapping.
        access: u32 = 4,
        /// First byte in the buffer, a multiple of 4096.
        offset: u64 = 8,
        /// Length in bytes, a multiple of 4096.
        length: u64 = 16,
        /// With [`MapFlags::FIXED`]: the address to map at. Else 0.
        iova: u64 = 24,
        /// [`MapFlags`].
        flags: u32 = 32,
        /// Zero.
        reserved: u32 = 36,
    } = 40;

    /// Address of a new mapping.
    MapResult {
        /// First I/O virtual address.
        iova: u64 = 0,
    } = 8;

    /// Ends one mapping, which must be given exactly as it was made.
    Unmap {
        /// First I/O virtual address.
        iova: u64 = 0,
        /// Length in bytes.
        length: u64 = 8,
    } = 16;

    /// Lets the device reach a range of a buffer at the buffer's own reserved address (grant), or takes
    /// the range back (revoke, `access` 0), for confinement transfer by transfer.
    Grant {
        /// The buffer's slot in this session; it was allocated with [`AllocateFlags::UNMAPPED`].
        slot: u32 = 0,
        /// [`Access`] of the mapping.
        access: u32 = 4,
        /// First byte in the buffer, a multiple of 4096.
        offset: u64 = 8,
        /// Length in bytes, a multiple of 4096.
        length: u64 = 16,
    } = 24;

    /// The header of the items of a batch. All items take effect, or none.
    Batch {
        /// Number of [`BatchItem`] that follow, 1 to [`MAX_BATCH`].
        count: u32 = 0,
        /// Zero.
        reserved: u32 = 4,
    } = 8;

    /// One map, unmap, grant or revoke in a batch. The reply has one [`MapResult`] an item, with address 0 for an
    /// unmap or a revoke. What a batch unmaps or revokes is free again only after the batch: a grant of a range that
    /// the same batch revokes is refused `Mapped`.
    BatchItem {
        /// [`Operation::Map`], [`Operation::Unmap`], [`Operation::Grant`] or [`Operation::Revoke`].
        operation: u16 = 0,
        /// Zero.
        reserved: u16 = 2,
        /// [`MapFlags`] of a map; else 0.
        flags: u32 = 4,
        /// Slot of the buffer; 0 in an unmap.
        slot: u32 = 8,
        /// [`Access`] of a map or grant; else 0.
        access: u32 = 12,
        /// First byte in the buffer, a multiple of 4096; 0 in an unmap.
        offset: u64 = 16,
        /// Length in bytes, see [`Map::length`], [`Unmap::length`] and [`Grant::length`].
        length: u64 = 24,
        /// I/O virtual address, see [`Map::iova`] and [`Unmap::iova`]; 0 in a grant or revoke.
        iova: u64 = 32,
    } = 40;

    /// Maps pages of a buffer, in any order, to consecutive addresses. It is followed by `count` page numbers
    /// of 32 bits: page n is the buffer's bytes from n * 4096 on. They are one mapping, which one unmap ends;
    /// each page counts as one of the mappings that a client may make.
    MapList {
        /// The buffer's slot in this session.
        slot: u32 = 0,
        /// [`Access`] of the mapping.
        access: u32 = 4,
        /// [`MapFlags`].
        flags: u32 = 8,
        /// Number of pages, 1 to [`MAX_LIST`].
        count: u32 = 12,
        /// With [`MapFlags::FIXED`]: the address to map the first page at. Else 0.
        iova: u64 = 16,
    } = 24;

    /// The header of the regions in a reserved-regions reply.
    RegionsResult {
        /// Number of [`Region`] that follow.
        count: u32 = 0,
        /// Zero.
        reserved: u32 = 4,
    } = 8;

    /// I/O virtual addresses that no client may map or unmap in the domains of this device.
    Region {
        /// First address.
        first: u64 = 0,
        /// Last address (inclusive).
        last: u64 = 8,
        /// A [`RegionKind`] code.
        kind: u32 = 16,
        /// Zero.
        reserved: u32 = 20,
    } = 24;
}

bitflags! {
    /// Accesses of a device that a mapping allows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Access: u32 {
        /// The device may read memory.
        const READ = 1;
        /// The device may write memory.
        const WRITE = 2;
    }

    /// How a buffer is allocated.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AllocateFlags: u32 {
        /// The addresses that the device uses lie anywhere in its reach, not only below 4 GiB.
        const ABOVE_4G = 1;
        /// Addresses are reserved but nothing is mapped: the client grants ranges one by one.
        const UNMAPPED = 2;
    }

    /// How a range is mapped.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// Map at [`Map::iova`] or refuse.
        const FIXED = 1;
        /// The addresses lie anywhere in the device's reach, like with [`AllocateFlags::ABOVE_4G`].
        const ABOVE_4G = 2;
    }

    /// The state of a session.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SessionFlags: u32 {
        /// The device is in this session's domain.
        const ATTACHED = 1;
        /// A unit confines the device. Without this flag addresses are bus addresses and the device
        /// reaches all memory.
        const CONFINED = 2;
        /// The unit of the device has failed.
        const UNIT_FAILED = 4;
        /// Fault records are waiting to be read.
        const FAULTS = 8;
        /// The device had so many faults that they are no longer reported. Attaching it ends this.
        const SILENCED = 16;
        /// The device was in use when its last session, its unit or a server ended: requests of that time may still be
        /// on their way. To be quieted before it is attached.
        const UNQUIESCED = 32;
    }
}

/// Why a region is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// Firmware requires an identity mapping here (VT-d RMRR, AMD-Vi IVMD).
    Firmware = 1,
    /// Writes here are interrupts (`0xfee00000` to `0xfeefffff`).
    Interrupt = 2,
    /// Firmware requires that these addresses are not used (AMD-Vi IVMD exclusion).
    Exclusion = 3,
    /// Not memory, and below 4 GiB. Registers of devices may be here, and a request from one device to another may
    /// reach them without passing a unit.
    Registers = 4,
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $request:ty => $result:ty;)*) => {
        /// The operations of a session.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Operation { $($(#[$doc])* $name = $code,)* }

        impl Operation {
            /// Every operation.
            pub const ALL: &'static [Operation] = &[$(Operation::$name,)*];

            /// The operation with this code.
            #[must_use]
            pub const fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// The code on the wire.
            #[must_use]
            pub const fn code(self) -> u16 {
                match self { $(Self::$name => $code,)* }
            }

            /// Size of the request structure after the header.
            #[must_use]
            pub const fn request_size(self) -> usize {
                match self { $(Self::$name => <$request as Wire>::SIZE,)* }
            }

            /// Size of the result structure after the header.
            #[must_use]
            pub const fn result_size(self) -> usize {
                match self { $(Self::$name => <$result as Wire>::SIZE,)* }
            }
        }
    };
}

operations! {
    /// Reads the properties of the session.
    Query = 1, Empty => QueryResult;
    /// Puts the device into the session's domain. The reply is the permission to enable bus mastering.
    Attach = 2, Empty => Empty;
    /// Puts the device back under the policy of its group.
    Detach = 3, Empty => Empty;
    /// Allocates a buffer, and maps it unless [`AllocateFlags::UNMAPPED`] is set.
    Allocate = 4, Allocate => AllocateResult;
    /// Ends all mappings of a buffer in this session and gives up its slot.
    Release = 5, BufferRequest => Empty;
    /// Reads the properties of a buffer.
    QueryBuffer = 6, BufferRequest => BufferResult;
    /// Maps a range of a buffer.
    Map = 7, Map => MapResult;
    /// Ends one mapping.
    Unmap = 8, Unmap => Empty;
    /// Several maps, unmaps, grants and revokes, all or nothing.
    Batch = 9, Batch => Empty;
    /// Lets the device reach a range of a buffer allocated unmapped.
    Grant = 10, Grant => MapResult;
    /// Takes such a range back.
    Revoke = 11, Grant => Empty;
    /// The reserved regions of the device.
    Regions = 12, Empty => RegionsResult;
    /// Maps pages of a buffer to consecutive addresses.
    MapList = 13, MapList => MapResult;
}

impl Operation {
    /// Bytes that a payload needs to hold the request and the reply of this operation, without items.
    #[must_use]
    pub const fn payload_size(self) -> usize {
        let request = RequestHeader::SIZE + self.request_size();
        let reply = ReplyHeader::SIZE + self.result_size();
        if request > reply { request } else { reply }
    }
}

/// Checks a request's header against its payload and the operations known here.
///
/// # Errors
/// `BadLength` when the bytes do not hold a header, or `length` disagrees with `bytes` or with the
/// operation; `BadVersion`; `BadOperation`.
pub fn parse_header(bytes: &[u8]) -> Result<(RequestHeader, Operation, &[u8]), Refusal> {
    let header = RequestHeader::decode(bytes).map_err(|Short| Refusal::BadLength)?;
    if header.version != VERSION {
        return Err(Refusal::BadVersion);
    }
    let operation = Operation::from_code(header.operation).ok_or(Refusal::BadOperation)?;
    let length = usize::try_from(header.length).map_err(|_| Refusal::BadLength)?;
    let body = bytes.get(RequestHeader::SIZE..length).ok_or(Refusal::BadLength)?;
    let exact = operation.request_size();
    let fits = if matches!(operation, Operation::Batch | Operation::MapList) {
        body.len() >= exact
    } else {
        body.len() == exact
    };
    if fits { Ok((header, operation, body)) } else { Err(Refusal::BadLength) }
}
