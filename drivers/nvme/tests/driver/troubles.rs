//! Controllers that misbehave; several queues; interrupts.

use std::time::Duration;

use nvme::{CompletionMode, Controller, Error, Interrupt, Operation, Settings, Status};

use super::software::{Manner, Software};
use super::{Model, SOON, lab, lab_with, request};
use iommu_client::{Device, DmaBlock};

const SHORT: Duration = Duration::from_millis(20);

/// A controller that does not answer keeps the memory of its requests until it was reset.
#[test]
fn a_reset_ends_what_is_under_way() {
    let slow = Manner { slow: true, ..Manner::default() };
    let mut lab = lab::<DmaBlock>(slow, 3);
    for first in 0..3 {
        let data = lab.pool.take(512).unwrap();
        lab.nvme.submit(request(1, Operation::Read, first, 1), data).unwrap();
    }
    let late = lab.nvme.wait(Duration::from_millis(20));
    assert!(matches!(late, Err(Error::Timeout { ms: 20, .. })), "{late:?}");
    let ended = lab.nvme.reset().unwrap();
    let firsts: Vec<_> = ended.iter().map(|(request, _)| request.first).collect();
    assert_eq!(firsts, [0, 1, 2]);
    lab.software.set(Manner::default());
    let data = lab.pool.take(512).unwrap();
    lab.nvme.run(request(1, Operation::Read, 0, 1), data, SOON).unwrap();
}

#[test]
fn a_completion_of_nothing_is_an_error() {
    let mut lab = lab::<DmaBlock>(Manner::default(), 3);
    lab.software.set(Manner { liar: true, ..Manner::default() });
    let data = lab.pool.take(512).unwrap();
    let ended = lab.nvme.run(request(1, Operation::Read, 0, 1), data, SOON);
    assert!(matches!(ended, Err(Error::ProtocolError { command: 0x7777 })), "{ended:?}");
    lab.software.set(Manner::default());
    assert_eq!(lab.nvme.reset().unwrap().len(), 1);
}

/// The answer to one admin command is not taken for the answer to another.
#[test]
fn an_answer_to_another_admin_command_is_an_error() {
    let mut lab = lab::<DmaBlock>(Manner { slow: true, ..Manner::default() }, 3);
    let data = lab.pool.take(512).unwrap();
    lab.nvme.submit(request(1, Operation::Read, 0, 1), data).unwrap();
    lab.software.set(Manner { slow: true, aborts: true, confused: true, ..Manner::default() });
    let ended = lab.nvme.abort();
    assert!(matches!(ended, Err(Error::ProtocolError { command: 0x7777 })), "{ended:?}");
}

/// A reset returns memory when the controller reports that it has stopped, not when its end is requested. Until then
/// the controller uses the request's own memory, and no other.
#[test]
fn a_reset_waits_until_the_controller_is_quiet() {
    let manner = Manner { slow: true, lingers: 3, ..Manner::default() };
    let mut lab = lab::<DmaBlock>(manner, 3);
    let mut data = lab.pool.take(512).unwrap();
    data.fill(0xee);
    lab.nvme.submit(request(1, Operation::Read, 0, 1), data).unwrap();
    let ended = lab.nvme.reset().unwrap();
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].1.to_vec(), [0; 512], "the controller had not stopped");
    assert_eq!((lab.software.kept(), lab.software.troubles()), (0, (0, 1)));
}

/// A controller that does not stop keeps the memory of its requests: it is never reused.
#[test]
fn a_controller_that_does_not_stop_keeps_its_memory() {
    let manner = Manner { slow: true, lingers: u32::MAX, ..Manner::default() };
    let mut lab = lab::<DmaBlock>(manner, 3);
    let data = lab.pool.take(4096).unwrap();
    let iova = data.iova();
    lab.nvme.submit(request(1, Operation::Read, 0, 8), data).unwrap();
    let ended = lab.nvme.reset().map(|ended| ended.len());
    assert!(matches!(ended, Err(Error::Timeout { what: "end", .. })), "{ended:?}");
    assert_eq!(lab.nvme.in_flight(), 1);
    drop(lab.nvme);
    let rest: Vec<_> = std::iter::from_fn(|| lab.pool.take_ready(4096)).collect();
    assert_eq!(rest.len(), 63);
    assert!(rest.iter().all(|block| block.iova() != iova));
    drop((rest, lab.pool));
    // The controller goes on: the data and the completion arrive in the memory that it still has.
    lab.software.let_go();
    assert_eq!(lab.software.troubles(), (0, 1));
}

