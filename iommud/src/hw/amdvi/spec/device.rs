//! The device table entry (48882 section 2.2.2.1): four words of 64 bits.

use crate::hw::fields::{bits, byte};

/// Words of an entry.
pub(crate) const WORDS: usize = 4;

/// V, word 0: the entry is valid. 0 lets the device through untranslated.
pub(crate) const VALID: u64 = 1 << 0;
/// TV, word 0: mode, root and permissions are valid.
pub(crate) const TRANSLATION_VALID: u64 = 1 << 1;
/// IR, word 0: the device may read.
pub(crate) const READ: u64 = 1 << 61;
/// IW, word 0: the device may write.
pub(crate) const WRITE: u64 = 1 << 62;

/// SE, word 1: page faults after the first are not reported.
pub(crate) const SUPPRESS: u64 = 1 << 33;
/// SA, word 1: page faults are not reported.
pub(crate) const SUPPRESS_ALL: u64 = 1 << 34;
/// SysMgt, word 1, bits 41:40 (105:104 of the entry).
const SYSTEM_MANAGEMENT_SHIFT: u32 = 40;

/// SysMgt in place.
pub(crate) const MANAGEMENT_BITS: u64 = 0b11 << SYSTEM_MANAGEMENT_SHIFT;

/// INITPass, EIntPass, NMIPass, Lint0Pass, Lint1Pass, word 2.
pub(crate) const PASS_BITS: u64 = 0b111 << 56 | 0b11 << 62;

/// Bits of word 2 that belong to interrupt remapping: IV, IntTabLen, IG, the table's address, IntCtl.
pub(crate) const INTERRUPT_BITS: u64 = 0x300f_ffff_ffff_ffff;

/// Word 0 of an entry that is valid: `mode` levels of page table (0: untranslated) at `root`.
pub(crate) const fn translation(root: u64, mode: u8, permissions: u64) -> u64 {
    root & super::ADDRESS_BITS
        | (mode as u64 & 7) << 9
        | permissions & (READ | WRITE)
        | TRANSLATION_VALID
        | VALID
}

/// Mode of word 0: levels of page table, 0 for none.
pub(crate) const fn mode(word: u64) -> u8 {
    byte(bits(word, 9, 3), 0)
}

/// IR and IW of word 0, in place.
pub(crate) const fn permissions(word: u64) -> u64 {
    word & (READ | WRITE)
}

/// The bits of words 1 and 2 for the data setting byte of an IVHD device entry (48882 section 5.2.2.2). Byte: bit 0
/// INITPass, 1 EIntPass, 2 NMIPass, 5:4 SysMgt, 6 LINT0Pass, 7 LINT1Pass.
pub(crate) const fn settings(byte: u8) -> (u64, u64) {
    let byte = byte as u64;
    ((byte >> 4 & 3) << SYSTEM_MANAGEMENT_SHIFT, (byte & 0b111) << 56 | (byte >> 6 & 3) << 62)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entry's bytes as Linux lays them out: DTE_FLAG_V, DTE_FLAG_TV, DEV_ENTRY_MODE_SHIFT 9,
    /// DTE_FLAG_IR bit 61, DTE_FLAG_IW bit 62; Xen struct amd_iommu_dte (v 0, tv 1, paging_mode 11:9, pt_root 51:12,
    /// ir 61, iw 62), FreeBSD struct amdiommu_dte and VirtualBox DTE_T agree.
    #[test]
    fn word_0() {
        let modes = [3, 4, 5, 6].map(|mode| translation(0x5000, mode, READ | WRITE));
        let expected = [0x5603, 0x5803, 0x5a03, 0x5c03].map(|low| 0x6000_0000_0000_0000 | low);
        assert_eq!(modes, expected);
        let translate = translation(0x0000_000f_edcb_a000, 4, READ | WRITE);
        assert_eq!(translate.to_le_bytes(), [0x03, 0xa8, 0xcb, 0xed, 0x0f, 0x00, 0x00, 0x60]);
        let six = translation(0x000f_ffff_ffff_f000, 6, READ);
        assert_eq!(six.to_le_bytes(), [0x03, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x20]);
        let through = translation(0, 0, READ | WRITE);
        assert_eq!(through.to_le_bytes(), [0x03, 0, 0, 0, 0, 0, 0, 0x60]);
        let denied = translation(0x1000, 3, 0);
        assert_eq!(denied.to_le_bytes(), [0x03, 0x16, 0, 0, 0, 0, 0, 0]);
    }

    /// The fields of word 0, at the same places as in the test above: mode 11:9, IR 61, IW 62.
    #[test]
    fn fields_of_word_0() {
        for (word, fields) in [
            (0, (0, 0)),
            (u64::MAX, (7, 0x6000_0000_0000_0000)),
            (!0x6000_0000_0000_0e00, (0, 0)),
            (0x6000_0000_1234_5803, (4, 0x6000_0000_0000_0000)),
            (0x2000_0000_0000_0603, (3, 0x2000_0000_0000_0000)),
            (0x4000_0000_0000_0c03, (6, 0x4000_0000_0000_0000)),
            (0x6000_0000_0000_0003, (0, 0x6000_0000_0000_0000)),
            (0x0000_0000_0000_1603, (3, 0)),
        ] {
            assert_eq!((mode(word), permissions(word)), fields, "{word:#x}");
        }
    }

    /// Linux DEV_ENTRY_NO_PAGE_FAULT is entry bit 0x62, so bit 34 of word 1; VirtualBox: SE is bit 97; Xen and
    /// FreeBSD: i 32, se 33, sa 34 of word 1.
    #[test]
    fn suppression() {
        assert_eq!(SUPPRESS.to_le_bytes(), [0, 0, 0, 0, 0x02, 0, 0, 0]);
        assert_eq!(SUPPRESS_ALL.to_le_bytes(), [0, 0, 0, 0, 0x04, 0, 0, 0]);
    }

    /// Linux ACPI_DEVFLAG_INITPASS 1, EXTINT 2, NMI 4, SYSMGT1 0x10, SYSMGT2 0x20, LINT0 0x40, LINT1 0x80
    /// go to DEV_ENTRY_INIT_PASS 0xb8, EINT 0xb9, NMI 0xba, SYSMGT1 0x68, SYSMGT2 0x69, LINT0 0xbe,
    /// LINT1 0xbf.
    #[test]
    fn setting_bytes() {
        assert_eq!(settings(0x01), (0, 1 << (0xb8 - 128)));
        assert_eq!(settings(0x02), (0, 1 << (0xb9 - 128)));
        assert_eq!(settings(0x04), (0, 1 << (0xba - 128)));
        assert_eq!(settings(0x08), (0, 0));
        assert_eq!(settings(0x10), (1 << (0x68 - 64), 0));
        assert_eq!(settings(0x20), (1 << (0x69 - 64), 0));
        assert_eq!(settings(0x40), (0, 1 << (0xbe - 128)));
        assert_eq!(settings(0x80), (0, 1 << (0xbf - 128)));
        assert_eq!(settings(0xff), (0x300_0000_0000, 0xc700_0000_0000_0000));
    }

    /// Xen struct amd_iommu_dte: iv bit 0, int_tab_len 4:1, ig 5, it_root 51:6, int_ctl 61:60.
    #[test]
    fn interrupt_fields() {
        assert_eq!(INTERRUPT_BITS, 1 | 0xf << 1 | 1 << 5 | ((1 << 46) - 1) << 6 | 3 << 60);
    }
}
