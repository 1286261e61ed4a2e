//! Why the driver ends other than as expected.

use iommu_client::Error;

pub(crate) enum Failure {
    Client(Error),
    WrongData { at: u64 },
    NoFault,
    Fault(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

impl Failure {
    /// Says what happened; gives the exit code.
    pub(crate) fn report(&self) -> u8 {
        match self {
            Self::Client(error) if error.refusal().is_some() => {
                println!("edud: refused: {error}");
                3
            }
            Self::Client(error) => {
                println!("edud: failed: {error}");
                1
            }
            Self::WrongData { at } => {
                println!("edud: wrong data at byte {at}");
                4
            }
            Self::NoFault => {
                println!("edud: no fault came");
                5
            }
            Self::Fault(fault) => {
                println!("edud: a fault that was not expected: {fault}");
                6
            }
        }
    }
}
