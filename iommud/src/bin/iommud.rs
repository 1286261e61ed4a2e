//! The IOMMU server.
fn main() {}
