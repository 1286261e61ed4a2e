//! Tries mutants: each meets the tests that reach it, until one fails.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Result;

use super::child::{self, End};
use super::list::Mutant;
use super::report::{Results, Verdict};
use super::suite::Suite;
use super::workers;

/// Returns how long a test may take that takes `time` without a mutant: much longer, but a slow one not for ever.
fn limit(time: Duration) -> Duration {
    (time * 10 + Duration::from_secs(5)).min(time * 3 + Duration::from_secs(60))
}

/// The tests of a mutant take this long together without it; slower ones are left for a patient run.
const BUDGET: Duration = Duration::from_secs(5);

/// A test that is named like the mutated file, or is in its folder, counts as this many times quicker.
const NEAR: u32 = 30;

/// Progress is printed after this many mutants.
const STRIDE: usize = 100;

/// How many mutants of a file each test has caught. Such a test is tried earlier.
type Caught = HashMap<(String, usize), u32>;

/// Tries the mutants of these numbers, and notes what becomes of them.
pub(super) fn all(
    suite: &Suite,
    mutants: &[Mutant],
    numbers: &[u32],
    results: &Results,
    patient: bool,
) -> Result<()> {
    let caught = Mutex::new(Caught::new());
    let budget = if patient { Duration::MAX } else { BUDGET };
    workers::each(numbers.len(), |index| {
        let Some((number, mutant)) = numbers.get(index).and_then(|number| {
            let place = usize::try_from(*number).ok()?.checked_sub(1)?;
            Some((*number, mutants.get(place)?))
        }) else {
            return Ok(());
        };
        results.note(mutant, one(suite, number, &mutant.file, &caught, budget)?)?;
        if (index + 1) % STRIDE == 0 {
            println!("mutants: {} of {} begun", index + 1, numbers.len());
        }
        Ok(())
    })?;
    Ok(())
}

fn one(
    suite: &Suite,
    number: u32,
    file: &str,
    caught: &Mutex<Caught>,
    budget: Duration,
) -> Result<Verdict> {
    let Some(reached) = suite.reach.get(&number) else { return Ok(Verdict::Unreached) };
    let order = order(suite, reached, file, caught);
    let count = affordable(suite, &order, budget);
    for index in order.iter().take(count) {
        let Some(test) = suite.tests.get(*index) else { continue };
        let mut command = suite.command(test)?;
        let limit = limit(test.time);
        let (end, _) = child::run(command.env("MUTANT", number.to_string()), limit)?;
        if end == End::Passed {
            continue;
        }
        if let Ok(mut caught) = caught.lock() {
            *caught.entry((file.to_owned(), *index)).or_default() += 1;
        }
        let title = suite.title(test);
        let failed = end == End::Failed;
        return Ok(if failed { Verdict::Caught(title) } else { Verdict::TimedOut(title) });
    }
    let left = order.len() - count;
    let but = if left == 0 { String::new() } else { format!("{left} slow tests were not tried") };
    Ok(Verdict::Survived(but))
}

/// Returns how many of the tests there is time for: one at least.
fn affordable(suite: &Suite, order: &[usize], budget: Duration) -> usize {
    let mut spent = Duration::ZERO;
    let fits = |index: &&usize| {
        let time = suite.tests.get(**index).map_or(Duration::ZERO, |test| test.time);
        let fits = spent == Duration::ZERO || spent + time <= budget;
        spent += time;
        fits
    };
    order.iter().take_while(fits).count()
}

/// Orders the tests that reach a mutant: quick ones first. A test counts as quicker for each mutant of the file that it
/// has caught, and if it is named like the file or is in its folder.
fn order(suite: &Suite, reached: &[usize], file: &str, caught: &Mutex<Caught>) -> Vec<usize> {
    let (stem, beside) = (stem(file), beside(file));
    let cost = |index: &usize| {
        let Some(test) = suite.tests.get(*index) else { return Duration::MAX };
        let count = caught.lock().ok().and_then(|caught| {
            let count = caught.get(&(file.to_owned(), *index))?;
            Some(*count)
        });
        let named = !stem.is_empty() && test.name.contains(stem);
        let near = named || suite.title(test).starts_with(&beside);
        test.time / (1 + count.unwrap_or(0)) / if near { NEAR } else { 1 }
    };
    let mut order = reached.to_vec();
    order.sort_by_cached_key(cost);
    order
}

