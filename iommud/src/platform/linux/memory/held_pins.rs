//! Pins that the keeper holds beside the server, so that they outlive it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::page_name::PageName;
use super::pin::Pin;
use crate::platform::linux::link::{Link, Message};

/// The way to the keeper, if there is one.
#[derive(Debug)]
pub(super) struct HeldPins(Option<Link>);

impl HeldPins {
    /// The pins that this keeper holds.
    ///
    /// # Errors
    /// The error of fcntl(2).
    pub(super) fn of(keeper: Option<&Link>) -> io::Result<Self> {
        Ok(Self(keeper.map(Link::try_clone).transpose()?))
    }

    /// Makes the keeper hold a pin.
    pub(super) fn hold(&self, page: &str, pin: &Pin) {
        if let Some(page) = PageName::parse(page) {
            self.send(Message::Pin(page), Some(pin.as_fd()));
        }
    }

    /// Makes the keeper drop a pin.
    pub(super) fn drop(&self, page: &str) {
        if let Some(page) = PageName::parse(page) {
            self.send(Message::Unpin(page), None);
        }
    }

    /// Makes the keeper drop all pins of a server.
    pub(super) fn drop_server(&self, server: u32) {
        self.send(Message::UnpinServer(server), None);
    }

    fn send(&self, message: Message, descriptor: Option<BorrowedFd<'_>>) {
        let sent = self.0.as_ref().map(|keeper| keeper.send_soon(message, descriptor));
        if let Some(Err(error)) = sent {
            log::warn!("the keeper does not hold pins as it should: {message:?}: {error}");
        }
    }
}
