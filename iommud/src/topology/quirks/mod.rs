//! What is known of single devices and their registers do not tell: facts as data, each with its source.

pub mod acs;
pub mod dma;
