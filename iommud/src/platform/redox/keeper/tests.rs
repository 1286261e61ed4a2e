//! Tests of the keeper's decisions, over servers that fail in every way at every step.

use std::collections::{BTreeSet, VecDeque};
use std::os::unix::process::ExitStatusExt;

use super::*;
use crate::addr::PhysAddr;

/// Statuses as wait(2) returns them.
const KILLED: i32 = 9;
const PANICKED: i32 = 101 << 8;
const FAILED: i32 = 1 << 8;
const GOOD: i32 = 0;
const USAGE: i32 = 2 << 8;

/// The fate of a server. By default it comes up and is killed.
#[derive(Clone, Debug)]
struct Plan {
    /// The number of descriptors that it sends: socket, memory, root.
    gives: usize,
    /// The error of the next attempt to receive one.
    fails: io::ErrorKind,
    /// The result of waiting for its acknowledgement that the memory is held.
    held: Result<(), io::ErrorKind>,
    /// Its answer when asked whether older memory may go.
    go: Result<bool, io::ErrorKind>,
    /// The error of asking for its state after its death.
    contents: Option<io::ErrorKind>,
    /// Number of looks at which it still lives.
    looks: usize,
    /// Number of times that it refuses to let older memory go before it answers as `go` says.
    stays: usize,
    status: i32,
    /// Killing it, and waiting for its end, fail.
    lives: bool,
    age: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            gives: 3,
            fails: io::ErrorKind::BrokenPipe,
            held: Ok(()),
            go: Ok(true),
            contents: None,
            looks: 0,
            stays: 0,
            status: KILLED,
            lives: false,
            age: Duration::from_secs(60),
        }
    }
}

struct Server {
    number: usize,
    plan: Plan,
    given: usize,
}

/// The holder of the memory of the server with this number.
struct Hold {
    number: usize,
    plan: Plan,
    told: bool,
}

/// One event of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// A server was started. This many ranges of memory are left from earlier ones.
    Started(usize),
    Known(usize),
    Killed(usize),
    Answered(usize),
    NameTaken,
    /// The memory of the server was given up.
    LetGo(usize),
    /// A holder without memory ended.
    Ended(usize),
    Paused(Duration),
}
use Seen::{Answered, Ended, Killed, Known, LetGo, NameTaken, Paused, Started};

#[derive(Default)]
struct World {
    plans: VecDeque<Plan>,
    seen: Vec<Seen>,
    started: usize,
    no_answers: bool,
}

impl World {
    fn refuse<T>(kind: io::ErrorKind) -> io::Result<T> {
        Err(kind.into())
    }
}

impl System for World {
    type Server = Server;
    type Descriptor = usize;
    type Hold = Hold;

    fn start(&mut self, options: &Options, _: &mut Vec<Hold>) -> io::Result<(Server, Hold)> {
        let Some(plan) = self.plans.pop_front() else {
            return Self::refuse(io::ErrorKind::OutOfMemory);
        };
        let number = self.started;
        self.started += 1;
        self.seen.push(Started(options.left.len()));
        let hold = Hold { number, plan: plan.clone(), told: false };
        Ok((Server { number, plan, given: 0 }, hold))
    }

    fn receive(&mut self, server: &mut Server) -> io::Result<usize> {
        if server.given == server.plan.gives {
            return Self::refuse(server.plan.fails);
        }
        server.given += 1;
        Ok(server.number)
    }

    fn bring(&mut self, _: &mut Hold, _: &usize) -> io::Result<()> {
        Ok(())
    }

    fn be_told(&mut self, hold: &mut Hold, server: &mut Server) -> io::Result<()> {
        server.plan.held.map_err(io::Error::from)?;
        hold.told = true;
        Ok(())
    }

    fn was_told(&self, hold: &Hold) -> bool {
        hold.told
    }

