//! Waiting for hardware: always with a deadline.

use super::hal::{Clock, Nanos};

/// Calls `look` until it returns something, or until `limit` has passed. Before it gives up it has called it at least
/// twice. The last call is after the deadline, so that a server that was not running in between does not take a unit
/// for dead.
pub(crate) fn until<C: Clock, T>(
    clock: &mut C,
    limit: Nanos,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    // The clock is not read when there is nothing to wait for.
    if let Some(seen) = look() {
        return Some(seen);
    }
    let start = clock.now();
    loop {
        if clock.now().0.saturating_sub(start.0) >= limit.0 {
            return look();
        }
        clock.relax();
        if let Some(seen) = look() {
            return Some(seen);
        }
    }
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