/// If the start of a controller fails half way, the controller is stopped before its memory is released.
#[test]
fn a_start_that_fails_stops_the_controller() {
    let model = Model::new();
    let device = Device::open(&model.connection(), super::NAME).unwrap();
    let manner = Manner { poor: true, ..Manner::default() };
    let software = Software::new(&model, device.address(), manner);
    let _permission = device.attach().unwrap();
    let started = Controller::<_, DmaBlock>::start(software.clone(), &device, Settings::default());
    assert!(matches!(started, Err(Error::Status(Status(2)))));
    assert_eq!(software.troubles(), (0, 1), "it was not stopped");
    assert_eq!(model.reach(device.address()), []);
}

/// Limits that a controller states are used only within bounds.
#[test]
fn a_controller_that_boasts() {
    let most = |transfer| {
        let manner = Manner { transfer: Some(transfer), ..Manner::default() };
        let lab = lab::<DmaBlock>(manner, 2);
        (lab.nvme.info().most_bytes, lab.nvme.namespace(1).unwrap().most_blocks)
    };
    assert_eq!([most(1), most(9)], [(8192, 16), (2 << 20, 4096)]);
    for transfer in [0, 10, 11, 51, 52, 63, 64, 255] {
        assert_eq!(most(transfer), (4 << 20, 8192), "{transfer}");
    }
    let ids = |blocks| {
        let manner = Manner { blocks: Some(blocks), ..Manner::default() };
        let info = lab::<DmaBlock>(manner, 2).nvme.info().clone();
        info.namespaces.iter().map(|namespace| namespace.id).collect::<Vec<_>>()
    };
    assert_eq!([ids(0), ids((1 << 55) - 1)], [[1, 2], [1, 2]]);
    assert_eq!([ids(1 << 55), ids(u64::MAX)], [[2], [2]]);
}

/// Late requests are aborted, without a reset. Their memory belongs to the driver again.
#[test]
fn what_is_late_is_aborted() {
    let manner = Manner { slow: true, aborts: true, ..Manner::default() };
    let settings =
        |_: &Software| Settings { queues: 2, depth: 3, completion: CompletionMode::Poll };
    let mut lab = lab_with::<DmaBlock>(Model::new(), manner, settings);
    for first in 0..5 {
        let data = lab.pool.take(512).unwrap();
        lab.nvme.submit(request(1, Operation::Write, first, 1), data).unwrap();
    }
    assert!(matches!(lab.nvme.wait(SHORT), Err(Error::Timeout { .. })));
    assert!(lab.nvme.abort().unwrap());
    let mut firsts = Vec::new();
    while let Some(done) = lab.nvme.poll().unwrap() {
        assert_eq!(done.result, Err(Status::ABORTED));
        firsts.push(done.request.first);
    }
    firsts.sort_unstable();
    assert_eq!((firsts, lab.software.aborted(), lab.nvme.in_flight()), ((0..5).collect(), 5, 0));
    assert_eq!(lab.software.troubles(), (0, 0));
    lab.software.set(Manner::default());
    let data = lab.pool.take(512).unwrap();
    lab.nvme.run(request(1, Operation::Write, 0, 1), data, SOON).unwrap();
}

/// A controller that cannot abort reports that. Its requests come back by a reset.
#[test]
fn what_cannot_be_aborted_is_ended_by_a_reset() {
    let mut lab = lab::<DmaBlock>(Manner { slow: true, ..Manner::default() }, 3);
    let data = lab.pool.take(512).unwrap();
    lab.nvme.submit(request(1, Operation::Read, 7, 1), data).unwrap();
    assert!(!lab.nvme.abort().unwrap());
    assert_eq!((lab.software.aborted(), lab.nvme.in_flight()), (1, 1));
    let ended = lab.nvme.reset().unwrap();
    assert_eq!(ended[0].0.first, 7);
}

/// A doorbell is ignored: the command stays in the ring, and the controller never gets it.
#[test]
fn a_doorbell_that_is_not_heard() {
    let mut lab = lab::<DmaBlock>(Manner { deaf: 1, ..Manner::default() }, 3);
    let data = lab.pool.take(512).unwrap();
    lab.nvme.submit(request(1, Operation::Read, 3, 1), data).unwrap();
    assert!(matches!(lab.nvme.wait(SHORT), Err(Error::Timeout { .. })));
    assert!(!lab.nvme.abort().unwrap());
    for (request, data) in lab.nvme.reset().unwrap() {
        assert!(lab.nvme.submit(request, data).is_ok());
    }
    let done = lab.nvme.wait(SOON).unwrap();
    assert_eq!((done.request.first, done.result), (3, Ok(())));
    assert_eq!(lab.software.troubles(), (0, 1));
}

