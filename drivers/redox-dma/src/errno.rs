//! The error number of each error of the client.

use std::io;

use iommu_client::Error as Client;

use crate::platform::{EINVAL, EIO, ENODEV, EPROTO, Error};

/// The error number that a driver gets.
pub(crate) fn errno(error: &Client) -> Error {
    Error::new(match error {
        Client::Refused(refusal) | Client::RefusedItem { refusal, .. } => refusal.errno().0,
        Client::Errno(number) => number.0,
        Client::Disconnected => ENODEV,
        Client::Io(error) => of_io(error),
        Client::ProtocolError(_) => EPROTO,
        _ => EINVAL,
    })
}

fn of_io(error: &io::Error) -> i32 {
    error.raw_os_error().filter(|number| *number > 0).unwrap_or(match error.kind() {
        io::ErrorKind::InvalidInput => EINVAL,
        _ => EIO,
    })
}

#[cfg(test)]
mod tests {
    use iommu_client::{ProtocolError, Refusal};

    use super::*;

    /// The numbers are those of POSIX systems (Linux asm-generic/errno-base.h and errno.h).
    #[test]
    fn every_error_has_a_number() {
        let number = |error: Client| errno(&error).errno();
        assert_eq!(number(Refusal::NoUnit.into()), 6);
        assert_eq!(number(Refusal::NotOwner.into()), 16);
        assert_eq!(number(Client::Disconnected), 19);
        assert_eq!(number(ProtocolError::Length.into()), 71);
        assert_eq!(number(Client::Outside), 22);
        assert_eq!(number(io::Error::from_raw_os_error(9).into()), 9);
        assert_eq!(number(io::Error::from(io::ErrorKind::InvalidInput).into()), 22);
        assert_eq!(number(io::Error::other("else").into()), 5);
    }
}
