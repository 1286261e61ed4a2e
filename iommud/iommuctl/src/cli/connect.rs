//! The server that the command line names.

use std::cell::RefCell;

use iommu_client::{Connection, Error};

use super::arguments::Global;
use crate::server::Texts;

/// The server, where the command line says or where this system has it.
pub(super) fn connect(global: &Global) -> Result<Connection, Error> {
    #[cfg(target_os = "linux")]
    if let Some(path) = &global.socket {
        return Ok(Connection::over(iommu_client::platform::linux::Socket::connect(path)?));
    }
    let _ = global;
    Connection::system()
}

/// A server that may be started anew: it is connected to again when it is gone.
pub(super) struct Lasting<'a> {
    global: &'a Global,
    server: RefCell<Connection>,
}

impl<'a> Lasting<'a> {
    pub(super) fn connect(global: &'a Global) -> Result<Self, Error> {
        Ok(Self { global, server: RefCell::new(connect(global)?) })
    }

    fn ask<T>(&self, question: impl Fn(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        let answer = question(&self.server.borrow());
        if !matches!(answer, Err(Error::Disconnected)) {
            return answer;
        }
        *self.server.borrow_mut() = connect(self.global)?;
        question(&self.server.borrow())
    }
}

impl Texts for Lasting<'_> {
    fn text(&self, path: &str) -> Result<String, Error> {
        self.ask(|server| Texts::text(server, path))
    }

    fn names(&self, path: &str) -> Result<Vec<String>, Error> {
        self.ask(|server| Texts::names(server, path))
    }
}
