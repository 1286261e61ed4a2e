//! Exhausts all memory for a whole event and for the `k` events after it. A sweep that fails one allocation at a time
//! lets a retry succeed.
//!
//! Covers every event of every play, in a few orders of its streams. I1 to I8 hold after each event. Once memory is
//! back and the loop has run once, no end of life is unfinished (I9).

use super::act::{Act, Client, Event, Failure, Stream};
use super::check::{Invariant, broken};
use super::plays::Play;
use super::search::{Explorer, MACHINE, Path};
use super::stats::Found;
use super::subject::Subject;

/// The largest number of further events without memory.
const MORE: usize = 2;

/// Coverage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exhausted {
    /// Times that memory was exhausted, each at another event of a play.
    pub times: u64,
    /// Events run without memory.
    pub events: u64,
    /// Of those, events that cannot be refused.
    pub ends: u64,
    /// Times that work was left over when memory came back.
    pub owed: u64,
}

impl Exhausted {
    /// Adds the coverage of another run.
    pub const fn add(&mut self, other: &Self) {
        self.times += other.times;
        self.events += other.events;
        self.ends += other.ends;
        self.owed += other.owed;
    }
}

/// Returns orders of the streams of a play. Each stream comes first once, with the others after it; one order takes
/// an event of each in turn.
fn orders(streams: &[Stream]) -> Vec<Vec<(usize, Event)>> {
    let count = streams.len();
    let whole = |at: usize| streams[at].events.iter().map(move |event| (at, *event));
    let mut orders: Vec<Vec<_>> = (0..count)
        .map(|first| (0..count).flat_map(|next| whole((first + next) % count)).collect())
        .collect();
    let longest = streams.iter().map(|stream| stream.events.len()).max().unwrap_or(0);
    let in_turn = (0..longest).flat_map(|nth| {
        let has = move |at: &usize| nth < streams[*at].events.len();
        (0..count).filter(has).map(move |at| (at, streams[at].events[nth]))
    });
    orders.push(in_turn.collect());
    orders.dedup();
    orders
}

/// Whether an event ends a session, a client, a function or a unit. Such an event cannot be refused.
const fn is_end(act: Act) -> bool {
    matches!(act, Act::Close(_) | Act::Die(_) | Act::Removed(_) | Act::Kill(_))
}

/// Runs a play in each of these orders.
///
/// # Errors
/// The first broken invariant.
pub fn exhaust<S: Subject>(play: &Play) -> Result<Exhausted, Found> {
    let mut total = Exhausted::default();
    for order in orders(&play.streams) {
        let (mut explorer, mut path) =
            Explorer::<S>::new(play.scene.clone(), play.streams.clone())?;
        for at in 0..order.len() {
            for more in 0..=MORE {
                gone(&mut explorer, &path, &play.streams, &order[at..], more, &mut total)?;
            }
            take(&mut explorer, &mut path, &play.streams, order[at], false)?;
        }
    }
    Ok(total)
}

fn client_of(streams: &[Stream], at: usize) -> Client {
    streams[at].client.unwrap_or(MACHINE)
}

/// Takes one event. Returns false without taking it when its client cannot make a request.
fn take<S: Subject>(
    explorer: &mut Explorer<S>,
    path: &mut Path,
    streams: &[Stream],
    (stream, event): (usize, Event),
    gone: bool,
) -> Result<bool, Found> {
    if streams[stream].client.is_some_and(|client| !path.ledger.may_ask(client)) {
        return Ok(false);
    }
    // A failure of the play itself stays as it is.
    let failure = if gone { event.failure.or(Some(Failure::Exhausted)) } else { event.failure };
    let client = client_of(streams, stream);
    explorer.again(path, stream, client, Event { failure, ..event })?;
    Ok(true)
}

/// Exhausts memory for the next event and `more` events after it, then restores everything.
fn gone<S: Subject>(
    explorer: &mut Explorer<S>,
    path: &Path,
    streams: &[Stream],
    next: &[(usize, Event)],
    more: usize,
    total: &mut Exhausted,
) -> Result<(), Found> {
    let (software, hardware) = (explorer.subject.save(), explorer.subject.machine().save());
    let events = explorer.trace.len();
    let mut path = path.clone();
    total.times += 1;
    for each in next.iter().take(more + 1) {
        let taken = take(explorer, &mut path, streams, *each, true)?;
        total.events += u64::from(taken);
        total.ends += u64::from(taken && is_end(each.1.act));
    }
    total.owed += u64::from(explorer.subject.owes());
    explorer.again(&mut path, 0, MACHINE, Act::Tick.into())?;
    if explorer.subject.owes() {
        let how = "memory is back, and an end of life is still unfinished";
        return Err(explorer.found(broken(Invariant::I9, how)));
    }
    explorer.leaf(&path)?;
    explorer.trace.truncate(events);
    explorer.subject.restore(&software);
    explorer.subject.machine().restore(&hardware);
    Ok(())
}
