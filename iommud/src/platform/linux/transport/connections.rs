//! All connections, indexed by their clients' numbers.

use std::os::fd::OwnedFd;

use super::connection::Connection;
use crate::policy::ClientId;
use crate::server::Caller;

/// The most clients at a time. The server closes the connections of further ones.
pub const MOST_CONNECTIONS: usize = 256;

/// All connections. The client's number modulo [`MOST_CONNECTIONS`] gives the place of a connection. So a request
/// finds its connection without a search.
#[derive(Debug)]
pub(super) struct Connections {
    places: Vec<Option<Connection>>,
    count: usize,
    /// The first number to try for the next client.
    next: u32,
}

impl Connections {
    pub(super) fn new() -> Self {
        let places = std::iter::repeat_with(|| None).take(MOST_CONNECTIONS).collect();
        Self { places, count: 0, next: 1 }
    }

    /// The number of connections.
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    const fn place(ClientId(number): ClientId) -> usize {
        number as usize % MOST_CONNECTIONS
    }

    /// The number for the next connection, which no connection has. `None` when there are [`MOST_CONNECTIONS`].
    pub(super) fn free_number(&self) -> Option<ClientId> {
        let following = |client: &ClientId| Some(ClientId(client.0.wrapping_add(1)));
        let is_free =
            |client: &ClientId| self.places.get(Self::place(*client)).is_some_and(Option::is_none);
        let numbers = std::iter::successors(Some(ClientId(self.next)), following);
        numbers.take(MOST_CONNECTIONS).find(is_free)
    }

    /// Adds a connection for the client number that [`Connections::free_number`] returned.
    pub(super) fn insert(&mut self, socket: OwnedFd, caller: Caller) {
        if let Some(place @ None) = self.places.get_mut(Self::place(caller.client)) {
            *place = Some(Connection::new(socket, caller));
            self.count += 1;
            self.next = caller.client.0.wrapping_add(1);
        }
    }

    /// The connection of a client.
    #[inline]
    pub(super) fn get_mut(&mut self, client: ClientId) -> Option<&mut Connection> {
        let connection = self.places.get_mut(Self::place(client))?.as_mut()?;
        (connection.caller.client == client).then_some(connection)
    }

    /// Removes the connection of a client and returns it.
    pub(super) fn remove(&mut self, client: ClientId) -> Option<Connection> {
        let has_it = |connection: &mut Connection| connection.caller.client == client;
        let connection = self.places.get_mut(Self::place(client))?.take_if(has_it)?;
        self.count -= 1;
        Some(connection)
    }

    /// All connections.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.places.iter_mut().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn add(connections: &mut Connections) -> Option<u32> {
        let client = connections.free_number()?;
        let socket = File::open("/dev/null").unwrap().into();
        connections.insert(socket, Caller { client, uid: 0 });
        Some(client.0)
    }

    #[test]
    fn a_number_names_one_connection_as_long_as_it_is_there() {
        let mut all = Connections::new();
        let numbers: Vec<_> = (0..MOST_CONNECTIONS).map_while(|_| add(&mut all)).collect();
        assert_eq!(numbers, (1..=256).collect::<Vec<_>>());
        assert_eq!((add(&mut all), all.len()), (None, 256));

        assert!(all.remove(ClientId(7)).is_some());
        assert_eq!(all.len(), 255);
        assert!(all.get_mut(ClientId(7)).is_none());
        assert!(all.remove(ClientId(7)).is_none());
        // A new connection takes the free place, under a new number.
        assert_eq!(add(&mut all), Some(256 + 7));
        assert_eq!(all.get_mut(ClientId(263)).map(|it| it.caller.client), Some(ClientId(263)));
        assert!(all.get_mut(ClientId(7)).is_none());
        assert!(all.remove(ClientId(7)).is_none());
        assert_eq!((all.len(), all.iter_mut().count()), (256, 256));
    }

    #[test]
    fn numbers_begin_anew_after_the_last() {
        let mut all = Connections { next: u32::MAX, ..Connections::new() };
        assert_eq!([add(&mut all), add(&mut all)], [Some(u32::MAX), Some(0)]);
        assert!(all.get_mut(ClientId(u32::MAX)).is_some() && all.get_mut(ClientId(0)).is_some());
    }
}
