//! Converts an IVRS to records.

use iommu_protocol::ids::RequesterId;

use iommud::acpi::ivrs::{
    Body, EXCLUSION_RANGE, Entries, Entry, EntryBody, Ivrs, READ, Structure, UNITY, WRITE,
};

use super::record::{Record, Value, text, words};

/// IVHD flags (AMD IOMMU 48882 rev 3.10 section 5.2.2.1).
const IVHD_FLAGS: &[(u64, &str)] = &[
    (1 << 0, "HtTunEn"),
    (1 << 1, "PassPW"),
    (1 << 2, "ResPassPW"),
    (1 << 3, "isochronous"),
    (1 << 4, "IOTLB support"),
    (1 << 5, "coherent"),
    (1 << 6, "prefetch support"),
    (1 << 7, "page request support"),
];

/// IVMD flags (section 5.2.2.2).
const IVMD_FLAGS: &[(u64, &str)] = &[
    (UNITY as u64, "mapped one to one"),
    (READ as u64, "read"),
    (WRITE as u64, "write"),
    (EXCLUSION_RANGE as u64, "excluded from translation"),
];

/// Data settings of a device entry. These bits are also in device table entries.
const SETTINGS: &[(u64, &str)] = &[
    (1 << 0, "INIT passes"),
    (1 << 1, "external interrupts pass"),
    (1 << 2, "NMI passes"),
    (1 << 4, "system management 1"),
    (1 << 5, "system management 2"),
    (1 << 6, "LINT0 passes"),
    (1 << 7, "LINT1 passes"),
];

/// Extended data settings.
const EXTENDED_SETTINGS: &[(u64, &str)] = &[(1 << 31, "ATS disabled")];

/// The fields between the header and the blocks.
pub(super) fn fixed(table: &Ivrs<'_>) -> Vec<(&'static str, Value)> {
    let info = u64::from(table.iv_info);
    let field = |shift: u32, bits: u32| (info >> shift) & ((1 << bits) - 1);
    let names = [
        (1 << 0, "extended features"),
        (1 << 1, "DMA opt-in"),
        (1 << 22, "ATS response range reserved"),
    ];
    let mut meaning = format!("physical {} bits, virtual {} bits", field(8, 7), field(15, 7));
    for word in words(info, &names) {
        meaning.push_str(", ");
        meaning.push_str(word);
    }
    vec![("iv_info", Value::Meaning(info, meaning))]
}

/// Converts one block.
pub(super) fn structure(structure: &Structure<'_>) -> Record {
    let Structure { offset, kind, length, .. } = *structure;
    let mut record = Record::new(format!("{} {kind:02x}h at offset {offset}", structure.name()));
    record.push("type", Value::Hex(kind.into()));
    record.push("name", Value::Text(structure.name().to_owned()));
    record.push("offset", Value::Number(u64::try_from(offset).unwrap_or(u64::MAX)));
    record.push("length", Value::Number(length.into()));
    match structure.body {
        Body::Ivhd { .. } => ivhd(&mut record, &structure.body),
        Body::Ivmd { .. } => ivmd(&mut record, &structure.body),
        Body::Unknown | Body::TooShort { .. } | Body::BadLength => {
            record.push("raw", Value::Raw(structure.bytes.to_vec()));
        }
    }
    record
}

fn ivhd(record: &mut Record, body: &Body<'_>) {
    let Body::Ivhd {
        flags,
        device_id,
        capability_offset,
        base_address,
        segment,
        iommu_info,
        feature_reporting,
        efr,
        efr2,
        ref entries,
    } = *body
    else {
        return;
    };
    record.push("flags", Value::Flags(flags.into(), words(flags.into(), IVHD_FLAGS)));
    record.push("device_id", requester(device_id));
    record.push("capability_offset", Value::Hex(capability_offset.into()));
    record.push("base_address", Value::Hex(base_address));
    record.push("segment", Value::Number(segment.into()));
    record.push("iommu_info", Value::Hex(iommu_info.into()));
    record.push("feature_reporting", Value::Hex(feature_reporting.into()));
    if let Some((efr, efr2)) = efr.zip(efr2) {
        record.push("efr", Value::Hex(efr));
        record.push("efr2", Value::Hex(efr2));
    }
    record.push("entries", self::entries(entries.clone()));
}

