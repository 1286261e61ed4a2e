//! Row 9: 64 driver processes at the same time, compared with a server that only replies.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::report::Line;
use crate::rows::driver::{ROUNDS, SETTLE, SLICE, SLICES, now, server_of};
use crate::rows::frames::connection;
use crate::rows::servers::{CLIENTS, answer, serve};
use crate::timing::{median, ratio};

/// Time until all drivers are ready.
const START: Duration = Duration::from_secs(2);

/// A run that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(60);

/// One slice with one of the servers.
struct Slice {
    /// Calls of each driver.
    calls: Vec<usize>,
    /// Nanoseconds, over all calls.
    median: f64,
    p99: f64,
}

impl Slice {
    /// Takes the durations of each driver's calls.
    fn new(drivers: Vec<Vec<f64>>) -> Self {
        let calls = drivers.iter().map(Vec::len).collect();
        let mut times = drivers.concat();
        times.sort_by(f64::total_cmp);
        let p99 = times[times.len() * 99 / 100];
        Self { calls, median: median(&times), p99 }
    }

    fn total(&self) -> f64 {
        self.calls.iter().sum::<usize>() as f64
    }
}

/// Reads a driver's output: the duration of each call, by slice.
fn times(mut driver: Child) -> Vec<Vec<f64>> {
    let lines = BufReader::new(driver.stderr.take().expect("its words")).lines();
    let number = |line: &str, word: &str| word.parse().unwrap_or_else(|_| panic!("{line}"));
    let numbers = |line: String| line.split_ascii_whitespace().map(|w| number(&line, w)).collect();
    let times: Vec<_> = lines.map(|line| numbers(line.expect("a line"))).collect();
    assert!(driver.wait().expect("ended").success());
    assert_eq!(times.len(), SLICES);
    times
}

/// Measures alternating slices of the server and of the null handler.
fn measure() -> [Vec<Slice>; 2] {
    let begin = now() + START;
    let driver = |number: u16| {
        let ((server, input), (null, output)) = (connection(), connection());
        let mut command = Command::new(std::env::current_exe().expect("a program"));
        command.args(["driver", &number.to_string(), &begin.as_nanos().to_string()]);
        command.stdin(input).stdout(output).stderr(Stdio::piped());
        let driver = command.spawn().expect("a driver");
        // Reads the output in parallel, so that a driver waits only for the server.
        (server, (null, std::thread::spawn(|| times(driver))))
    };
    let (servers, (nulls, readers)): (Vec<_>, (Vec<_>, Vec<_>)) = (0..CLIENTS).map(driver).unzip();
    let end = Instant::now() + LONGEST;
    let null = std::thread::spawn(move || answer(nulls, end));
    serve(servers, end);
    null.join().expect("served");
    let mut drivers: Vec<_> =
        readers.into_iter().map(|it| it.join().expect("a result").into_iter()).collect();
    let mut slices = [Vec::new(), Vec::new()];
    for slice in 0..SLICES {
        let of_all = drivers.iter_mut().map(|times| times.next().expect("a slice")).collect();
        slices[server_of(slice)].push(Slice::new(of_all));
    }
    // The first round is not counted.
    slices.map(|slices| slices.into_iter().skip(1).collect())
}

/// Ratio of the busiest driver's calls to the least busy one's, over all slices.
fn spread(slices: &[Slice]) -> f64 {
    let calls = |driver| slices.iter().map(|slice| slice.calls[driver]).sum::<usize>() as f64;
    let calls: Vec<f64> = (0..usize::from(CLIENTS)).map(calls).collect();
    calls.iter().copied().fold(0.0, f64::max) / calls.iter().copied().fold(f64::INFINITY, f64::min)
}

pub fn run() {
    let [server, null] = measure();
    assert_eq!((server.len(), null.len()), (ROUNDS, ROUNDS));
    let pick = |slices: &[Slice], of: fn(&Slice) -> f64| slices.iter().map(of).collect::<Vec<_>>();
    let counted = (SLICE - SETTLE).as_secs_f64();
    let per_second = |slices: &[Slice]| median(&pick(slices, Slice::total)) / counted;
    let against = ratio(&pick(&server, Slice::total), &pick(&null, Slice::total));
    let calls = format!("{:.0}", per_second(&server));
    Line::note(9, format!("{CLIENTS} processes, map and unmap calls a second"), calls)
        .peer(format!("null handler {:.0}", per_second(&null)), against)
        .target(">= 0.9x", against >= 0.9)
        .print();
    let tail = median(&pick(&server, |slice| slice.p99 / slice.median));
    Line::note(9, "the same: p99 over median of a call", format!("{tail:.1}x"))
        .peer("null handler", tail / median(&pick(&null, |slice| slice.p99 / slice.median)))
        .target("<= 3x", tail <= 3.0)
        .print();
    let most = spread(&server);
    Line::note(9, "the same: best client over worst", format!("{most:.2}x"))
        .peer("null handler", most / spread(&null))
        .target("<= 1.1x", most <= 1.1)
        .print();
}