    fn contents(&mut self, hold: &mut Hold) -> io::Result<Contents> {
        if let Some(error) = hold.plan.contents {
            return Self::refuse(error);
        }
        let first = u64::try_from(hold.number + 1).unwrap() << 30;
        let ranges = vec![PhysRange::new(PhysAddr(first), 4096).unwrap()];
        Ok(Contents {
            ranges,
            driven: vec![PciAddress::new(0, 0, 4, 0).unwrap()],
            tags: Some(TagRecord::from_bits(0x0002_0010)),
        })
    }

    fn ended(&mut self, server: &mut Server) -> io::Result<Option<ExitStatus>> {
        match server.plan.looks.checked_sub(1) {
            Some(looks) => server.plan.looks = looks,
            None => return self.wait(server).map(Some),
        }
        Ok(None)
    }

    fn may_go(&mut self, _: &mut Hold, server: &mut Server) -> io::Result<bool> {
        if let Some(stays) = server.plan.stays.checked_sub(1) {
            server.plan.stays = stays;
            return Ok(false);
        }
        server.plan.go.map_err(io::Error::from)
    }

    fn let_go(&mut self, hold: Hold) -> io::Result<()> {
        self.seen.push(LetGo(hold.number));
        Ok(())
    }

    fn end(&mut self, hold: Hold) -> io::Result<()> {
        self.seen.push(Ended(hold.number));
        Ok(())
    }

    fn make_known(&mut self, root: usize) -> io::Result<()> {
        self.seen.push(Known(root));
        Ok(())
    }

    fn wait_no_more(&mut self) {}

    fn take_name_back(&mut self) {
        self.seen.push(NameTaken);
    }

    fn answer(&mut self, socket: usize) -> io::Result<()> {
        self.seen.push(Answered(socket));
        if self.no_answers { Self::refuse(io::ErrorKind::OutOfMemory) } else { Ok(()) }
    }

    fn wait(&mut self, server: &mut Server) -> io::Result<ExitStatus> {
        let status = ExitStatus::from_raw(server.plan.status);
        if server.plan.lives { Self::refuse(io::ErrorKind::NotFound) } else { Ok(status) }
    }

    fn kill(&mut self, server: &mut Server) -> io::Result<ExitStatus> {
        self.seen.push(Killed(server.number));
        let status = ExitStatus::from_raw(server.plan.status);
        if server.plan.lives { Self::refuse(io::ErrorKind::TimedOut) } else { Ok(status) }
    }

    fn age(&self, server: &Server) -> Duration {
        server.plan.age
    }

    fn pause(&mut self, time: Duration) {
        self.seen.push(Paused(time));
    }
}

/// The result of running such servers, one after another, until the system gives no process.
struct Run {
    seen: Vec<Seen>,
    good: bool,
    /// Servers whose memory is held at the end.
    held: Vec<usize>,
    driven: usize,
    tags: Option<TagRecord>,
}

fn run(plans: &[Plan]) -> Run {
    run_in(World::default(), plans)
}

fn run_in(world: World, plans: &[Plan]) -> Run {
    let world = World { plans: plans.iter().cloned().collect(), ..world };
    let mut keeper = Keeper::new(world, &Options::default());
    let good = keeper.run();
    let held = keeper.old.iter().map(|hold| hold.number).collect();
    let driven = keeper.options.driven.len();
    let tags = keeper.options.tags;
    Run { seen: keeper.system.seen, good, held, driven, tags }
}

const NONE: Seen = Paused(Duration::ZERO);

#[test]
fn a_server_that_dies_is_followed_and_its_memory_goes_when_the_next_says_so() {
    let last = Plan { status: GOOD, ..Plan::default() };
    let run = run(&[Plan::default(), Plan { go: Ok(true), ..last }]);
    let expected = [
        Started(0),
        Known(0),
        Answered(0),
        NameTaken,
        NONE,
        // Until then the memory of the first server stays out of every device's reach.
        Started(1),
        Known(1),
        LetGo(0),
        Answered(1),
        NameTaken,
    ];
    assert_eq!((run.seen, run.good), (expected.to_vec(), true));
    assert_eq!(run.held, [1], "units go on with the tables of the last one, however it ended");
    assert_eq!((run.driven, run.tags), (1, Some(TagRecord::from_bits(0x0002_0010))));
}

