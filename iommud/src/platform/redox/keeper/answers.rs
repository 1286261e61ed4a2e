//! Answers requests in place of a dead server.
//!
//! Closing a scheme's socket wakes no caller: a caller whose request has no answer by then waits for ever. So
//! requests are answered until none has come for a while. The socket is closed right after the last pass. The kernel
//! gives the next request the lowest free number. So a pass goes from the highest number down, and also meets
//! requests that an answered client sends during the pass.

use std::time::Duration;

/// The most requests of one scheme that can wait at a time. They are numbered from 0 on, so no request has a higher
/// number.
pub(super) const MOST_WAITING: u32 = 1024;

/// Passes in a row without a request before the socket is closed, and the pause after each. A client of a dead server
/// has that long to send its next request.
const QUIET: u32 = 10;
const PAUSE: Duration = Duration::from_millis(5);

/// The most passes, because a client may send requests without end.
const MOST: u32 = 400;

/// The callers that wait for an answer.
pub(super) trait Callers {
    /// Answers the request with this number. Returns whether there was one.
    fn answer(&mut self, tag: u32) -> bool;

    /// Lets other processes run for `time`.
    fn pause(&mut self, time: Duration);

    /// Ends the scheme. Later requests fail at once.
    fn close(self);
}

/// Answers requests until no more arrive, and ends the scheme.
pub(super) fn answer_all(mut callers: impl Callers) {
    let mut quiet = 0;
    for _ in 0..MOST {
        if pass(&mut callers) {
            quiet = 0;
            continue;
        }
        quiet += 1;
        if quiet == QUIET {
            break;
        }
        callers.pause(PAUSE);
    }
    callers.close();
}

/// Answers every open request. Returns whether there was one.
fn pass(callers: &mut impl Callers) -> bool {
    let mut met = false;
    for tag in (0..MOST_WAITING).rev() {
        met |= callers.answer(tag);
    }
    met
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use super::*;

    /// A client that sends one request after another, each `delay` steps after the answer to the last one.
    #[derive(Clone, Copy, Debug)]
    struct Client {
        requests: u32,
        delay: u64,
        /// The time of its next request. `None` while it waits for an answer.
        next: Option<u64>,
    }

    /// The kernel's side. Each answer takes one step, and each pause [`STEPS_OF_A_PAUSE`].
    #[derive(Default, Debug)]
    struct Kernel {
        now: u64,
        clients: Vec<Client>,
        /// The waiting clients, by number of their requests.
        waiting: BTreeMap<u32, usize>,
        pauses: u32,
        passes: u32,
        /// Requests that were open when the scheme ended. They never get an answer.
        lost: Option<usize>,
    }

    const STEPS_OF_A_PAUSE: u64 = 5000;

    impl Kernel {
        fn of(clients: &[(u32, u64)]) -> Rc<RefCell<Self>> {
            let client = |(requests, delay)| Client { requests, delay, next: Some(0) };
            let clients = clients.iter().copied().map(client).collect();
            let mut kernel = Self { clients, ..Self::default() };
            kernel.go(0);
            Rc::new(RefCell::new(kernel))
        }

        fn go(&mut self, steps: u64) {
            self.now += steps;
            for (number, client) in self.clients.iter_mut().enumerate() {
                if client.requests > 0 && client.next.is_some_and(|next| next <= self.now) {
                    client.next = None;
                    let free = (0..).find(|tag| !self.waiting.contains_key(tag)).unwrap();
                    self.waiting.insert(free, number);
                }
            }
        }
    }

    impl Callers for &RefCell<Kernel> {
        fn answer(&mut self, tag: u32) -> bool {
            let mut kernel = self.borrow_mut();
            let met = kernel.waiting.remove(&tag);
            let now = kernel.now;
            if let Some(client) = met.and_then(|number| kernel.clients.get_mut(number)) {
                client.requests -= 1;
                client.next = Some(now + client.delay);
            }
            kernel.passes += u32::from(tag == 0);
            kernel.go(1);
            met.is_some()
        }

        fn pause(&mut self, _: Duration) {
            let mut kernel = self.borrow_mut();
            kernel.pauses += 1;
            kernel.go(STEPS_OF_A_PAUSE);
        }

        fn close(self) {
            let mut kernel = self.borrow_mut();
            kernel.lost = Some(kernel.waiting.len());
        }
    }

    fn lost(clients: &[(u32, u64)]) -> usize {
        let kernel = Kernel::of(clients);
        answer_all(&*kernel);
        let kernel = kernel.borrow();
        kernel.lost.expect("the socket is closed")
    }

    /// A client with 40 mapped buffers ends. It unmaps one after another, however slowly it runs.
    #[test]
    fn a_client_with_many_buffers_is_answered_to_its_end() {
        for delay in [0, 1, 100, 1023, 1024, 1025, 4000, 20_000, 40_000] {
            assert_eq!(lost(&[(40, delay)]), 0, "{delay}");
            assert_eq!(lost(&[(40, delay), (3, 7), (17, 2 * delay)]), 0, "{delay} among others");
        }
    }

    /// An earlier version answered in this way: the lowest number first, for a fixed time.
    #[test]
    fn answers_for_a_time_leave_that_client_waiting() {
        let kernel = Kernel::of(&[(40, 4000)]);
        let mut callers = &*kernel;
        for _ in 0..11 {
            (0..MOST_WAITING).for_each(|tag| _ = callers.answer(tag));
            callers.pause(PAUSE);
        }
        callers.close();
        assert_eq!(kernel.borrow().lost, Some(1), "the test bed does not show the defect");
    }

    #[test]
    fn who_asks_again_during_a_pass_is_met_by_it() {
        let kernel = Kernel::of(&[(200, 0)]);
        // The request has the number 900. Once it is answered, the next one gets 0.
        let mut callers = &*kernel;
        kernel.borrow_mut().waiting = BTreeMap::from([(900, 0)]);
        assert!(pass(&mut callers));
        assert!(kernel.borrow().clients[0].requests <= 198, "met at 900 and at 0");
    }

    #[test]
    fn nobody_keeps_the_next_server_from_being_started() {
        let kernel = Kernel::of(&[(u32::MAX, 100)]);
        answer_all(&*kernel);
        let kernel = kernel.borrow();
        assert_eq!((kernel.passes, kernel.lost.is_some()), (MOST, true));
    }

    /// There is no pause between the last pass and the end of the scheme.
    #[test]
    fn the_scheme_ends_right_after_a_pass() {
        let kernel = Kernel::of(&[]);
        answer_all(&*kernel);
        let kernel = kernel.borrow();
        assert_eq!((kernel.passes, kernel.pauses), (QUIET, QUIET - 1));
        assert_eq!(
            kernel.now,
            u64::from(QUIET * MOST_WAITING) + u64::from(QUIET - 1) * STEPS_OF_A_PAUSE
        );
    }
}
