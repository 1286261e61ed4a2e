//! How strictly the controller is confined to the memory of its requests, in each mode: what it costs in calls,
//! invalidations and waits, and what the controller reaches when.

use iommu_client::DeviceMemory;
use iommu_protocol::wire::Operation as Call;
use iommud_tests::model::Vendor;
use nvme::{Confine, Data, DataSource, Error, LentData, Operation, Request, Trouble, Work};

use super::software::{BLOCK, Manner};
use super::{Lab, Model, SOON, bytes, lab, lab_on, request};

/// Writes a pattern, or reads it and compares.
struct Check {
    finished: usize,
}

impl Work for Check {
    type Error = Error;

    fn prepare(&mut self, request: &Request, memory: &mut Data) -> Result<(), Error> {
        match request.operation {
            Operation::Write => memory.write(0, &pattern(request, memory))?,
            Operation::Read => memory.fill(0xee),
            Operation::Flush => assert!(matches!(memory, Data::None)),
        }
        Ok(())
    }

    fn finish(&mut self, request: &Request, memory: &Data) -> Result<(), Error> {
        if request.operation == Operation::Read {
            assert!(memory.to_vec() == pattern(request, memory), "{request:?}");
        }
        self.finished += 1;
        Ok(())
    }

    fn trouble(&mut self, trouble: &Trouble) {
        panic!("{trouble}");
    }
}

/// Every mode, on a unit of each vendor.
fn everywhere() -> impl Iterator<Item = (Vendor, Confine)> {
    Vendor::ALL.into_iter().flat_map(|vendor| Confine::ALL.map(|confine| (vendor, confine)))
}

fn pattern(request: &Request, memory: &Data) -> Vec<u8> {
    bytes(request.first, usize::try_from(memory.length()).unwrap())
}

/// 64 requests of `blocks` blocks of 512 bytes each, and their lengths.
fn all(operation: Operation, blocks: u64) -> impl Iterator<Item = (Request, u64)> {
    (0..64).map(move |n| (request(1, operation, n * blocks, blocks), blocks * 512))
}

/// Memory of a pool costs nothing. Otherwise each group costs one call, and one invalidation and one wait when it ends;
/// the last group, a call of its own. A group is as many requests as are under way at once. Doorbells are rung once a
/// group in every mode.
#[test]
fn a_group_of_transfers_costs_one_call() {
    for confine in Confine::ALL {
        for (depth, blocks) in [1, 8, 32].into_iter().flat_map(|d| [1, 8, 32].map(|b| (d, b))) {
            let mut lab = lab::<LentData>(Manner::default(), 32);
            let length = blocks * 512;
            let mut source = DataSource::new(&lab.device, confine, depth, length).unwrap();
            // The first run takes memory for lists of addresses, and in a pool for data.
            run(&mut lab, &mut source, Operation::Write, blocks);
            for operation in [Operation::Write, Operation::Read] {
                let (before, rung) = (lab.model.counts(), rings(&lab));
                run(&mut lab, &mut source, operation, blocks);
                let (after, groups) = (lab.model.counts(), 64 / depth as u64);
                let spent = [
                    after.requests() - before.requests(),
                    after.of(Call::Batch) - before.of(Call::Batch),
                    after.page_invalidations - before.page_invalidations,
                    after.waits - before.waits,
                ];
                let expected = match confine {
                    Confine::Pool => [0; 4],
                    _ => [groups + 1, groups + 1, groups, groups],
                };
                let what = format!("{confine}, depth {depth}, {length} bytes");
                assert_eq!((spent, rings(&lab) - rung), (expected, groups), "{what}");
            }
            assert_eq!((lab.device.faults().count(), lab.software.troubles()), (0, (0, 0)));
        }
    }
}

fn run(lab: &mut Lab<LentData>, source: &mut DataSource, operation: Operation, blocks: u64) {
    let mut check = Check { finished: 0 };
    lab.nvme.carry_out(source, SOON, all(operation, blocks), &mut check).unwrap();
    assert_eq!((check.finished, lab.nvme.in_flight()), (64, 0));
}

/// How often the doorbells of requests were rung.
fn rings(lab: &Lab<LentData>) -> u64 {
    lab.software.told().into_iter().map(u64::from).sum()
}