/// Returns the name of a file, without its plural: `budgets` has the tests of `budget.rs`.
fn stem(file: &str) -> &str {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.rsplit('/').next().unwrap_or(path).trim_end_matches('s')
}

/// Returns how the titles of the tests in the folder of a file begin.
fn beside(file: &str) -> String {
    let path = file.strip_prefix("iommud/src/").unwrap_or(file);
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("iommud: {}::", folder.replace('/', "::"))
}

#[cfg(test)]
mod tests {
    use super::super::build::Program;
    use super::super::suite::Test;
    use super::*;

    fn suite(milliseconds: &[u64]) -> Suite {
        let test = |milliseconds: &u64| Test {
            program: 0,
            name: String::new(),
            time: Duration::from_millis(*milliseconds),
        };
        Suite { tests: milliseconds.iter().map(test).collect(), ..Suite::default() }
    }

    #[test]
    fn slow_tests_are_left_out_but_not_the_only_one() {
        let suite = suite(&[3000, 100, 200, 20_000]);
        assert_eq!(affordable(&suite, &[1, 2, 0, 3], BUDGET), 3);
        assert_eq!(affordable(&suite, &[3], BUDGET), 1);
        assert_eq!(affordable(&suite, &[1, 2, 0, 3], Duration::MAX), 4);
    }

    #[test]
    fn quick_tests_come_first_and_good_ones_before_them() {
        let suite = suite(&[30, 10, 20]);
        let caught = Mutex::new(Caught::new());
        assert_eq!(order(&suite, &[0, 1, 2], "a.rs", &caught), [1, 2, 0]);
        caught.lock().unwrap().insert(("a.rs".into(), 0), 9);
        assert_eq!(order(&suite, &[0, 1, 2], "a.rs", &caught), [0, 1, 2]);
        assert_eq!(order(&suite, &[0, 2], "b.rs", &caught), [2, 0]);
        let mut suite = suite;
        suite.tests[0].name = "server::budgets::x".into();
        assert_eq!(order(&suite, &[0, 1, 2], "engine/budget.rs", &caught), [0, 1, 2]);
        assert_eq!(stem("iommud/src/policy/state/mod.rs"), "state");
    }

    /// The unit tests of a file's folder come before others that take less than 30 times as long.
    #[test]
    fn tests_in_the_folder_of_a_file_come_first() {
        let mut suite = suite(&[200, 20, 5]);
        let program = |name: &str| Program {
            name: name.to_owned(),
            path: Default::default(),
            folder: Default::default(),
        };
        suite.programs = ["iommud", "server_amdvi"].map(program).into();
        suite.tests[0].name = "hw::amdvi::tests::x".into();
        suite.tests[1].name = "hw::amdvi::tests::x".into();
        suite.tests[1].program = 1;
        suite.tests[2].name = "hw::vtd::tests::x".into();
        let caught = Mutex::new(Caught::new());
        assert_eq!(order(&suite, &[0, 1, 2], "iommud/src/hw/amdvi/log.rs", &caught), [2, 0, 1]);
        suite.tests[0].time = Duration::from_millis(140);
        assert_eq!(order(&suite, &[0, 1, 2], "iommud/src/hw/amdvi/log.rs", &caught), [0, 2, 1]);
    }

    #[test]
    fn a_mutant_that_no_test_reaches_survives() {
        let caught = Mutex::new(Caught::new());
        assert_eq!(one(&Suite::default(), 1, "a.rs", &caught, BUDGET).unwrap(), Verdict::Unreached);
    }
}
