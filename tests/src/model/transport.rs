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
use super::world::World;

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
            world.clients += 1;
            ClientId(world.clients)
        });
        Self { model, client }
    }

    fn ask<T: Send + 'static>(
        &self,
        count: fn(&mut World) -> &mut u64,
        job: impl FnOnce(&mut World) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Error> {
        let answer = self.model.ask(move |world| {
            *count(world) += 1;
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
            |world| &mut world.counts.opens,
            move |world| {
                let handle = world.server.open(caller, at.map(server), &path, write)?;
                world.handles.push(handle);
                Ok(transport::Handle(handle.0))
            },
        )
    }

    fn close(&self, handle: transport::Handle) {
        let closed = self.ask(
            |world| &mut world.counts.closes,
            move |world| {
                world.handles.retain(|open| *open != server(handle));
                world.offsets.remove(&handle.0);
                world.server.close(server(handle));
                Ok(())
            },
        );
        assert!(closed.is_ok());
    }

    fn read(&self, handle: transport::Handle, out: &mut [u8]) -> Result<usize, Error> {
        let room = out.len();
        let bytes = self.ask(
            |world| &mut world.counts.reads,
            move |world| {
                world.server.tick();
                let mut bytes = vec![0; room];
                let offset = world.offsets.entry(handle.0).or_default();
                let length = world.server.read(server(handle), *offset, &mut bytes)?;
                *offset += u64::try_from(length).unwrap();
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
            *world.counts.calls.entry(operation).or_default() += 1;
            let length = world.server.call(server(handle), &mut bytes, request)?;
            bytes.truncate(length);
            Ok::<_, Refusal>(bytes)
        })?;
        copy(&answer, payload)
    }

    fn names(&self, handle: transport::Handle) -> Result<Vec<String>, Error> {
        self.ask(
            |world| &mut world.counts.others,
            move |world| {
                let mut names = Vec::new();
                world.server.names(server(handle), 0, &mut |name| {
                    names.push(name.to_owned());
                    true
                })?;
                Ok(names)
            },
        )
    }

    fn wait_readable(&self, handle: transport::Handle, timeout: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let readable = self.ask(
                |world| &mut world.counts.others,
                move |world| Ok(world.readable(server(handle))),
            )?;
            if readable || Instant::now() >= deadline {
                return Ok(readable);
            }
            std::thread::sleep(SLICE);
        }
    }

    fn map(&self, handle: transport::Handle) -> Result<Memory, Error> {
        let (file, length) = self
            .ask(|world| &mut world.counts.maps, move |world| world.server.share(server(handle)))?;
        Memory::map(&[file], length)
    }

    fn import(&self, session: transport::Handle, buffer: transport::Handle) -> Result<u32, Error> {
        self.ask(
            |world| &mut world.counts.others,
            move |world| world.server.import(server(session), server(buffer)),
        )
    }
}