#[test]
fn memory_is_held_while_a_unit_is_not_enabled() {
    let refuses = || Plan { go: Ok(false), ..Plan::default() };
    let run = run(&[Plan::default(), refuses(), refuses(), Plan::default(), Plan::default()]);
    assert!(!run.good, "there is no process to be had for a sixth");
    // The fourth server lets the memory of the three before it go.
    let gone: Vec<_> = run.seen.iter().filter(|seen| matches!(seen, LetGo(_))).collect();
    assert_eq!(gone, [&LetGo(0), &LetGo(1), &LetGo(2), &LetGo(3)]);
    let started: Vec<_> = run.seen.iter().filter(|seen| matches!(seen, Started(_))).collect();
    // The fifth server gets only the range of the fourth.
    assert_eq!(started, [0, 1, 2, 3, 1].map(Started).iter().collect::<Vec<_>>());
    let first_gone = run.seen.iter().position(|seen| *seen == LetGo(0));
    assert!(first_gone > run.seen.iter().position(|seen| *seen == Known(3)));
    assert_eq!(run.held, [4]);
}

/// A unit of the second server comes back after a while: then the memory of the first one goes, and not with the next
/// death. A server that ends meanwhile is noticed.
#[test]
fn held_memory_is_asked_for_again_while_a_server_runs() {
    let late = Plan { stays: 3, looks: 1000, ..Plan::default() };
    let run = run(&[Plan::default(), late]);
    let gone = run.seen.iter().position(|seen| *seen == LetGo(0)).unwrap();
    assert!(gone < run.seen.iter().position(|seen| *seen == Answered(1)).unwrap());
    // The pauses between the questions grow: 10, 20 and 40 looks.
    let pauses = run.seen.iter().filter(|seen| **seen == Paused(LOOK)).count();
    assert_eq!(pauses, 10 + 20 + 40);
    let soon = Plan { stays: usize::MAX, looks: 5, ..Plan::default() };
    let run = super::tests::run(&[Plan::default(), soon]);
    assert_eq!(run.seen.iter().filter(|seen| **seen == Paused(LOOK)).count(), 5);
    assert!(run.seen.contains(&Answered(1)) && !run.seen.contains(&LetGo(0)));
}

#[test]
fn a_server_that_says_nothing_is_killed_and_lets_nothing_go() {
    for silence in [io::ErrorKind::BrokenPipe, io::ErrorKind::TimedOut] {
        let silent = Plan { go: Err(silence), ..Plan::default() };
        let run = run(&[Plan::default(), silent]);
        assert!(run.seen.contains(&Killed(1)), "{:?}", run.seen);
        assert!(!run.seen.iter().any(|seen| matches!(seen, LetGo(_))));
        assert_eq!(run.held, [0, 1]);
    }
}

/// The server may have been notified although its acknowledgement did not arrive. So its memory stays held, unless
/// the holder has ended.
#[test]
fn a_server_that_was_not_told_has_its_memory_held_if_there_is_any() {
    let hung = Plan { held: Err(io::ErrorKind::TimedOut), ..Plan::default() };
    let run = run(&[Plan::default(), hung.clone()]);
    assert_eq!((run.held, run.seen.contains(&Killed(1))), (vec![0, 1], true));
    let gone = Plan { contents: Some(io::ErrorKind::UnexpectedEof), ..hung };
    let run = self::run(&[Plan::default(), gone]);
    assert_eq!(run.held, [0]);
    assert!(run.seen.contains(&LetGo(1)), "no unit knows of it");
}

/// Units may use the memory. If the holder fails to report it, the keeper starts no other server, which would treat
/// the memory as free.
#[test]
fn a_server_that_was_told_is_never_followed_without_its_memory() {
    for error in [io::ErrorKind::UnexpectedEof, io::ErrorKind::TimedOut, io::ErrorKind::InvalidData]
    {
        let lost = Plan { contents: Some(error), ..Plan::default() };
        let run = run(&[lost, Plan::default()]);
        assert_eq!((run.good, run.held), (false, vec![0]), "{error:?}");
        assert_eq!(run.seen.iter().filter(|seen| matches!(seen, Started(_))).count(), 1);
    }
}

