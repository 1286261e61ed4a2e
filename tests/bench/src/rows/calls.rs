//! Row 7: the time that a driver waits for a map and an unmap, compared with two empty calls. Two processes, the
//! client library, a socket, and the server over a unit that only counts.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iommu_client::platform::linux::Socket;
use iommu_client::{Access, BufferOptions, Connection, Device, Placement};

use crate::machine::function;
use crate::report::Line;
use crate::rows::frames::connection;
use crate::rows::servers::serve;
use crate::timing::{median, nanos, ratio};

/// Alternating slices of pairs and calls. They are so short that a disturbance affects both.
const SLICES: usize = 401;

/// Pairs in a slice.
const PAIRS: usize = 50;

/// A run that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(120);

/// Runs the driver process. Standard input is its socket. Prints nanoseconds of a pair and of two empty calls, for
/// each slice.
pub fn caller() {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().expect("a socket");
    let connection = Connection::over(Socket::over(socket));
    let device = Device::open(&connection, &function(8).address.to_string()).expect("a device");
    let permission = device.attach().expect("attached");
    let options = BufferOptions { unmapped: true, ..BufferOptions::default() };
    let buffer = device.allocate(4096, options).expect("a buffer");
    let pair = || {
        let mapping = buffer.slot().map(0..4096, Access::READ, Placement::Below4G);
        mapping.and_then(|mapping| mapping.unmap()).expect("mapped and unmapped");
    };
    let two_calls = || {
        for _ in 0..2 {
            device.query().expect("an answer");
        }
    };
    let slice = |work: &dyn Fn()| {
        let start = Instant::now();
        (0..PAIRS).for_each(|_| work());
        start.elapsed().as_secs_f64() * 1e9 / PAIRS as f64
    };
    for number in 0..=SLICES {
        let (pairs, calls) = if number % 2 == 0 {
            let pairs = slice(&pair);
            (pairs, slice(&two_calls))
        } else {
            let calls = slice(&two_calls);
            (slice(&pair), calls)
        };
        // The first slice only fills caches.
        if number > 0 {
            println!("{pairs} {calls}");
        }
    }
    device.detach(permission).expect("detached");
}

pub fn run() {
    let (end, theirs) = connection();
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.arg("caller").stdin(theirs).stdout(Stdio::piped());
    let mut child = command.spawn().expect("a driver");
    // Reads the output in parallel, so that the driver waits only for the server.
    let output = child.stdout.take().expect("output");
    let reader = std::thread::spawn(move || {
        let number = |word: &str| word.parse::<f64>().expect("a number");
        let both = |line: String| {
            let (pair, calls) = line.split_once(' ').expect("two numbers");
            (number(pair), number(calls))
        };
        BufReader::new(output).lines().map(|line| both(line.expect("a line"))).unzip()
    });
    serve(vec![end], Instant::now() + LONGEST);
    let (pairs, calls): (Vec<f64>, Vec<f64>) = reader.join().expect("read");
    assert!(child.wait().expect("ended").success());
    let against = ratio(&pairs, &calls);
    let what =
        "end to end on the host: processes, library, socket, server; a unit that only counts";
    Line::note(7, what, nanos(median(&pairs)))
        .peer(format!("two empty calls {}", nanos(median(&calls))), against)
        .target("<= 1.1x", against <= 1.1)
        .print();
}