/// A failed controller shows that in its status, long before the request is late.
#[test]
fn a_controller_that_has_failed_is_reset() {
    for interrupts in [false, true] {
        let manner = Manner { fails: true, ..Manner::default() };
        let mut lab = lab_with::<DmaBlock>(Model::new(), manner, |software| Settings {
            queues: 1,
            depth: 3,
            completion: match interrupts {
                true => CompletionMode::Interrupt(Box::new(Line(software.clone()))),
                false => CompletionMode::Poll,
            },
        });
        let data = lab.pool.take(512).unwrap();
        let started = std::time::Instant::now();
        lab.nvme.submit(request(1, Operation::Read, 0, 1), data).unwrap();
        let ended = lab.nvme.wait(Duration::from_secs(60));
        assert!(matches!(ended, Err(Error::Fatal)), "{ended:?}");
        assert!(started.elapsed() < Duration::from_secs(10));
        lab.software.set(Manner::default());
        let (request, data) = lab.nvme.reset().unwrap().pop().unwrap();
        lab.nvme.run(request, data, SOON).unwrap();
        assert_eq!(lab.software.troubles(), (0, 1));
    }
}

/// There are as many queues as requested, or as the controller has. Requests go to each in turn.
#[test]
fn queues_take_turns() {
    for (asked, granted) in [(0, 1), (1, 1), (3, 3), (4, 4), (100, 4)] {
        let manner = Manner { slow: true, ..Manner::default() };
        let mut lab = lab_with::<DmaBlock>(Model::new(), manner, |_| Settings {
            queues: asked,
            depth: 2,
            completion: CompletionMode::Poll,
        });
        assert_eq!((lab.nvme.queues(), lab.nvme.depth()), (granted, 2 * granted));
        for round in 0..3_u8 {
            for first in 0..2 * granted as u64 {
                let mut data = lab.pool.take(512).unwrap();
                data.fill(round + 1);
                lab.nvme.submit(request(1, Operation::Write, first, 1), data).unwrap();
            }
            let data = lab.pool.take(512).unwrap();
            let full = lab.nvme.submit(request(1, Operation::Write, 0, 1), data);
            assert!(matches!(full, Err((Error::Full, _))));
            lab.software.let_go();
            let mut firsts = Vec::new();
            while let Some(done) = lab.nvme.poll().unwrap() {
                firsts.push(done.request.first);
            }
            firsts.sort_unstable();
            assert_eq!(firsts, (0..2 * granted as u64).collect::<Vec<_>>());
        }
        assert_eq!(lab.software.told(), vec![6; granted]);
        // After a reset there are as many queues as before.
        lab.nvme.reset().unwrap();
        lab.software.set(Manner::default());
        for _ in 0..granted {
            let data = lab.pool.take(512).unwrap();
            lab.nvme.run(request(1, Operation::Read, 0, 1), data, SOON).unwrap();
        }
        assert_eq!(lab.software.told(), vec![7; granted]);
    }
}

/// The interrupts of the controller, which does its work while the driver sleeps.
struct Line(Software);

impl Interrupt for Line {
    fn wait(&mut self, timeout: Duration) -> std::io::Result<bool> {
        assert!(timeout <= Duration::from_millis(100), "a failed controller raises none");
        self.0.let_go();
        Ok(self.0.take_interrupts() > 0)
    }
}

#[test]
fn a_driver_sleeps_until_the_interrupt() {
    let manner = Manner { slow: true, ..Manner::default() };
    let mut lab = lab_with::<DmaBlock>(Model::new(), manner, |software| Settings {
        queues: 2,
        depth: 2,
        completion: CompletionMode::Interrupt(Box::new(Line(software.clone()))),
    });
    for _ in 0..10 {
        for first in 0..4 {
            let data = lab.pool.take(512).unwrap();
            lab.nvme.submit(request(1, Operation::Read, first, 1), data).unwrap();
        }
        assert!(lab.nvme.poll().unwrap().is_none());
        for _ in 0..4 {
            assert_eq!(lab.nvme.wait(SOON).unwrap().result, Ok(()));
        }
    }
    assert!(lab.nvme.woken() >= 10, "{}", lab.nvme.woken());
    // Without requests there is no interrupt, so the wait times out.
    assert!(matches!(lab.nvme.wait(Duration::ZERO), Err(Error::Timeout { .. })));
    // A driver that polls requests no interrupts.
    let mut lab = super::lab::<DmaBlock>(Manner::default(), 2);
    let data = lab.pool.take(512).unwrap();
    lab.nvme.run(request(1, Operation::Read, 0, 1), data, SOON).unwrap();
    assert_eq!(lab.software.take_interrupts(), 0);
}
