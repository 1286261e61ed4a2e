//! Carries out requests to their end, whatever the controller does meanwhile.

use std::fmt;
use std::time::Duration;

use iommu_client::{DmaBlock, DmaPool};

use crate::controller::Controller;
use crate::error::{Error, Status};
use crate::queue::{Done, Request};
use crate::registers::Registers;

/// Troubles in one run of requests before the run is given up. After each, a request may take twice as long.
const MOST_TROUBLES: u32 = 3;

/// The work on the memory of requests.
pub trait Work {
    /// Why a run may end early.
    type Error: From<Error>;

    /// Fills memory before its request is sent the first time.
    ///
    /// # Errors
    /// They end the run.
    fn prepare(&mut self, request: &Request, memory: &mut DmaBlock) -> Result<(), Self::Error>;

    /// Uses memory whose request the controller has completed with success. It is never called for a request that was
    /// cut short.
    ///
    /// # Errors
    /// They end the run.
    fn finish(&mut self, request: &Request, memory: &DmaBlock) -> Result<(), Self::Error>;

    /// Reports a trouble.
    fn trouble(&mut self, trouble: &Trouble);
}

/// A trouble, and the reaction to it.
#[derive(Debug)]
pub enum Trouble {
    /// Requests were late, and the controller has aborted them. They are sent again.
    Aborted(Error),
    /// The controller was reset. This many requests are sent again.
    Reset(Error, usize),
    /// The controller refused a request. The run ends.
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
    /// How often late requests were aborted.
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
    /// Requests to be sent again.
    again: Vec<(Request, DmaBlock)>,
    /// Requests that the controller reports as aborted, and whose completions were not seen yet.
    aborted: usize,
}

impl<R: Registers> Controller<R, DmaBlock> {
    /// Carries out requests, each given with the length of its memory in bytes. As many are under way as the queues
    /// hold. Requests that take longer than `patience` are aborted. A controller that cannot abort them, or that
    /// misbehaves, is reset. Unfinished requests are sent again, with twice the time, at most three times. No request
    /// may be under way before this call, and none is after success.
    ///
    /// # Errors
    /// [`Error::Status`]; the error of the trouble after the third; the errors of [`Controller::submit`] and
    /// [`Controller::reset`]; errors of `work`. Requests may be under way then: the controller must be reset, or
    /// dropped.
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
    /// The next request to be sent.
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

    /// Makes a controller run again.
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
