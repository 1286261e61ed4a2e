//! Redox: this process becomes the driver. It opens what the driver needs, then gives up names and user, then executes
//! the program by a descriptor that it opened before.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString, c_char, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use iommu_client::handover::InterruptHandover;
use iommu_client::platform::redox::{Vector, pci};
use iommu_client::{Connection, Device, Error};
use ioslice::IoSlice;
use libredox::call;
use libredox::flag::O_RDONLY;

use crate::Failure;
use crate::handed::environment;
use crate::options::{Names, Options};

/// Command of `fcntl` that sets a descriptor's flags (relibc, `fcntl.h`). Without flags a program that this process
/// executes gets the descriptor.
const F_SETFD: usize = 2;

unsafe extern "C" {
    /// Executes the program behind a descriptor (POSIX.1-2024, `fexecve`).
    fn fexecve(fd: c_int, argv: *const *const c_char, envp: *const *const c_char) -> c_int;
}

/// Becomes the program. Returns only if that fails.
pub(crate) fn launch(options: &Options) -> Failure {
    match become_driver(options) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn become_driver(options: &Options) -> Result<Infallible, Failure> {
    let image = open(&options.program)?;
    let Some(device) = claim(options.optional)? else {
        println!("iommu-run: iommud does not serve: the program starts with what this process has");
        return Ok(execute(image, options, environment(std::env::vars_os(), None, None))?);
    };
    let session = keep(device.descriptor()?.as_fd())?;
    let interrupt = if options.interrupt { reserve() } else { None };
    println!("iommu-run: {} claimed for {}", device.address(), options.program.display());
    enter(&options.names)?;
    options.user.map_or(Ok(()), set_user)?;
    Ok(execute(image, options, environment(std::env::vars_os(), Some(session), interrupt))?)
}

/// Opens the program, so that it can be executed without names. The descriptor closes itself when it is executed; an
/// executed program could not be read from one that is closed before.
fn open(program: &OsStr) -> io::Result<c_int> {
    let path = program.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    c_int::try_from(call::open(path, O_RDONLY, 0)?).map_err(io::Error::other)
}

/// Claims the function that this process was started for. `None` if iommud does not serve, and need not.
fn claim(optional: bool) -> Result<Option<Device>, Failure> {
    let connection = match Connection::system() {
        Err(Error::Disconnected) if optional => return Ok(None),
        other => other?,
    };
    let spawned = pci::Spawned::inherited()?;
    let spawned = spawned.ok_or_else(|| Failure::Other("no function was handed to it".into()))?;
    Ok(Some(Device::claim(&connection, spawned.address()?)?))
}

/// Reserves a vector. Without one the driver polls.
fn reserve() -> Option<InterruptHandover> {
    let handed = Vector::reserve().and_then(|vector| vector.hand_over(keep));
    handed.inspect_err(|error| println!("iommu-run: no interrupt: {error}")).ok()
}

/// Makes a descriptor that the program gets. It stays open until that ends.
fn keep(descriptor: BorrowedFd<'_>) -> io::Result<u32> {
    let kept = descriptor.try_clone_to_owned()?;
    let number = usize::try_from(kept.as_raw_fd()).map_err(io::Error::other)?;
    call::fcntl(number, F_SETFD, 0)?;
    u32::try_from(kept.into_raw_fd()).map_err(io::Error::other)
}

/// Leaves this process's name space for one with these names. The descriptor of the old one is closed: whoever has it can
/// open whatever has a name there.
fn enter(names: &Names) -> Result<(), Failure> {
    let Some(names) = names.of(ours) else { return Ok(()) };
    let names: Vec<IoSlice<'_>> = names.iter().map(|name| IoSlice::new(name.as_bytes())).collect();
    let enter = || call::close(call::setns(call::mkns(&names)?)?);
    enter().map_err(|error| Failure::Other(format!("name space: {error}")))
}

/// The names of this process.
fn ours() -> Vec<String> {
    let entries = std::fs::read_dir("/scheme/").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Changes group and user for good: also those to which a process may return.
fn set_user(user: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let group = unsafe { libc::setresgid(user, user, user) };
    // SAFETY: no memory is passed.
    let changed = group == 0 && unsafe { libc::setresuid(user, user, user) } == 0;
    if changed { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Executes the program.
fn execute(
    image: c_int,
    options: &Options,
    environment: Vec<(OsString, OsString)>,
) -> io::Result<Infallible> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other);
    let words = [&options.program].into_iter().chain(&options.arguments);
    let words: Vec<CString> = words.map(|word| text(word.as_bytes())).collect::<Result<_, _>>()?;
    let pair = |(name, value): &(OsString, OsString)| {
        text(&[name.as_bytes(), b"=", value.as_bytes()].concat())
    };
    let pairs: Vec<CString> = environment.iter().map(pair).collect::<Result<_, _>>()?;
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&words), pointers(&pairs));
    // SAFETY: both are arrays of texts that live until the call returns, which it does only if it failed.
    let _ = unsafe { fexecve(image, argv.as_ptr(), envp.as_ptr()) };
    Err(io::Error::last_os_error())
}
