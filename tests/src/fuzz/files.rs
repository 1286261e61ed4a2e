//! Files chosen by an administrator.

use iommuctl::decode;
use iommud::config;
use iommud::topology::pci::{FunctionKind, PciFunction};

use iommu_protocol::ids::PciAddress;

/// Decodes a file given to `iommuctl decode`.
pub fn decode(data: &[u8]) {
    if let Ok(tables) = decode::tables(data) {
        assert!(!tables.is_empty());
        for table in tables {
            assert!(table.json().is_object());
            assert!(!table.text().is_empty());
        }
    }
}

/// Parses a policy file. An accepted file gives every device a mode and no quota of zero. A rejected one is reported
/// with one of its lines.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match config::parse(text) {
        Ok(config) => {
            let quotas = config.quotas;
            assert!(quotas.memory > 0 && quotas.handles > 0 && quotas.mappings > 0);
            let address = PciAddress::new(0, 0, 4, 0).unwrap();
            let function = PciFunction {
                address,
                vendor: 0x1234,
                device: 0x11e8,
                class: 0xff_0000,
                kind: FunctionKind::Conventional,
                multifunction: false,
                acs: None,
                acs_capability: 0,
                hot_plug: false,
            };
            let modes = config.rules.iter().map(|rule| rule.mode).chain([config.default]);
            assert!(modes.into_iter().any(|mode| mode == config.mode(&function)));
        }
        Err(error) => {
            use config::ConfigError::{Quota, Read, Rule, Syntax, TooLong};
            match error {
                Syntax { line, .. } | Rule { line, .. } | Quota { line, .. } => {
                    assert!(line >= 1 && line <= text.split('\n').count());
                }
                Read(_) | TooLong => panic!("{error}"),
            }
        }
    }
}
