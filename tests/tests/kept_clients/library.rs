//! Clients of the library.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use iommu_client::platform::linux::Socket;
use iommu_client::{BufferOptions, Connection, Device, Error};

use crate::harness::DEVICES;
use crate::processes::{Kept, until};

/// Kills of the server under load.
const KILLS: usize = 60;

fn connect(kept: &Kept) -> Connection {
    Connection::over(Socket::over(kept.connect()))
}

/// Three threads over two connections read texts and list names. Servers die at any time, also while they come up. No
/// request fails, and none hangs.
pub(crate) fn pause() {
    let kept = Kept::start(&[]);
    let connections = [connect(&kept), connect(&kept)];
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let longest = std::thread::scope(|scope| {
        let load = |connection: Connection| {
            let (stop, done) = (&stop, &done);
            move || {
                let mut longest = Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    assert!(connection.text("metrics").unwrap().contains("handles"));
                    assert_eq!(connection.names("devices").unwrap(), DEVICES);
                    longest = longest.max(start.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                longest
            }
        };
        let [first, second] = &connections;
        let threads = [first, first, second].map(|it| scope.spawn(load(it.clone())));
        for kill in 0..KILLS {
            // Some die before they serve, and most under load.
            std::thread::sleep(Duration::from_millis((kill * 7 % 30).try_into().unwrap()));
            kept.kill_server();
        }
        let before = done.load(Ordering::Relaxed);
        let goes_on = || (done.load(Ordering::Relaxed) > before + 10).then_some(());
        let went_on = catch_unwind(AssertUnwindSafe(|| until("the load goes on", goes_on)));
        stop.store(true, Ordering::Relaxed);
        went_on.unwrap();
        threads.map(|thread| thread.join().unwrap()).into_iter().max().unwrap()
    });
    println!("{KILLS} kills, {} rounds, the longest took {longest:.1?}", done.into_inner());
}

/// The session has ended, as a waiting thread learns at once. Its device is opened again over the same connection, and
/// the end of the old one does nothing to the new one.
pub(crate) fn reopen() {
    let kept = Kept::start(&[]);
    let connection = connect(&kept);
    let device = Device::open(&connection, DEVICES[0]).unwrap();
    let buffer = device.allocate(4096, BufferOptions::default()).unwrap();
    std::thread::scope(|scope| {
        let start = Instant::now();
        let waiting = scope.spawn(|| device.wait_fault(Duration::from_secs(60)));
        std::thread::sleep(Duration::from_millis(100));
        kept.kill_server();
        let told = waiting.join().unwrap();
        assert!(matches!(told, Err(Error::Disconnected)), "{told:?}");
        assert!(start.elapsed() < Duration::from_secs(20));
    });
    assert!(matches!(device.query(), Err(Error::Disconnected)));
    let again = Device::open(&connection, DEVICES[0]).unwrap();
    let mut memory = again.allocate(4096, BufferOptions::default()).unwrap();
    drop((buffer, device));
    memory.write(0, b"of the second").unwrap();
    again.query().unwrap();
    drop((memory, again));
    assert!(connection.text("metrics").unwrap().contains("\nsessions 0\n"));
}