#[test]
fn a_server_that_may_live_is_followed_by_none() {
    let hangs = Plan { gives: 2, lives: true, ..Plan::default() };
    let unknown = Plan { lives: true, ..Plan::default() };
    for plan in [hangs, unknown] {
        let run = run(&[Plan::default(), plan, Plan::default()]);
        assert!(!run.good);
        let gone = run.seen.contains(&LetGo(0));
        assert_eq!(run.held, if gone { vec![1] } else { vec![0, 1] });
        assert_eq!(run.seen.iter().filter(|seen| matches!(seen, Started(_))).count(), 2);
    }
}

#[test]
fn when_the_first_cannot_run_no_other_is_started() {
    for status in [FAILED, KILLED, PANICKED] {
        for gives in [0, 1] {
            let run = run(&[Plan { gives, status, ..Plan::default() }, Plan::default()]);
            assert_eq!((run.good, run.held.len()), (false, 0));
            let answered = (gives == 1).then_some(Answered(0)).into_iter();
            let expected: Vec<_> =
                [Started(0), Killed(0)].into_iter().chain(answered).chain([Ended(0)]).collect();
            assert_eq!(run.seen, expected);
        }
    }
}

#[test]
fn ten_that_cannot_run_are_enough_and_what_is_held_stays() {
    let fails = Plan { gives: 0, status: FAILED, ..Plan::default() };
    let plans: Vec<_> = std::iter::once(Plan::default()).chain(vec![fails; 20]).collect();
    let run = run(&plans);
    assert_eq!((run.good, run.held), (false, vec![0]));
    assert_eq!(run.seen.iter().filter(|seen| matches!(seen, Started(_))).count(), 11);
    let pauses: Vec<_> = run
        .seen
        .iter()
        .filter_map(|seen| if let Paused(time) = seen { Some(time.as_millis()) } else { None })
        .collect();
    assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
}

/// Servers are killed again and again during take-over. Each leaves memory behind, so the number of attempts is
/// limited.
#[test]
fn servers_that_die_before_they_serve_count_as_failures() {
    let dies = Plan { gives: 2, ..Plan::default() };
    let plans: Vec<_> = std::iter::once(Plan::default()).chain(vec![dies; 20]).collect();
    let run = run(&plans);
    assert!(!run.good);
    assert_eq!(run.held, (0..=10).collect::<Vec<_>>());
}

#[test]
fn a_good_end_is_the_last_and_a_wrong_command_line_is_none() {
    let run = run(&[Plan { status: GOOD, ..Plan::default() }, Plan::default()]);
    assert_eq!((run.good, run.held), (true, vec![0]), "units go on with its tables");
    let run = self::run(&[Plan { status: USAGE, gives: 0, ..Plan::default() }, Plan::default()]);
    assert_eq!((run.good, run.held.len()), (false, 0));
}

#[test]
fn a_server_without_answers_is_followed_all_the_same() {
    let world = World { no_answers: true, ..World::default() };
    let run = run_in(world, &[Plan::default(), Plan::default()]);
    assert_eq!(run.seen.iter().filter(|seen| matches!(seen, Started(_))).count(), 2);
    assert_eq!(run.held, [1]);
    assert!(run.seen.contains(&LetGo(0)));
}

/// The manager of name spaces may wait for the dead server. So its requests are answered before anything else.
#[test]
fn clients_of_a_dead_server_are_answered_first() {
    let run = run(&[Plan::default(), Plan::default()]);
    let at = |wanted: &Seen| run.seen.iter().position(|seen| seen == wanted);
    assert!(at(&Known(0)) < at(&Answered(0)) && at(&Answered(0)) < at(&NameTaken));
    assert!(at(&NameTaken) < at(&Started(1)));
    let numbers: BTreeSet<_> = run.held.iter().collect();
    assert_eq!(numbers.len(), 1);
}