/// Whether the server has neither a session nor a buffer.
fn is_idle(model: &Model) -> bool {
    let metrics = model.connection().text("metrics").unwrap();
    ["sessions 0", "buffers 0"].iter().all(|line| metrics.lines().any(|found| found == *line))
}

/// Lends memory of a request to the controller, which is slow, and sends it.
fn send(
    lab: &mut Lab<LentData>,
    source: &mut DataSource,
    request: Request,
    length: u64,
) -> (u64, u64) {
    let mut data = source.take(length).unwrap();
    if request.operation == Operation::Write {
        data.fill(0x11);
    }
    source.lend(request, data).unwrap();
    source.flush().unwrap();
    let (request, data) = source.ready().unwrap();
    let range = (data.iova(), data.iova() + length);
    lab.nvme.submit(request, data).unwrap();
    range
}

/// Lets the controller carry out what was sent, and gets the memory back.
fn receive(lab: &mut Lab<LentData>, source: &mut DataSource) -> Data {
    lab.software.let_go();
    let done = lab.nvme.wait(SOON).unwrap();
    assert_eq!(done.result, Ok(()));
    source.finished(done.request, done.data).unwrap();
    source.flush().unwrap();
    source.returned().unwrap().1
}

/// A controller that reaches out: one byte outside of its transfer, before the grant, after the revoke, in the wrong
/// direction. Each is denied where the mode promises it. What a pool leaves open is shown too.
#[test]
fn a_rogue_controller_reaches_what_the_mode_says() {
    for (vendor, confine) in everywhere() {
        for (operation, blocks) in
            [1, 8, 24].into_iter().flat_map(|b| [(Operation::Write, b), (Operation::Read, b)])
        {
            let mut lab = lab_on::<LentData>(
                Model::of(vendor),
                Manner { slow: true, ..Manner::default() },
                4,
            );
            let length = blocks * 512;
            let mut source = DataSource::new(&lab.device, confine, 2, length).unwrap();
            let (model, at) = (lab.model.clone(), lab.device.address());
            let reads = |iova| model.device_read(at, iova, 1).is_ok();
            let writes = |iova| model.device_write(at, iova, &[0xbb]).is_ok();
            // Not the first of the memory, so that the byte before it is the source's too.
            let _first = source.take(length).unwrap();
            // The first request tells the address, which the second one uses again.
            let (first, _) = send(&mut lab, &mut source, request(1, operation, 0, blocks), length);
            drop(receive(&mut lab, &mut source));
            let pool = confine == Confine::Pool;
            assert_eq!((reads(first), writes(first)), (pool, pool), "{confine}: before the grant");
            let (start, end) =
                send(&mut lab, &mut source, request(1, operation, 0, blocks), length);
            let to_device = operation == Operation::Write;
            assert_eq!((reads(start), writes(start)), (to_device || pool, !to_device || pool));
            assert_eq!((reads(end - 1), writes(end - 1)), (to_device || pool, !to_device || pool));
            let outside = end.next_multiple_of(4096);
            if pool {
                assert!(reads(outside) && writes(outside), "the pool goes on there");
            } else {
                for iova in [start - 1, outside] {
                    assert!(!reads(iova) && !writes(iova), "{confine}: one byte outside");
                }
            }
            // In the same page as the end of a short transfer.
            if end % 4096 != 0 && !pool && to_device {
                let rest = model.device_read(at, end, usize::try_from(outside - end).unwrap());
                assert!(rest.unwrap().iter().all(|byte| *byte == 0), "fresh, or zeros");
            }
            if end % 4096 != 0 && !pool && !to_device {
                assert!(writes(end), "a unit confines by pages");
            }
            let data = receive(&mut lab, &mut source);
            assert_eq!(data.length(), length);
            if !to_device {
                // The controller wrote last, all that was asked for; the byte behind is not the program's.
                assert_eq!(
                    data.to_vec(),
                    lab.software.disk(1, 0, usize::try_from(length).unwrap())
                );
            }
            assert_eq!((reads(start), writes(start)), (pool, pool), "{confine}: after the revoke");
            assert_eq!(lab.software.troubles(), (0, 0));
        }
    }
}

