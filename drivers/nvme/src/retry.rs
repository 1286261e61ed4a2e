//! Carries out requests to their end, whatever the controller does meanwhile.

use std::fmt;
use std::time::Duration;

use crate::controller::Controller;
use crate::error::{Error, Status};
use crate::memory::{Data, DataSource, LentData};
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
    fn prepare(&mut self, request: &Request, memory: &mut Data) -> Result<(), Self::Error>;

    /// Uses memory whose request the controller has completed with success, when it is the driver's again. It is never
    /// called for a request that was cut short.
    ///
    /// # Errors
    /// They end the run.
    fn finish(&mut self, request: &Request, memory: &Data) -> Result<(), Self::Error>;

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
    /// Requests to be sent again, in the memory that the controller has.
    again: Vec<(Request, LentData)>,
    /// Requests that the controller reports as aborted, and whose completions were not seen yet.
    aborted: usize,
}

impl<R: Registers> Controller<R, LentData> {
    /// Carries out requests, each given with the length of its memory in bytes (0 for a flush). As many are under way
    /// as the queues hold and the source has memory for. They are sent in groups: as many as there is room for get
    /// their memory by one flush of the source, and each doorbell is rung once. Requests that take longer than `patience` are aborted. A controller that cannot abort them, or that
    /// misbehaves, is reset. Unfinished requests are sent again, with twice the time, at most three times. No request
    /// may be under way before this call, and none is after success.
    ///
    /// # Errors
    /// [`Error::Status`]; the error of the trouble after the third; the errors of [`Controller::submit`] and
    /// [`Controller::reset`]; errors of `work`. Requests may be under way then: the controller must be reset, or
    /// dropped.
    pub fn carry_out<W: Work>(
        &mut self,
        source: &mut DataSource,
        patience: Duration,
        requests: impl IntoIterator<Item = (Request, u64)>,
        work: &mut W,
    ) -> Result<Troubles, W::Error> {
        let mut requests = requests.into_iter().fuse();
        let mut run = Run::default();
        let mut done = Vec::new();
        source.clear()?;
        loop {
            run.send(self, source, &mut requests, work)?;
            finish(source, work)?;
            if self.in_flight() == 0 {
                return Ok(run.troubles);
            }
            let count = run.troubles.count();
            let waited = self.wait_all(patience.saturating_mul(1 << count), &mut done);
            for done in done.drain(..) {
                run.ended(done, source, work)?;
            }
            // Memory of a pool is free before the next requests take theirs.
            finish(source, work)?;
            match waited {
                Ok(()) => {}
                Err(error) if count == MOST_TROUBLES => return Err(error.into()),
                Err(error) => run.recover(self, error, work)?,
            }
        }
    }
}

/// Uses the memory that the controller has given back.
fn finish<W: Work>(source: &mut DataSource, work: &mut W) -> Result<(), W::Error> {
    while let Some((request, data)) = source.returned() {
        work.finish(&request, &data)?;
    }
    Ok(())
}

impl Run {
    /// Sends as many requests as there is room for. One flush of the source gets back the memory of those that have
    /// ended, and lends that of the new ones.
    fn send<R: Registers, W: Work>(
        &mut self,
        nvme: &mut Controller<R, LentData>,
        source: &mut DataSource,
        requests: &mut impl Iterator<Item = (Request, u64)>,
        work: &mut W,
    ) -> Result<(), W::Error> {
        let room = nvme.depth().min(source.depth()).saturating_sub(nvme.in_flight());
        let again = self.again.len().saturating_sub(room);
        let again = self.again.split_off(again);
        for (request, length) in requests.by_ref().take(room - again.len()) {
            let mut data = source.take(length)?;
            work.prepare(&request, &mut data)?;
            source.lend(request, data)?;
        }
        source.flush()?;
        let ready = std::iter::from_fn(|| source.ready());
        for (request, data) in again.into_iter().rev().chain(ready) {
            nvme.enqueue(request, data).map_err(|(error, _)| error)?;
        }
        nvme.ring();
        Ok(())
    }

    fn ended<W: Work>(
        &mut self,
        done: Done<LentData>,
        source: &mut DataSource,
        work: &mut W,
    ) -> Result<(), W::Error> {
        let Done { request, data, result } = done;
        match result {
            Ok(()) => Ok(source.finished(request, data)?),
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
        nvme: &mut Controller<R, LentData>,
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
