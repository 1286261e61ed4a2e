//! The scheme's operations, executed by the server's thread.

use std::time::{Duration, Instant};

use iommu_client::platform::Memory;
use iommu_client::transport::{self, Transport};
use iommu_client::{Error, ProtocolError};
use iommu_protocol::wire::RequestHeader;
use iommu_protocol::{Refusal, wire::Wire};
use iommud::policy::ClientId;
use iommud::server::{Caller, Handle};

use super::Model;
use super::world::{Counts, Side};

/// Interval at which a waiting client checks its session.
const SLICE: Duration = Duration::from_millis(1);

/// A transport to the server of a model. Each one acts as one process.
pub struct InProcess {
    model: Model,
    client: ClientId,
}

impl InProcess {
    pub(super) fn new(model: Model) -> Self {
        let client = model.ask(|world| {
            let ledger = world.ledger();
            ledger.clients += 1;
            ClientId(ledger.clients)
        });
        Self { model, client }
    }

    fn ask<T: Send + 'static>(
        &self,
        count: fn(&mut Counts) -> &mut u64,
        job: impl FnOnce(&mut dyn Side) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Error> {
        let answer = self.model.ask(move |world| {
            *count(&mut world.ledger().counts) += 1;
            job(world)
        });
        Ok(answer?)
    }
}

const fn server(handle: transport::Handle) -> Handle {
    Handle(handle.0)
}

fn copy(from: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    out.get_mut(..from.len()).ok_or(ProtocolError::Length)?.copy_from_slice(from);
    Ok(from.len())
}

impl Transport for InProcess {
    fn open(
        &self,
        at: Option<transport::Handle>,
        path: &str,
        write: bool,
    ) -> Result<transport::Handle, Error> {
        let (caller, path) = (Caller { client: self.client, uid: 0 }, path.to_owned());
        self.ask(
            |counts| &mut counts.opens,
            move |world| {
                let handle = world.open(caller, at.map(server), &path, write)?;
                Ok(transport::Handle(handle.0))
            },
        )
    }

    fn close(&self, handle: transport::Handle) {
        let closed = self.ask(
            |counts| &mut counts.closes,
            move |world| {
                world.close(server(handle));
                Ok(())
            },
        );
        assert!(closed.is_ok());
    }

    fn read(&self, handle: transport::Handle, out: &mut [u8]) -> Result<usize, Error> {
        let room = out.len();
        let bytes = self.ask(
            |counts| &mut counts.reads,
            move |world| {
                let mut bytes = vec![0; room];
                let length = world.read(server(handle), &mut bytes)?;
                bytes.truncate(length);
                Ok(bytes)
            },
        )?;
        copy(&bytes, out)
    }

    fn call(
        &self,
        handle: transport::Handle,
        payload: &mut [u8],
        request: usize,
    ) -> Result<usize, Error> {
        let mut bytes = payload.to_vec();
        let answer = self.model.ask(move |world| {
            let operation = RequestHeader::decode(&bytes).map_or(0, |header| header.operation);
            *world.ledger().counts.calls.entry(operation).or_default() += 1;
            let length = world.call(server(handle), &mut bytes, request)?;
            bytes.truncate(length);
            Ok::<_, Refusal>(bytes)
        })?;
        copy(&answer, payload)
    }

    fn names(&self, handle: transport::Handle) -> Result<Vec<String>, Error> {
        self.ask(|counts| &mut counts.others, move |world| world.names(server(handle)))
    }

    fn wait_readable(&self, handle: transport::Handle, timeout: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let readable = self.ask(
                |counts| &mut counts.others,
                move |world| Ok(world.readable(server(handle))),
            )?;
            if readable || Instant::now() >= deadline {
                return Ok(readable);
            }
            std::thread::sleep(SLICE);
        }
    }

    fn map(&self, handle: transport::Handle) -> Result<Memory, Error> {
        let (file, length) =
            self.ask(|counts| &mut counts.maps, move |world| world.share(server(handle)))?;
        Memory::map(&[file], length)
    }

    fn import(&self, session: transport::Handle, buffer: transport::Handle) -> Result<u32, Error> {
        self.ask(
            |counts| &mut counts.others,
            move |world| world.import(server(session), server(buffer)),
        )
    }
}
