//! A server that implements only the part that its keeper needs, and fails at a given request of the keeper.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use iommud::platform::redox::keep_others;
use iommud::platform::redox::scheme::{GIVE_UP, HELD, MEMORY, ROOT};
use iommud::platform::{Mapping, Sharing};
use libredox::call::{call_wo, dup, kill, setns};
use redox_scheme::scheme::{SchemeState, SchemeSync};
use redox_scheme::{CallerCtx, RequestKind, SignalBehavior, Socket};
use syscall::error::{EBADF, EINVAL, Error, Result};
use syscall::flag::{CallFlags, MapFlags, MunmapFlags};

/// Environment variable with the descriptor of the name space in which schemes can be created.
pub(crate) const NAMES: &str = "GUEST_NAMES";

/// Bytes of a fake server's memory. Its keeper holds it as two ranges, of tables and of notes.
const LENGTH: usize = 8192;
const RANGES: usize = 2;

/// The number of SIGKILL, the same on every Unix and on Redox.
const SIGKILL: u32 = 9;

/// The failure of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// The request at which it fails: that the memory is held, or whether the old one may go.
    word: u64,
    /// Whether it stays alive without a reply. Otherwise it is killed before the reply.
    hangs: bool,
}

impl Plan {
    fn of(name: &str) -> Option<Self> {
        let (how, word) = name.split_once("-at-")?;
        let hangs = match how {
            "killed" => false,
            "hung" => true,
            _ => return None,
        };
        let word = match word {
            "held" => HELD,
            "give-up" => GIVE_UP,
            _ => return None,
        };
        Some(Self { word, hangs })
    }

    /// Number of the failing server, counted from 0. The server after it does not fail.
    const fn victim(self) -> usize {
        if self.word == HELD { 0 } else { 1 }
    }
}

struct Fake {
    memory: Mapping,
    plan: Plan,
    /// Servers before this one whose memory is held.
    before: usize,
    held: bool,
    last: bool,
}

/// Runs a keeper of such servers. Fails unless the last one ended well.
pub(crate) fn keep(plan: &str) -> std::result::Result<(), String> {
    let plan = Plan::of(plan).ok_or("no plan")?;
    let serve = |left: usize, pipe| {
        println!("server after {}", left / RANGES);
        let ended = serve(plan, left / RANGES, &pipe);
        ended.inspect_err(|error| println!("server: {error}")).is_ok()
    };
    if keep_others(serve) { Ok(()) } else { Err("the keeper gave up".into()) }
}

fn serve(plan: Plan, before: usize, pipe: &OwnedFd) -> std::result::Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let names = std::env::var(NAMES).ok().and_then(|number| number.parse().ok());
    setns(names.ok_or("no name space")?).map_err(|error| text(&error))?;
    let source = File::open("/scheme/memory/zeroed@wb?phys_contiguous");
    let source = source.map_err(|error| text(&error))?;
    let memory = Mapping::new(source.as_fd(), 0, LENGTH, Sharing::Private);
    let memory = memory.map_err(|error| text(&error))?;
    let fake = Fake { memory, plan, before, held: false, last: false };
    fake.run(pipe).map_err(|error| text(&error))
}

/// Passes a descriptor to the keeper, like the real server.
fn give(pipe: &OwnedFd, descriptor: usize) -> Result<()> {
    let pipe = usize::try_from(pipe.as_raw_fd()).map_err(|_| Error::new(EBADF))?;
    call_wo(pipe, &descriptor.to_ne_bytes(), CallFlags::FD, &[])?;
    libredox::call::write(pipe, b"d")?;
    Ok(())
}

impl Fake {
    fn run(mut self, pipe: &OwnedFd) -> Result<()> {
        let socket = Socket::create()?;
        give(pipe, dup(socket.inner().raw(), b"")?)?;
        give(pipe, socket.create_this_scheme_fd(0, MEMORY, 0, 0)?)?;
        let mut state = SchemeState::new();
        let mut served = false;
        while !self.last {
            let Some(request) = socket.next_request(SignalBehavior::Restart)? else { break };
            let RequestKind::Call(request) = request.kind() else { continue };
            let answer = request.handle_sync(&mut self, &mut state);
            socket.write_response(answer, SignalBehavior::Restart)?;
            if self.held && !served {
                served = true;
                give(pipe, socket.create_this_scheme_fd(0, ROOT, 0, 0)?)?;
                if self.before < self.plan.victim() {
                    // A server that dies normally, so that the next one can give up its memory.
                    std::thread::sleep(Duration::from_millis(100));
                    die();
                }
            }
        }
        Ok(())
    }

    fn fail(&self) {
        if !self.plan.hangs {
            die();
        }
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
}

fn die() {
    if let Ok(me) = libredox::call::getpid() {
        let _ = kill(me, SIGKILL);
    }
}

impl SchemeSync for Fake {
    fn scheme_root(&mut self) -> Result<usize> {
        Ok(ROOT)
    }

    fn fstat(&mut self, id: usize, stat: &mut syscall::Stat, _ctx: &CallerCtx) -> Result<()> {
        if id != MEMORY {
            return Err(Error::new(EBADF));
        }
        stat.st_size = u64::try_from(LENGTH).map_err(|_| Error::new(EINVAL))?;
        Ok(())
    }

    fn mmap_prep(
        &mut self,
        _id: usize,
        offset: u64,
        _size: usize,
        _flags: MapFlags,
        _ctx: &CallerCtx,
    ) -> Result<usize> {
        let offset = usize::try_from(offset).map_err(|_| Error::new(EINVAL))?;
        Ok(self.memory.base().addr().get() + offset)
    }

    fn munmap(
        &mut self,
        _id: usize,
        _offset: u64,
        _size: usize,
        _flags: MunmapFlags,
        _ctx: &CallerCtx,
    ) -> Result<()> {
        Ok(())
    }

    fn call(
        &mut self,
        _id: usize,
        _payload: &mut [u8],
        metadata: &[u64],
        _ctx: &CallerCtx,
    ) -> Result<usize> {
        let word = metadata.first().copied().unwrap_or(0);
        if word == self.plan.word && self.before == self.plan.victim() {
            self.fail();
        }
        self.held |= word == HELD;
        self.last = word == GIVE_UP;
        Ok(1)
    }
}
