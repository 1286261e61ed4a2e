//! Capabilities of a software AMD-Vi unit: its capability block and the extended features.

/// Capabilities of a unit (48882 sections 3.2 and 3.4.9).
#[derive(Clone, Debug)]
pub struct Config {
    /// Depth of the deepest page table: 4, 5 or 6 (HATS).
    pub levels: u8,
    /// Width of I/O virtual addresses in bits (VASize).
    pub guest_width: u32,
    /// Width of physical addresses in bits (PASize).
    pub host_width: u32,
    /// Absent entries are cached too (NpCache).
    pub caches_absent: bool,
    /// Device table entries are cached. Otherwise each access reads its entry anew, and may see one half written.
    pub caches_devices: bool,
    /// The control register can make the unit snoop caches.
    pub coherent: bool,
    /// The extended feature register exists (EFRSup).
    pub extended: bool,
    /// INVALIDATE_IOMMU_ALL exists (IASup).
    pub invalidate_all: bool,
    /// INVALIDATE_IOMMU_ALL leaves cached device table entries, as QEMU 11.1 does.
    pub all_keeps_devices: bool,
    /// Page requests exist (PPRSup).
    pub page_requests: bool,
    /// Nanoseconds that a command takes.
    pub command_time: u64,
    /// Nanoseconds until a ring or log starts or stops.
    pub switch_time: u64,
    /// Nanoseconds from a log's pointer update to the entry that it announces.
    pub entry_time: u64,
}

impl Default for Config {
    /// The unit of a present-day server.
    fn default() -> Self {
        Self {
            levels: 6,
            guest_width: 64,
            host_width: 52,
            caches_absent: false,
            caches_devices: true,
            coherent: true,
            extended: true,
            invalidate_all: true,
            all_keeps_devices: false,
            page_requests: true,
            command_time: 500,
            switch_time: 2_000,
            entry_time: 300,
        }
    }
}

impl Config {
    /// QEMU 11.1.
    #[must_use]
    pub fn qemu() -> Self {
        Self {
            guest_width: 48,
            host_width: 46,
            caches_absent: true,
            all_keeps_devices: true,
            entry_time: 0,
            ..Self::default()
        }
    }

    /// A unit of the first generation: no extended features.
    #[must_use]
    pub fn early() -> Self {
        Self {
            levels: 4,
            guest_width: 48,
            host_width: 40,
            extended: false,
            invalidate_all: false,
            page_requests: false,
            ..Self::default()
        }
    }

    /// The capability block: header, base address low and high, miscellaneous information 0.
    #[must_use]
    pub fn block(&self, base: u64) -> [u32; 4] {
        let half = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap();
        // Type 3 (bits 18:16), revision 1 (23:19), NpCache 26, EFRSup 27, CapExt 28; id 0fh.
        let header = 0x000b_000f
            | u32::from(self.caches_absent) << 26
            | u32::from(self.extended) << 27
            | 1 << 28;
        // PASize 14:8, VASize 21:15.
        let sizes = self.host_width << 8 | self.guest_width << 15;
        [header, half(base) | 1, half(base >> 32), sizes]
    }

    /// The extended feature register; 0 where it does not exist.
    #[must_use]
    pub fn features(&self) -> u64 {
        if !self.extended {
            return 0;
        }
        // PPRSup 1, IASup 6, HATS 11:10 (0 for 4 levels).
        u64::from(self.page_requests) << 1
            | u64::from(self.invalidate_all) << 6
            | u64::from(self.levels - 4) << 10
    }
}
