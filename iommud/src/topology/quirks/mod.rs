//! Facts about single devices that their registers do not show: data, each with its source.

pub mod acs;
pub mod dma;
