//! A reply cache that kills its process at a chosen point of a request.

use iommud::platform::linux::reply_cache::{Change, Known, ReplyCache, Resumed};
use iommud::policy::ClientId;
use rustix::process::{Signal, getpid, kill_process};

/// Points of a request, in their order, and whether they come before or after what is recorded there.
pub(crate) const POINTS: [&str; 6] =
    ["begin-", "begin+", "answered-", "answered+", "sent-", "sent+"];

/// Points of a claim that waits: it is recorded, later answered, and its reply sent.
pub(crate) const CLAIM_POINTS: [&str; 6] =
    ["begin+", "waits-", "waits+", "claimed-", "claimed+", "claim-sent-"];

/// The cache of the server, and where the server dies.
pub(crate) struct Deadly<C> {
    pub(crate) cache: C,
    /// The point, and how often it is passed before.
    pub(crate) at: Option<(String, usize)>,
}

impl<C> Deadly<C> {
    fn pass(&mut self, point: &str) {
        let Some((at, left)) = &mut self.at else { return };
        if at != point {
            return;
        }
        match left.checked_sub(1) {
            Some(fewer) => *left = fewer,
            None => kill_process(getpid(), Signal::KILL).unwrap(),
        }
    }
}

impl<C: ReplyCache> ReplyCache for Deadly<C> {
    fn resume(&mut self, client: ClientId) -> Resumed {
        self.cache.resume(client)
    }

    fn begin(&mut self, client: ClientId, tag: u64, room: &mut [u8]) -> Known {
        self.pass("begin-");
        let known = self.cache.begin(client, tag, room);
        self.pass("begin+");
        known
    }

    fn answered(&mut self, client: ClientId, reply: Option<&[u8]>, change: Option<Change>) {
        self.pass("answered-");
        self.cache.answered(client, reply, change);
        self.pass("answered+");
    }

    fn sent(&mut self, client: ClientId) {
        self.pass("sent-");
        self.cache.sent(client);
        self.pass("sent+");
    }

    fn waits(&mut self, client: ClientId, frame: &[u8]) {
        self.pass("waits-");
        self.cache.waits(client, frame);
        self.pass("waits+");
    }

    fn claimed(&mut self, client: ClientId, reply: &[u8], change: Option<Change>) {
        self.pass("claimed-");
        self.cache.claimed(client, reply, change);
        self.pass("claimed+");
    }

    fn claim_sent(&mut self, client: ClientId, tag: u64) {
        self.pass("claim-sent-");
        self.cache.claim_sent(client, tag);
        self.pass("claim-sent+");
    }

    fn forget(&mut self, client: ClientId) {
        self.cache.forget(client);
    }
}
