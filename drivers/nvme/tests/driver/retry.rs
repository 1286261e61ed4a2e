//! Requests carried out to their end, over controllers that misbehave.

use std::time::{Duration, Instant};

use nvme::{
    Confine, Data, DataSource, Error, LentData, Operation, Request, Status, Trouble, Troubles, Work,
};

use super::software::{Manner, Software};
use super::{Lab, bytes, lab, request};

/// How long a request may take.
const SHORT: Duration = Duration::from_millis(20);

/// Number of requests in a run, blocks of each, and bytes of each. They are several pages, so that a transfer can be
/// cut.
const REQUESTS: u64 = 10;
const BLOCKS: u64 = 24;
const LENGTH: usize = 24 * 512;

/// Writes or reads a pattern. With `reforms`, the controller behaves after its first trouble.
#[derive(Debug)]
struct Check {
    software: Software,
    reforms: bool,
    finished: Vec<u64>,
    troubles: Vec<String>,
}

impl Work for Check {
    type Error = Error;

    fn prepare(&mut self, request: &Request, memory: &mut Data) -> Result<(), Error> {
        match request.operation {
            Operation::Write => memory.write(0, &pattern(request))?,
            _ => memory.fill(0xee),
        }
        Ok(())
    }

    fn finish(&mut self, request: &Request, memory: &Data) -> Result<(), Error> {
        assert!(memory.to_vec() == pattern(request), "{request:?} was not carried out");
        self.finished.push(request.first);
        Ok(())
    }

    fn trouble(&mut self, trouble: &Trouble) {
        self.troubles.push(trouble.to_string());
        if self.reforms {
            self.software.set(Manner::default());
        }
    }
}

fn pattern(request: &Request) -> Vec<u8> {
    bytes(request.first, LENGTH)
}

fn requests(operation: Operation) -> impl Iterator<Item = Request> {
    (0..REQUESTS).map(move |n| request(1, operation, n * BLOCKS, BLOCKS))
}

fn run(
    lab: &mut Lab<LentData>,
    confine: Confine,
    operation: Operation,
    reforms: bool,
) -> (Result<Troubles, Error>, Check) {
    let mut source = DataSource::new(&lab.device, confine, 4, LENGTH as u64).unwrap();
    let software = lab.software.clone();
    let mut check = Check { software, reforms, finished: Vec::new(), troubles: Vec::new() };
    let requests = requests(operation).map(|request| (request, LENGTH as u64));
    let result = lab.nvme.carry_out(&mut source, SHORT, requests, &mut check);
    (result, check)
}

/// Whatever goes wrong, each request ends once. Requests that were cut short never count as read or written.
#[test]
fn every_request_is_carried_out_once() {
    let normal = Manner::default();
    for (what, manner, troubles) in [
        (
            "no completion within 20 ms: aborted",
            Manner { slow: true, aborts: true, ..normal },
            [1, 0],
        ),
        ("no completion within 20 ms: reset, 4 ", Manner { slow: true, ..normal }, [0, 1]),
        ("no completion within 20 ms: reset, 4 ", Manner { deaf: 4, ..normal }, [0, 1]),
        ("the controller has failed: reset, 4 ", Manner { fails: true, ..normal }, [0, 1]),
        ("the controller has failed: reset, 4 ", Manner { cuts: true, ..normal }, [0, 1]),
        ("completion of command 30583, not under way", Manner { liar: true, ..normal }, [0, 1]),
    ] {
        for (operation, confine) in [Operation::Write, Operation::Read]
            .into_iter()
            .flat_map(|operation| Confine::ALL.map(|confine| (operation, confine)))
        {
            let mut lab = lab::<LentData>(normal, 4);
            if operation == Operation::Read {
                run(&mut lab, Confine::Pool, Operation::Write, false).0.unwrap();
            }
            lab.software.set(manner);
            let (result, mut check) = run(&mut lab, confine, operation, true);
            let [aborts, resets] = troubles;
            assert_eq!(result.unwrap(), Troubles { aborts, resets }, "{manner:?}");
            assert!(check.troubles.len() == 1 && check.troubles[0].starts_with(what), "{check:?}");
            check.finished.sort_unstable();
            let all: Vec<u64> = (0..REQUESTS).map(|n| n * BLOCKS).collect();
            assert_eq!((check.finished, lab.nvme.in_flight()), (all, 0), "{manner:?}");
            for (n, request) in (0..).zip(requests(operation)) {
                let written = lab.software.disk(1, n * LENGTH, LENGTH);
                assert!(written == pattern(&request), "{n}");
            }
            assert_eq!(lab.software.troubles().0, 0, "DMA was denied");
        }
    }
}

/// A request may take twice as long after each trouble. After three troubles it is given up.
#[test]
fn a_controller_that_never_answers_is_given_up() {
    let mut lab = lab::<LentData>(Manner { slow: true, ..Manner::default() }, 4);
    let started = Instant::now();
    let (result, check) = run(&mut lab, Confine::Pool, Operation::Read, false);
    assert!(matches!(result, Err(Error::Timeout { ms: 160, .. })), "{result:?}");
    assert!(started.elapsed() >= SHORT * (1 + 2 + 4 + 8));
    assert_eq!((check.troubles.len(), check.finished.len()), (3, 0));
    assert_eq!(lab.software.troubles(), (0, 3));
}

/// An abort that was not requested counts as a refusal, so that the request is not sent again and again.
#[test]
fn what_is_aborted_unasked_is_a_refusal() {
    let mut lab = lab::<LentData>(Manner { shirks: true, ..Manner::default() }, 4);
    let (result, check) = run(&mut lab, Confine::Pool, Operation::Read, false);
    assert!(matches!(result, Err(Error::Status(Status::ABORTED))), "{result:?}");
    assert!(check.finished.is_empty() && check.troubles[0].ends_with("(aborted)"), "{check:?}");
}
