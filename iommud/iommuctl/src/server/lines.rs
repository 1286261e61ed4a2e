//! Texts of `key: value` lines.

use std::str::FromStr;

/// The lines of a text.
#[derive(Clone, Debug)]
pub struct Lines<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Lines<'a> {
    /// Splits each line behind its first colon. A line without one has no key.
    #[must_use]
    pub fn of(text: &'a str) -> Self {
        let split = |line: &'a str| line.split_once(':').unwrap_or(("", line));
        Self(text.lines().map(split).map(|(key, value)| (key, value.trim())).collect())
    }

    /// All lines, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + '_ {
        self.0.iter().copied()
    }

    /// The value of the first line with a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.all(key).next()
    }

    /// The values of all lines with a key.
    pub fn all(&self, key: &str) -> impl Iterator<Item = &'a str> + '_ {
        let key = key.to_owned();
        self.iter().filter(move |(of, _)| *of == key).map(|(_, value)| value)
    }

    /// The value of a key, read.
    #[must_use]
    pub fn parse<T: FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.parse().ok()
    }
}

/// A hexadecimal number, with or without `0x`.
#[must_use]
pub fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// Two hexadecimal numbers with a separator between them.
#[must_use]
pub fn pair(text: &str, separator: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once(separator)?;
    Some((hexadecimal(first)?, hexadecimal(last)?))
}

/// First and last of a range, with a dash between them; `None` when it ends before it begins.
#[must_use]
pub fn range(text: &str) -> Option<(u64, u64)> {
    pair(text, "-").filter(|(first, last)| first <= last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_key() {
        let lines = Lines::of("table: DMAR\nunit 0: vt-d enabled\nunit 0: again\nplain\n");
        assert_eq!(lines.get("table"), Some("DMAR"));
        assert_eq!(lines.all("unit 0").collect::<Vec<_>>(), ["vt-d enabled", "again"]);
        assert_eq!(lines.get(""), Some("plain"));
        assert_eq!((lines.parse::<u32>("table"), lines.get("x")), (None, None));
    }

    #[test]
    fn numbers_have_digits_only() {
        assert_eq!((hexadecimal("0x1f"), hexadecimal("1F")), (Some(31), Some(31)));
        assert_eq!((hexadecimal("+1"), hexadecimal("0x"), hexadecimal("")), (None, None, None));
        assert_eq!(pair("0x1000-0x1fff", "-"), Some((0x1000, 0x1fff)));
        assert_eq!(pair("0x1000", "-"), None);
        assert_eq!((range("0x1000-0x1000"), range("2-1")), (Some((0x1000, 0x1000)), None));
    }
}
