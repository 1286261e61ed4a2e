//! The process's name space.

use std::fs::File;

/// Enters a name space without names.
pub(crate) fn give_up() -> Result<(), String> {
    let nothing = libredox::call::mkns(&[]).map_err(|error| format!("mkns: {error}"))?;
    let old = libredox::call::setns(nothing).map_err(|error| format!("setns: {error}"))?;
    libredox::call::close(old).map_err(|error| format!("close: {error}"))?;
    match File::open("/scheme/iommu/status") {
        Ok(_) => Err("the scheme can be opened without a name space".into()),
        Err(_) => Ok(()),
    }
}
