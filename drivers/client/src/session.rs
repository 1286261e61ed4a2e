//! A session's handle, and calls on it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use iommu_protocol::ids::PciAddress;
use iommu_protocol::status::Refusal;
use iommu_protocol::wire::{Operation, ReplyHeader, RequestHeader, Short, VERSION, Wire};

use crate::error::{Error, ProtocolError};
use crate::sanitizer::Sanitizer;
use crate::transport::{Handle, Transport};

/// A writable handle on a device. Closing it gives the device back to policy and ends all its mappings.
pub(crate) struct Session {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) handle: Handle,
    /// Number of this session among those of the process.
    pub(crate) number: u64,
    cookie: AtomicU64,
    /// Watches the memory of this session, if the driver wants it.
    sanitizer: OnceLock<Arc<Sanitizer>>,
}

/// Number of the next session of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Session {
    pub(crate) fn new(transport: Arc<dyn Transport>, handle: Handle) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cookie = AtomicU64::new(1);
        Self { transport, handle, number, cookie, sanitizer: OnceLock::new() }
    }

    /// Watches the memory of this session from now on.
    pub(crate) fn sanitize(&self, device: PciAddress) -> &Sanitizer {
        self.sanitizer.get_or_init(|| Arc::new(Sanitizer::new(device)))
    }

    /// The sanitizer, if one watches this session.
    #[inline]
    pub(crate) fn sanitizer(&self) -> Option<&Arc<Sanitizer>> {
        self.sanitizer.get()
    }

    /// Runs one operation without items.
    pub(crate) fn call<Result_: Wire>(
        &self,
        operation: Operation,
        request: &impl Wire,
    ) -> Result<Result_, Error> {
        self.call_with(operation, request, &[], 0, |body| Ok(Result_::decode(body)?))
    }

    /// Runs one operation, with bytes behind its request structure and room for `extra` bytes behind its result
    /// structure. `read` gets the result structure and the bytes behind it.
    pub(crate) fn call_with<Request: Wire, T>(
        &self,
        operation: Operation,
        request: &Request,
        items: &[u8],
        extra: usize,
        read: impl FnOnce(&[u8]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let head = RequestHeader::SIZE + Request::SIZE;
        let length = head + items.len();
        let room = operation.payload_size() + items.len().max(extra);
        let mut payload = vec![0; room];
        let header = RequestHeader {
            version: VERSION,
            operation: operation.code(),
            length: u32::try_from(length).map_err(|_| Refusal::BadLength)?,
            cookie: self.cookie.fetch_add(1, Ordering::Relaxed),
        };
        header.encode(&mut payload)?;
        request.encode(part(&mut payload, RequestHeader::SIZE)?)?;
        part(&mut payload, head)?
            .get_mut(..items.len())
            .ok_or(ProtocolError::Length)?
            .copy_from_slice(items);
        let length = self.transport.call(self.handle, &mut payload, length)?;
        let reply = payload.get(..length).ok_or(ProtocolError::Length)?;
        read(checked(&header, reply)?)
    }
}

fn part(payload: &mut [u8], start: usize) -> Result<&mut [u8], ProtocolError> {
    payload.get_mut(start..).ok_or(ProtocolError::Length)
}

/// Checks a reply, and returns the bytes behind the header if it is not a refusal.
fn checked<'a>(request: &RequestHeader, reply: &'a [u8]) -> Result<&'a [u8], Error> {
    let header = ReplyHeader::decode(reply)?;
    if header.version != VERSION {
        return Err(ProtocolError::Version(header.version).into());
    }
    if (header.operation, header.cookie) != (request.operation, request.cookie) {
        return Err(ProtocolError::Mismatch.into());
    }
    if usize::try_from(header.length) != Ok(reply.len()) {
        return Err(ProtocolError::Length.into());
    }
    if header.refusal != 0 {
        let refusal =
            Refusal::from_code(header.refusal).ok_or(ProtocolError::Refusal(header.refusal))?;
        let items = [Operation::Batch.code(), Operation::MapList.code()];
        return Err(if items.contains(&request.operation) {
            Error::RefusedItem { refusal, item: header.item }
        } else {
            refusal.into()
        });
    }
    reply.get(ReplyHeader::SIZE..).ok_or_else(|| ProtocolError::Length.into())
}

impl Drop for Session {
    fn drop(&mut self) {
        self.transport.close(self.handle);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session").field(&self.handle).finish()
    }
}

impl From<Short> for Error {
    fn from(_: Short) -> Self {
        ProtocolError::Length.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: RequestHeader =
        RequestHeader { version: VERSION, operation: 2, length: 24, cookie: 7 };

    fn reply(change: impl FnOnce(&mut ReplyHeader)) -> Result<usize, Error> {
        let mut header = ReplyHeader {
            version: VERSION,
            operation: 2,
            length: 32,
            cookie: 7,
            ..Default::default()
        };
        change(&mut header);
        let mut bytes = [0; 32];
        header.encode(&mut bytes).unwrap();
        checked(&REQUEST, &bytes).map(<[u8]>::len)
    }

    #[test]
    fn a_reply_must_be_the_requests_own() {
        assert_eq!(reply(|_| {}).unwrap(), 8);
        let breach = |result| match result {
            Err(Error::ProtocolError(breach)) => breach,
            other => panic!("{other:?}"),
        };
        assert_eq!(breach(reply(|r| r.version = 9)), ProtocolError::Version(9));
        assert_eq!(breach(reply(|r| r.cookie = 8)), ProtocolError::Mismatch);
        assert_eq!(breach(reply(|r| r.operation = 3)), ProtocolError::Mismatch);
        assert_eq!(breach(reply(|r| r.length = 24)), ProtocolError::Length);
        assert_eq!(breach(reply(|r| r.refusal = 999)), ProtocolError::Refusal(999));
        assert!(matches!(reply(|r| r.refusal = 5), Err(Error::Refused(Refusal::Busy))));
        assert_eq!(breach(checked(&REQUEST, &[]).map(<[u8]>::len)), ProtocolError::Length);
    }
}
