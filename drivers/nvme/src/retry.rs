//! Requests carried out to their end, whatever the controller does meanwhile.

use std::fmt;
use std::time::Duration;

use iommu_client::{DmaBlock, DmaPool};

use crate::controller::Controller;
use crate::error::{Error, Status};
use crate::queue::{Done, Request};
use crate::registers::Registers;

/// Troubles in one run of requests before it is given up. After each, a request may take twice as long.
const MOST_TROUBLES: u32 = 3;

/// What is done with the memory of requests.
pub trait Work {
    /// Why a run may end early.
    type Error: From<Error>;

    /// Fills memory before its request is sent the first time.
    ///
    /// # Errors
    /// They end the run.
    fn prepare(&mut self, request: &Request, memory: &mut DmaBlock) -> Result<(), Self::Error>;

    /// Looks at memory whose request the controller has completed with success: never at that of a request that was
    /// cut short.
    ///
    /// # Errors
    /// They end the run.
    fn finish(&mut self, request: &Request, memory: &DmaBlock) -> Result<(), Self::Error>;

    /// Is told what did not go as it should.
    fn trouble(&mut self, trouble: &Trouble);
}

/// What did not go as it should, and what was done about it.
#[derive(Debug)]
pub enum Trouble {
    /// Requests were late, and the controller has aborted them: they are sent again.
    Aborted(Error),
    /// The controller was reset; this many requests are sent again.
    Reset(Error, usize),
    /// The controller refused a request: the run ends.
    Refused(Request, Status),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted(error) => write!(f, "{error}: aborted"),
            Self::Reset(error, again) => {
                write!(f, "{error}: reset, {again} requests are sent again")
            }
            Self::Refused(request, status) => write!(f, "{request:?}: {status}"),
        }
    }
}

/// Troubles of a run that succeeded in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// How often what was late was aborted.
    pub aborts: u32,
    /// How often the controller was reset.
    pub resets: u32,
}

impl Troubles {
    const fn count(self) -> u32 {
        self.aborts + self.resets
    }
}

/// A run of requests.
#[derive(Default)]
struct Run {
    troubles: Troubles,
    /// What is sent again.
    again: Vec<(Request, DmaBlock)>,
    /// Requests that the controller said it has aborted, and whose completions have not been seen.
    aborted: usize,
}

impl<R: Registers> Controller<R, DmaBlock> {
    /// Carries requests out, each with the length of its memory in bytes, as many at once as the queues hold. What
    /// takes longer than `patience` is aborted; a controller that cannot do that, or does not do as it should, is
    /// reset; what was under way is sent again, with twice the time, three times at most. Nothing is under way
    /// before, and nothing after success.
    ///
    /// # Errors
    /// [`Error::Status`]; what the third trouble was; as [`Controller::submit`] and [`Controller::reset`]; what
    /// `work` returns. Requests may be under way then: the controller is to be reset, or dropped.
    pub fn carry_out<W: Work>(
        &mut self,
        pool: &DmaPool,
        patience: Duration,
        requests: impl IntoIterator<Item = (Request, u64)>,
        work: &mut W,
    ) -> Result<Troubles, W::Error> {
        let mut requests = requests.into_iter().fuse();
        let mut run = Run::default();
        loop {
            while self.in_flight() < self.depth() {
                let Some((request, memory)) = run.next(&mut requests, pool, work)? else { break };
                self.submit(request, memory).map_err(|(error, _)| error)?;
            }
            if self.in_flight() == 0 {
                return Ok(run.troubles);
            }
            let count = run.troubles.count();
            match self.wait(patience.saturating_mul(1 << count)) {
                Ok(done) => run.ended(done, work)?,
                Err(error) if count == MOST_TROUBLES => return Err(error.into()),
                Err(error) => run.recover(self, error, work)?,
            }
        }
    }
}

impl Run {
    /// What is sent next.
    fn next<W: Work>(
        &mut self,
        requests: &mut impl Iterator<Item = (Request, u64)>,
        pool: &DmaPool,
        work: &mut W,
    ) -> Result<Option<(Request, DmaBlock)>, W::Error> {
        if let Some(again) = self.again.pop() {
            return Ok(Some(again));
        }
        let Some((request, length)) = requests.next() else { return Ok(None) };
        let mut memory = pool.take(length).map_err(Error::from)?;
        work.prepare(&request, &mut memory)?;
        Ok(Some((request, memory)))
    }

    fn ended<W: Work>(&mut self, done: Done<DmaBlock>, work: &mut W) -> Result<(), W::Error> {
        let Done { request, data, result } = done;
        match result {
            Ok(()) => work.finish(&request, &data),
            Err(Status::ABORTED) if self.aborted > 0 => {
                self.aborted -= 1;
                self.again.push((request, data));
                Ok(())
            }
            Err(status) => {
                work.trouble(&Trouble::Refused(request, status));
                Err(Error::Status(status).into())
            }
        }
    }

    /// Gets a controller going again.
    fn recover<R: Registers, W: Work>(
        &mut self,
        nvme: &mut Controller<R, DmaBlock>,
        error: Error,
        work: &mut W,
    ) -> Result<(), W::Error> {
        let late = matches!(error, Error::Timeout { .. });
        if late && nvme.abort().unwrap_or(false) {
            self.troubles.aborts += 1;
            self.aborted = nvme.in_flight();
            work.trouble(&Trouble::Aborted(error));
            return Ok(());
        }
        let ended = nvme.reset()?;
        self.troubles.resets += 1;
        self.aborted = 0;
        work.trouble(&Trouble::Reset(error, ended.len()));
        self.again.extend(ended);
        Ok(())
    }
}
