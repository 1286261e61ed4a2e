//! DMA memory and device sessions for drivers.
