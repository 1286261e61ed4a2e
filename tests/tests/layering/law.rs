//! The law: what each part of the workspace may name.

/// Each part of the workspace and the other parts that it may name. A module belongs to the longest row that its path
/// starts with. It may always name itself and modules below it. A part without a row is a breach.
///
/// ```text
/// drivers/* -> drivers/client -> protocol <- server
/// main -> platform -> server -> engine -> hw -> hal
/// platform -> sizing -> policy, hw
/// server -> trace, facts -> policy
/// server, engine -> policy        policy -> protocol, topology, addr        acpi -> topology
/// ```
pub(crate) const LAW: &[(&str, &[&str])] = &[
    ("iommu_protocol", &["core", "bitflags"]),
    // The library, from the bottom up. Only the platforms, the binaries and the modules for them may use `std`.
    ("iommud::addr", &["core"]),
    ("iommud::topology", &["core", "alloc", "bitflags", "iommu_protocol", "iommud::addr"]),
    ("iommud::acpi", &["core", "alloc", "iommu_protocol", "iommud::addr", "iommud::topology"]),
    ("iommud::policy", &["core", "alloc", "iommu_protocol", "iommud::addr", "iommud::topology"]),
    ("iommud::hw", &["core", "alloc", "iommu_protocol", "iommud::addr", "iommud::topology"]),
    (
        "iommud::hw::vtd",
        &["core", "alloc", "iommu_protocol", "iommud::addr", "iommud::topology", "iommud::hw"],
    ),
    (
        "iommud::hw::amdvi",
        &["core", "alloc", "iommu_protocol", "iommud::addr", "iommud::topology", "iommud::hw"],
    ),
    (
        "iommud::hw::vtd::spec",
        &["core", "bitflags", "iommu_protocol", "iommud::addr", "iommud::hw"],
    ),
    (
        "iommud::hw::amdvi::spec",
        &["core", "bitflags", "iommu_protocol", "iommud::addr", "iommud::hw"],
    ),
    (
        "iommud::engine",
        &[
            "core",
            "alloc",
            "iommu_protocol",
            "iommud::addr",
            "iommud::topology",
            "iommud::policy",
            "iommud::hw",
        ],
    ),
    // What enters policy, as records: knows policy's requests, and nothing of hardware.
    (
        "iommud::trace",
        &["core", "alloc", "iommu_protocol", "iommud::addr", "iommud::topology", "iommud::policy"],
    ),
    // What the next server is to know, as cells: knows policy's facts, and nothing of hardware.
    ("iommud::facts", &["core", "alloc", "iommu_protocol", "iommud::addr", "iommud::policy"]),
    (
        "iommud::server",
        &[
            "core",
            "alloc",
            "log",
            "iommu_protocol",
            "iommud::addr",
            "iommud::topology",
            "iommud::policy",
            "iommud::hw",
            "iommud::engine",
            "iommud::facts",
            "iommud::trace",
        ],
    ),
    // Sizes the memory taken at start: runs policy without hardware and counts frames.
    (
        "iommud::sizing",
        &[
            "core",
            "alloc",
            "iommu_protocol",
            "iommud::addr",
            "iommud::topology",
            "iommud::policy",
            "iommud::hw",
            // The runs of frames that a unit of each vendor takes.
            "iommud::hw::vtd",
            "iommud::hw::amdvi",
        ],
    ),
    // The policy file: text to policy, with feature `std`.
    (
        "iommud::config",
        &["core", "std", "serde", "toml", "iommu_protocol", "iommud::addr", "iommud::policy"],
    ),
    ("iommud::platform", &["*"]),
    ("iommud", &["core", "alloc"]),
    ("iommud.bin", &["*"]),
    // Clients.
    ("iommu_client", &["core", "alloc", "std", "libc", "iommu_protocol", "zerocopy"]),
    ("iommu_client::platform", &["*"]),
    // The memory of Redox's own drivers, over the client.
    ("redox_dma", &["core", "std", "iommu_client", "redox_dma::platform"]),
    ("redox_dma::platform", &["*"]),
    // The administrator's command: reads tables and texts, never a unit.
    (
        "iommuctl",
        &[
            "core",
            "std",
            "anstyle",
            "clap",
            "clap_complete",
            "clap_mangen",
            "pci_ids",
            "rustix",
            "serde_json",
            "svg",
            "iommu_protocol",
            "iommu_client",
            "iommu_client::platform",
            "iommud::addr",
            "iommud::topology",
            "iommud::acpi",
            "iommud::config",
            // What a policy file says; nothing that decides.
            "iommud::policy",
        ],
    ),
    // The self-test drives a device, by the libraries of its drivers.
    (
        "iommuctl::check",
        &[
            "core",
            "std",
            "serde_json",
            "edud",
            "nvme",
            "iommu_protocol",
            "iommu_client",
            "iommu_client::platform",
            "iommuctl",
        ],
    ),
    // A replay runs policy and engine over the software units, without a server.
    (
        "iommuctl::replay",
        &[
            "core",
            "std",
            "serde_json",
            "iommu_protocol",
            "iommud::acpi",
            "iommud::addr",
            "iommud::config",
            "iommud::engine",
            "iommud::hw",
            "iommud::policy",
            "iommud::topology",
            "iommud::trace",
            "iommud_model",
            "iommud_model::backend",
        ],
    ),
    // Decoding links no parser of command lines, and knows no server.
    (
        "iommuctl::decode",
        &[
            "core",
            "std",
            "serde_json",
            "iommu_protocol",
            "iommud::addr",
            "iommud::topology",
            "iommud::acpi",
        ],
    ),
    // Guests use the example's library, like the example's own program; the programs use their own libraries.
    (
        "drivers",
        &[
            "core",
            "alloc",
            "std",
            "libc",
            "lexopt",
            "iommu_client",
            "iommu_client::platform",
            "edud",
            "nvme",
        ],
    ),
    // The launcher has the system's means of starting a program.
    (
        "drivers::platform",
        &[
            "core",
            "std",
            "libc",
            "libredox",
            "ioslice",
            "iommu_client",
            "iommu_client::platform",
            "drivers",
        ],
    ),
    // Tests of these crates run on the software unit.
    ("iommud.tests", &["*"]),
    ("iommu_client.tests", &["*"]),
    ("drivers.tests", &["*"]),
    ("redox_dma.tests", &["*"]),
    // The software units stand below the server's hardware traits; they know neither policy nor server.
    (
        "iommud_model",
        &["core", "std", "iommu_protocol", "iommud::addr", "iommud::hw", "iommud::topology"],
    ),
    (
        "iommud_model::backend",
        &[
            "core",
            "std",
            "iommu_protocol",
            "iommud::addr",
            "iommud::hw",
            "iommud::hw::amdvi",
            "iommud::hw::vtd",
            "iommud::topology",
            "iommud_model",
        ],
    ),
    // Tests and tools.
    ("iommud_tests", &["*"]),
    ("iommud_tests.bin", &["*"]),
    ("iommud_tests.tests", &["*"]),
    ("iommud_fuzz", &["*"]),
    ("iommud_bench", &["*"]),
    ("guests", &["*"]),
    // The packer has the crates of Redox's installer.
    ("redox_packer", &["std", "anyhow", "hex", "pkg", "pkgar", "pkgar_core", "pkgar_keys"]),
    ("redox_packer.tests", &["*"]),
    (
        "xtask",
        &[
            "core",
            "std",
            "anyhow",
            "lexopt",
            "proc_macro2",
            "serde",
            "serde_json",
            "syn",
            "toml",
            "rustix",
        ],
    ),
];
