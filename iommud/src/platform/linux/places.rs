//! Places for things of clients, indexed by the clients' numbers.

use crate::policy::ClientId;

/// The most clients at a time. The connections of further ones are closed.
pub const MOST_CONNECTIONS: usize = 256;

/// One thing of each client. The client's number modulo [`MOST_CONNECTIONS`] gives its place. So a request finds its
/// connection without a search.
#[derive(Debug)]
pub(super) struct Places<T> {
    places: Vec<Option<(ClientId, T)>>,
    count: usize,
    /// The first number to try for the next client.
    next: u32,
}

/// The place of a client.
pub(super) const fn place_of(ClientId(number): ClientId) -> usize {
    number as usize % MOST_CONNECTIONS
}

impl<T> Places<T> {
    pub(super) fn new() -> Self {
        let places = std::iter::repeat_with(|| None).take(MOST_CONNECTIONS).collect();
        Self { places, count: 0, next: 1 }
    }

    /// The number of clients.
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// The number for the next client, whose place is free. `None` when there are [`MOST_CONNECTIONS`].
    pub(super) fn free_number(&self) -> Option<ClientId> {
        let following = |client: &ClientId| Some(ClientId(client.0.wrapping_add(1)));
        let is_free =
            |client: &ClientId| self.places.get(place_of(*client)).is_some_and(Option::is_none);
        let numbers = std::iter::successors(Some(ClientId(self.next)), following);
        numbers.take(MOST_CONNECTIONS).find(is_free)
    }

    /// Gives a client its place. Does nothing, and returns false, when another client has it.
    pub(super) fn insert(&mut self, client: ClientId, thing: T) -> bool {
        let Some(place @ None) = self.places.get_mut(place_of(client)) else { return false };
        *place = Some((client, thing));
        self.count += 1;
        self.next = client.0.wrapping_add(1);
        true
    }

    /// The thing of a client.
    #[inline]
    pub(super) fn get_mut(&mut self, client: ClientId) -> Option<&mut T> {
        let (owner, thing) = self.places.get_mut(place_of(client))?.as_mut()?;
        (*owner == client).then_some(thing)
    }

    /// Removes the thing of a client and returns it.
    pub(super) fn remove(&mut self, client: ClientId) -> Option<T> {
        let has_it = |place: &mut (ClientId, T)| place.0 == client;
        let (_, thing) = self.places.get_mut(place_of(client))?.take_if(has_it)?;
        self.count -= 1;
        Some(thing)
    }

    /// All clients and their things.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (ClientId, &mut T)> {
        self.places.iter_mut().flatten().map(|(client, thing)| (*client, thing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(all: &mut Places<u32>) -> Option<u32> {
        let client = all.free_number()?;
        assert!(all.insert(client, client.0));
        Some(client.0)
    }

    #[test]
    fn a_number_names_one_client_as_long_as_it_is_there() {
        let mut all = Places::new();
        let numbers: Vec<_> = (0..MOST_CONNECTIONS).map_while(|_| add(&mut all)).collect();
        assert_eq!(numbers, (1..=256).collect::<Vec<_>>());
        assert_eq!((add(&mut all), all.len()), (None, 256));
        assert!(!all.insert(ClientId(7 + 256), 0), "its place is taken");

        assert_eq!(all.remove(ClientId(7)), Some(7));
        assert_eq!(all.len(), 255);
        assert!(all.get_mut(ClientId(7)).is_none());
        assert!(all.remove(ClientId(7)).is_none());
        // A new client takes the free place, under a new number.
        assert_eq!(add(&mut all), Some(256 + 7));
        assert_eq!(all.get_mut(ClientId(263)), Some(&mut 263));
        assert!(all.get_mut(ClientId(7)).is_none());
        assert!(all.remove(ClientId(7)).is_none());
        assert_eq!((all.len(), all.iter_mut().count()), (256, 256));
    }

    #[test]
    fn numbers_begin_anew_after_the_last() {
        let mut all = Places { next: u32::MAX, ..Places::new() };
        assert_eq!([add(&mut all), add(&mut all)], [Some(u32::MAX), Some(0)]);
        assert!(all.get_mut(ClientId(u32::MAX)).is_some() && all.get_mut(ClientId(0)).is_some());
    }
}
