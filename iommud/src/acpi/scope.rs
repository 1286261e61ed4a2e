//! Device scope structures (VT-d 4.1 section 8.3.1).

use super::bytes::u8_at;

/// Bytes before the path.
const FIXED_SIZE: usize = 6;

/// One device scope as it is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'a> {
    /// Offset in bytes from the start of the table.
    pub offset: usize,
    /// 1 endpoint, 2 bridge, 3 I/O APIC, 4 HPET, 5 name space device.
    pub kind: u8,
    /// Bytes of the scope.
    pub length: u8,
    /// Flags (SIDP).
    pub flags: u8,
    /// Id of the I/O APIC, number of the HPET or of the name space device.
    pub enumeration_id: u8,
    /// Bus where the path starts.
    pub start_bus: u8,
    path: &'a [u8],
}

impl Scope<'_> {
    /// Device and function numbers, as in the table.
    pub fn path(&self) -> impl Iterator<Item = (u8, u8)> + '_ {
        self.path.as_chunks::<2>().0.iter().map(|[device, function]| (*device, *function))
    }

    /// Bytes after the last whole pair of the path: 0, or 1 in a broken scope.
    #[must_use]
    pub const fn odd_bytes(&self) -> usize {
        self.path.len() % 2
    }
}

/// The scopes cannot be walked past this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadScopeLength {
    /// Offset in bytes from the start of the table.
    pub offset: usize,
    /// The length it states; 0 when the structure ends before it.
    pub length: u8,
    /// Bytes left in the structure.
    pub room: usize,
}

/// Walks the device scopes of a structure. Each step goes at least six bytes on, or is an error and the
/// last.
#[derive(Clone, Debug)]
pub struct Scopes<'a> {
    offset: usize,
    rest: &'a [u8],
}

impl<'a> Scopes<'a> {
    /// The scopes from byte `at` of a structure that starts at `offset` of the table.
    pub(super) fn new(structure: &'a [u8], offset: usize, at: usize) -> Self {
        let rest = structure.get(at..).unwrap_or_default();
        Self { offset: offset.saturating_add(at), rest }
    }

    fn take(&mut self) -> Option<Scope<'a>> {
        let length = u8_at(self.rest, 1)?;
        let (bytes, rest) = self.rest.split_at_checked(usize::from(length))?;
        let scope = Scope {
            offset: self.offset,
            kind: u8_at(bytes, 0)?,
            length,
            flags: u8_at(bytes, 2)?,
            enumeration_id: u8_at(bytes, 4)?,
            start_bus: u8_at(bytes, 5)?,
            path: bytes.get(FIXED_SIZE..)?,
        };
        self.offset = self.offset.saturating_add(bytes.len());
        self.rest = rest;
        Some(scope)
    }
}

impl<'a> Iterator for Scopes<'a> {
    type Item = Result<Scope<'a>, BadScopeLength>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        Some(self.take().ok_or_else(|| {
            let length = u8_at(self.rest, 1).unwrap_or(0);
            let room = core::mem::take(&mut self.rest).len();
            BadScopeLength { offset: self.offset, length, room }
        }))
    }
}
