//! Names of the files that pages are kept in.

use std::fmt;

/// The name of a page: eight hexadecimal digits of its server's number, a dash, eight more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageName {
    /// Number of the server that took the page.
    pub server: u32,
    /// Number of the page among those that the server took.
    pub serial: u32,
}

impl PageName {
    /// The name with this text.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (server, serial) = name.split_once('-')?;
        let number = |text: &str| {
            let plain = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
            if plain { u32::from_str_radix(text, 16).ok() } else { None }
        };
        Some(Self { server: number(server)?, serial: number(serial)? })
    }
}

impl fmt::Display for PageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}", self.server, self.serial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_files_are_left_alone() {
        let name = PageName { server: 42, serial: 7 };
        assert_eq!(PageName::parse("0000002a-00000007"), Some(name));
        assert_eq!(name.to_string(), "0000002a-00000007");
        for bad in ["", "-", "2a-7", "0000002a-0000000g", "0000002a-00000007x", "+000002a-00000007"]
        {
            assert_eq!(PageName::parse(bad), None, "{bad}");
        }
    }
}
