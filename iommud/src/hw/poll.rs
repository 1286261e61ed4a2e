//! Waiting for hardware: always with a deadline.

use super::hal::{Clock, Nanos};

/// Calls `look` until it returns something, or until `limit` has passed. Before it gives up it has called it at least
/// twice. The last call is after the deadline, so that a server that was not running in between does not take a unit
/// for dead.
pub(crate) fn until<C: Clock, T>(
    clock: &mut C,
    limit: Nanos,
    look: impl FnMut() -> Option<T>,
) -> Option<T> {
    timed(clock, limit, look, |_| None).map(|(seen, _)| seen)
}

/// Like [`until`]. Also returns the time from the first call of `look` to the last; `None` when they are the same.
pub(crate) fn until_timed<C: Clock, T>(
    clock: &mut C,
    limit: Nanos,
    look: impl FnMut() -> Option<T>,
) -> Option<(T, Option<Nanos>)> {
    timed(clock, limit, look, |clock| Some(clock.now()))
}

/// `end` reads the clock, if the time is wanted.
fn timed<C: Clock, T>(
    clock: &mut C,
    limit: Nanos,
    mut look: impl FnMut() -> Option<T>,
    end: impl FnOnce(&mut C) -> Option<Nanos>,
) -> Option<(T, Option<Nanos>)> {
    // The clock is not read when there is nothing to wait for.
    if let Some(seen) = look() {
        return Some((seen, None));
    }
    let start = clock.now();
    let since = |now: Nanos| Nanos(now.0.saturating_sub(start.0));
    let seen = loop {
        if since(clock.now()) >= limit {
            break look()?;
        }
        clock.relax();
        if let Some(seen) = look() {
            break seen;
        }
    };
    Some((seen, end(clock).map(since)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Steps(u64);

    impl Clock for Steps {
        fn now(&mut self) -> Nanos {
            Nanos(self.0)
        }
        fn relax(&mut self) {
            self.0 += 10;
        }
    }

    #[test]
    fn ends_with_what_was_seen_or_after_the_deadline() {
        let mut looks = 0;
        let seen = until(&mut Steps(0), Nanos(100), || {
            looks += 1;
            (looks == 5).then_some(looks)
        });
        assert_eq!(seen, Some(5));
        let mut looks = 0;
        let none = until(&mut Steps(7), Nanos(100), || {
            looks += 1;
            None::<()>
        });
        assert_eq!((none, looks), (None, 12));
    }

    /// The clock moves with each wait only, so the time is that of the waits.
    #[test]
    fn says_how_long_it_took() {
        for (needed, took) in [(1, None), (2, Some(Nanos(10))), (5, Some(Nanos(40)))] {
            let mut looks = 0;
            let seen = until_timed(&mut Steps(3), Nanos(1000), || {
                looks += 1;
                (looks == needed).then_some(looks)
            });
            assert_eq!(seen, Some((needed, took)));
        }
        assert_eq!(until_timed(&mut Steps(3), Nanos(20), || None::<()>), None);
    }

    #[test]
    fn looks_once_more_after_the_deadline() {
        let mut looks = 0;
        let seen = until(&mut Steps(0), Nanos(0), || {
            looks += 1;
            (looks == 2).then_some(())
        });
        assert_eq!(seen, Some(()));
    }
}
