//! What `devices/ADDRESS` says for programs: what the function is, who owns it, where its requests go.

use alloc::string::String;
use core::fmt::{self, Write};

use crate::hw::{BufferMemory, Unit};
use crate::policy::{ClientId, DomainId, DomainView, FunctionView, SessionView};
use crate::server::Server;
use crate::topology::pci::PciFunction;

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// Notes the process of a client, for texts.
    pub fn set_process(&mut self, client: ClientId, process: u32) {
        self.processes.set(client, process);
    }

    /// Forgets the process of a client that is gone.
    pub fn forget_process(&mut self, client: ClientId) {
        self.processes.forget(client);
    }

    /// The lines of a device that the tree is made of.
    pub(super) fn device_details(
        &self,
        device: &FunctionView,
        session: Option<SessionView>,
        out: &mut String,
    ) -> fmt::Result {
        function_lines(&device.function, out)?;
        write!(out, "requester ids:")?;
        for id in &device.sources {
            write!(out, " {id:?}")?;
        }
        let attached = session.is_some_and(|session| session.attached);
        let owner = self.owner_words(session.map(|session| session.client));
        writeln!(out, "\nattached: {attached}\nowner: {owner}")?;
        match session.and_then(|session| session.domain) {
            Some(DomainView { id: DomainId(id), mappings, .. }) => {
                writeln!(out, "domain: {id}\nmappings: {mappings}")
            }
            None => writeln!(out, "domain: none"),
        }
    }

    /// The client of a session in words.
    pub(super) fn owner_words(&self, client: Option<ClientId>) -> OwnerWords {
        match client.map(|client| (client, self.processes.of(client))) {
            None => OwnerWords::None,
            Some((_, Some(process))) => OwnerWords::Process(process),
            Some((ClientId(client), None)) => OwnerWords::Client(client),
        }
    }
}

/// `process N` where the platform knows it, else `client N`.
pub(super) enum OwnerWords {
    None,
    Process(u32),
    Client(u32),
}

impl fmt::Display for OwnerWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Process(process) => write!(f, "process {process}"),
            Self::Client(client) => write!(f, "client {client}"),
        }
    }
}

fn function_lines(function: &PciFunction, out: &mut String) -> fmt::Result {
    write!(out, "kind: {}", function.kind.words())?;
    match function.kind.buses() {
        Some(buses) => writeln!(out, ", buses {:02x}-{:02x}", buses.secondary, buses.subordinate)?,
        None => writeln!(out)?,
    }
    writeln!(out, "multifunction: {}", function.multifunction)?;
    match function.acs {
        Some(control) => writeln!(out, "acs: {control:04x} of {:04x}", function.acs_capability)?,
        None => writeln!(out, "acs: none")?,
    }
    writeln!(out, "hot-plug: {}", function.hot_plug)
}