fn ivmd(record: &mut Record, body: &Body<'_>) {
    let Body::Ivmd { flags, device_id, auxiliary, segment, start_address, memory_length } = *body
    else {
        return;
    };
    record.push("flags", Value::Flags(flags.into(), words(flags.into(), IVMD_FLAGS)));
    record.push("device_id", requester(device_id));
    record.push("auxiliary", requester(auxiliary));
    record.push("segment", Value::Number(segment.into()));
    record.push("start_address", Value::Hex(start_address));
    record.push("memory_length", Value::Hex(memory_length));
}

/// The entries before the first that cannot be decoded.
fn entries(entries: Entries<'_>) -> Value {
    Value::Records(entries.map_while(Result::ok).map(|item| entry(&item)).collect())
}

fn entry(entry: &Entry<'_>) -> Record {
    let settings = u64::from(entry.data_setting);
    let mut record = Record::new(format!("{} at offset {}", name(&entry.body), entry.offset));
    record.push("type", Value::Hex(entry.kind.into()));
    record.push("device_id", requester(entry.device_id));
    record.push("data_setting", Value::Flags(settings, words(settings, SETTINGS)));
    match entry.body {
        EntryBody::AliasSelect { source_device_id }
        | EntryBody::AliasRangeStart { source_device_id } => {
            record.push("source_device_id", requester(source_device_id));
        }
        EntryBody::ExtendedSelect { extended_data_setting }
        | EntryBody::ExtendedRangeStart { extended_data_setting } => {
            let bits = u64::from(extended_data_setting);
            let value = Value::Flags(bits, words(bits, EXTENDED_SETTINGS));
            record.push("extended_data_setting", value);
        }
        EntryBody::Special { handle, source_device_id, variety } => {
            record.push("handle", Value::Number(handle.into()));
            record.push("source_device_id", requester(source_device_id));
            record
                .push("variety", Value::Meaning(variety.into(), variety_name(variety).to_owned()));
        }
        EntryBody::AcpiHid { hardware_id, compatible_id, uid_format, uid } => {
            record.push("hardware_id", Value::Text(text(&hardware_id)));
            record.push("compatible_id", Value::Text(text(&compatible_id)));
            record.push("uid_format", Value::Number(uid_format.into()));
            let length = u64::try_from(uid.len()).unwrap_or(u64::MAX);
            record.push("uid_length", Value::Number(length));
            record.push("uid", unique_id(uid_format, uid));
        }
        EntryBody::Unknown => record.push("raw", Value::Raw(entry.bytes.to_vec())),
        _ => {}
    }
    record
}

/// Converts a unique id: format 1 is an integer of 8 bytes, format 2 is text.
fn unique_id(format: u8, uid: &[u8]) -> Value {
    match (format, <[u8; 8]>::try_from(uid)) {
        (1, Ok(bytes)) => Value::Number(u64::from_le_bytes(bytes)),
        (2, _) => Value::Text(text(uid)),
        _ => Value::Raw(uid.to_vec()),
    }
}

const fn variety_name(variety: u8) -> &'static str {
    match variety {
        1 => "I/O APIC",
        2 => "HPET",
        _ => "unknown",
    }
}

const fn name(body: &EntryBody<'_>) -> &'static str {
    match body {
        EntryBody::Padding => "padding",
        EntryBody::All => "all devices",
        EntryBody::Select => "device",
        EntryBody::RangeStart => "start of range",
        EntryBody::RangeEnd => "end of range",
        EntryBody::AliasSelect { .. } => "device with alias",
        EntryBody::AliasRangeStart { .. } => "start of range with alias",
        EntryBody::ExtendedSelect { .. } => "device with extended settings",
        EntryBody::ExtendedRangeStart { .. } => "start of range with extended settings",
        EntryBody::Special { .. } => "special device",
        EntryBody::AcpiHid { .. } => "ACPI device",
        EntryBody::Unknown => "unknown entry",
    }
}

fn requester(id: u16) -> Value {
    Value::Meaning(id.into(), format!("{:?}", RequesterId(id)))
}