/// A slot that held a longer request: the rest of the page is what it was in mode `transfer`, and zeros in `page-exact`.
#[test]
fn the_rest_of_a_page_is_as_the_mode_says() {
    for (confine, rest) in [(Confine::Transfer, 0x77), (Confine::PageExact, 0)] {
        let mut lab = lab::<LentData>(Manner { slow: true, ..Manner::default() }, 4);
        let mut source = DataSource::new(&lab.device, confine, 1, 4096).unwrap();
        let slots: Vec<_> = (0..2).map(|_| source.take(4096).unwrap()).collect();
        for mut slot in slots {
            slot.fill(0x77);
        }
        let (start, _) = send(&mut lab, &mut source, request(1, Operation::Write, 0, 1), 512);
        let seen = lab.model.device_read(lab.device.address(), start, 4096).unwrap();
        assert!(seen[..512] == [0x11; 512] && seen[512..].iter().all(|byte| *byte == rest));
        drop(receive(&mut lab, &mut source));
    }
}

/// The driver dies in the middle of writes and reads, in each mode. Its controller goes on, but reaches nothing, and all
/// memory comes back for the next driver.
#[test]
fn death_in_the_middle_leaves_no_dma_in_any_mode() {
    for (vendor, confine) in everywhere() {
        let mut lab =
            lab_on::<LentData>(Model::of(vendor), Manner { slow: true, ..Manner::default() }, 4);
        let mut source = DataSource::new(&lab.device, confine, 4, 4096).unwrap();
        let (iova, _) = send(&mut lab, &mut source, request(1, Operation::Write, 0, 8), 4096);
        send(&mut lab, &mut source, request(1, Operation::Read, 8, 8), 4096);
        send(&mut lab, &mut source, request(1, Operation::Read, 16, 1), 512);
        assert_eq!(lab.software.kept(), 3);
        lab.model.kill_clients();
        assert_eq!(lab.model.reach(lab.device.address()), []);
        assert!(lab.model.device_read(lab.device.address(), iova, 1).is_err());
        lab.software.let_go();
        // Three transfers of data and three completions.
        assert_eq!(lab.software.troubles(), (6, 0), "{confine}");
        let Lab { nvme, software, pool, device, _permission, model } = lab;
        // A dead process drops nothing.
        std::mem::forget((nvme, pool, device, _permission, software, source));
        assert!(is_idle(&model), "{confine}: memory is left");
        let mut next = lab_on::<LentData>(model, Manner::default(), 4);
        let mut source = DataSource::new(&next.device, confine, 4, 4096).unwrap();
        run(&mut next, &mut source, Operation::Write, 8);
    }
}

/// A flush moves no data: it takes no memory, and no call to the server.
#[test]
fn a_flush_lends_nothing() {
    for confine in Confine::ALL {
        let mut lab = lab::<LentData>(Manner::default(), 4);
        let mut source = DataSource::new(&lab.device, confine, 4, 4096).unwrap();
        let before = lab.model.counts();
        let flush = (request(1, Operation::Flush, 0, 0), 0);
        let mut check = Check { finished: 0 };
        lab.nvme.carry_out(&mut source, SOON, [flush], &mut check).unwrap();
        assert_eq!((check.finished, lab.software.flushes()), (1, 1));
        assert_eq!(lab.model.counts(), before);
    }
}

/// A run that ended early leaves memory behind. The next one has all of it again.
#[test]
fn a_failed_run_leaves_the_source_usable() {
    struct Fails(usize);
    impl Work for Fails {
        type Error = Error;

        fn prepare(&mut self, _: &Request, _: &mut Data) -> Result<(), Error> {
            self.0 = self.0.checked_sub(1).ok_or(Error::Full)?;
            Ok(())
        }

        fn finish(&mut self, _: &Request, _: &Data) -> Result<(), Error> {
            Err(Error::Gone)
        }

        fn trouble(&mut self, _: &Trouble) {}
    }
    for confine in Confine::ALL {
        let mut lab = lab::<LentData>(Manner::default(), 4);
        let mut source = DataSource::new(&lab.device, confine, 4, 4096).unwrap();
        for prepared in [0, 2, 4, 6, 8] {
            let mut work = Fails(prepared);
            let requests = all(Operation::Write, 8);
            let failed = lab.nvme.carry_out(&mut source, SOON, requests, &mut work);
            assert!(matches!(failed, Err(Error::Full | Error::Gone)), "{failed:?}");
            lab.nvme.reset().unwrap();
            run(&mut lab, &mut source, Operation::Write, 8);
            let written = lab.software.disk(1, 0, 4096);
            assert!(written == bytes(0, 8 * BLOCK[0]), "{confine}");
        }
    }
}
