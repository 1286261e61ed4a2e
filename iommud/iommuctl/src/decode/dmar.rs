//! Converts a DMAR to records.

use iommud::acpi::dmar::{
    ALL_PORTS, ATC_REQUIRED, Body, DMA_CTRL_PLATFORM_OPT_IN, Dmar, INCLUDE_PCI_ALL, INTR_REMAP,
    Structure, X2APIC_OPT_OUT,
};
use iommud::acpi::{Scope, Scopes};

use super::record::{Record, Value, text, words};

/// Flags of device scopes in a SIDP (VT-d 4.1 section 8.3.1).
const SCOPE_FLAGS: &[(u64, &str)] = &[
    (1 << 0, "no nested translation for requests without PASID"),
    (1 << 1, "no page-walk snoop for requests without PASID"),
    (1 << 2, "no page snoop for requests without PASID"),
    (1 << 3, "hardened translation cache"),
    (1 << 4, "ATS required"),
];

/// The fields between the header and the structures.
pub(super) fn fixed(table: &Dmar<'_>) -> Vec<(&'static str, Value)> {
    let width = u64::from(table.host_address_width);
    let flags = u64::from(table.flags);
    let names = [
        (u64::from(INTR_REMAP), "interrupt remapping"),
        (u64::from(X2APIC_OPT_OUT), "x2APIC opt-out"),
        (u64::from(DMA_CTRL_PLATFORM_OPT_IN), "DMA opt-in"),
    ];
    vec![
        ("host_address_width", Value::Meaning(width, format!("{} bits", width + 1))),
        ("flags", Value::Flags(flags, words(flags, &names))),
    ]
}

/// Converts one structure.
pub(super) fn structure(structure: &Structure<'_>) -> Record {
    let Structure { offset, kind, length, .. } = *structure;
    let mut record = Record::new(format!("{} at offset {offset}", structure.name()));
    record.push("type", Value::Hex(kind.into()));
    record.push("name", Value::Text(structure.name().to_owned()));
    record.push("offset", Value::Number(u64::try_from(offset).unwrap_or(u64::MAX)));
    record.push("length", Value::Number(length.into()));
    fields(&mut record, structure);
    if let Some(scopes) = structure.scopes() {
        record.push("scopes", self::scopes(scopes, kind == 6));
    }
    record
}

fn fields(record: &mut Record, structure: &Structure<'_>) {
    match structure.body {
        Body::Drhd { flags, size, segment, register_base_address, .. } => {
            flag_field(record, flags, INCLUDE_PCI_ALL, "all other devices of the segment");
            let pages = 1u64 << (size & 0xf);
            record.push("size", Value::Meaning(size.into(), format!("{} KiB", 4 * pages)));
            record.push("segment", Value::Number(segment.into()));
            record.push("register_base_address", Value::Hex(register_base_address));
        }
        Body::Rmrr { segment, base_address, limit_address, .. } => {
            record.push("segment", Value::Number(segment.into()));
            record.push("base_address", Value::Hex(base_address));
            record.push("limit_address", Value::Hex(limit_address));
        }
        Body::Atsr { flags, segment, .. } => {
            flag_field(record, flags, ALL_PORTS, "all root ports");
            record.push("segment", Value::Number(segment.into()));
        }
        Body::Rhsa { register_base_address, proximity_domain } => {
            record.push("register_base_address", Value::Hex(register_base_address));
            record.push("proximity_domain", Value::Number(proximity_domain.into()));
        }
        Body::Andd { device_number, object_name } => {
            record.push("device_number", Value::Number(device_number.into()));
            record.push("object_name", Value::Text(text(object_name)));
        }
        Body::Satc { flags, segment, .. } => {
            flag_field(record, flags, ATC_REQUIRED, "ATS required");
            record.push("segment", Value::Number(segment.into()));
        }
        Body::Sidp { segment, .. } => record.push("segment", Value::Number(segment.into())),
        Body::Unknown | Body::TooShort { .. } | Body::BadLength => {
            record.push("raw", Value::Raw(structure.bytes.to_vec()));
        }
    }
}

fn flag_field(record: &mut Record, flags: u8, bit: u8, word: &'static str) {
    let flags = u64::from(flags);
    record.push("flags", Value::Flags(flags, words(flags, &[(bit.into(), word)])));
}

/// The scopes before the first that cannot be decoded.
fn scopes(scopes: Scopes<'_>, properties: bool) -> Value {
    let readable = scopes.map_while(Result::ok).map(|entry| scope(&entry, properties));
    Value::Records(readable.collect())
}

fn scope(scope: &Scope<'_>, properties: bool) -> Record {
    let kind = match scope.kind {
        1 => "endpoint",
        2 => "bridge",
        3 => "I/O APIC",
        4 => "HPET",
        5 => "name space device",
        _ => "unknown",
    };
    let mut record = Record::new(kind.to_owned());
    let flags = u64::from(scope.flags);
    let names = if properties { SCOPE_FLAGS } else { &[] };
    record.push("type", Value::Hex(scope.kind.into()));
    record.push("flags", Value::Flags(flags, words(flags, names)));
    record.push("enumeration_id", Value::Number(scope.enumeration_id.into()));
    record.push("bus", Value::Hex(scope.start_bus.into()));
    record.push("path", Value::Path(scope.path().collect()));
    record
}
