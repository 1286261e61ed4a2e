//! Parses the text that `acpidump` writes into tables.
//!
//! ```text
//! DMAR @ 0x000000007A0B5000
//!     0000: 44 4D 41 52 A8 00 00 00 01 2B 49 4E 54 45 4C 20  DMAR.....+INTEL
//! ```

use std::fmt;

/// Columns of the bytes of one line: 16 of two digits and a blank.
const COLUMNS: usize = 16 * 3;

/// A line of a table that cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadDump {
    /// Its offset does not follow from the lines before it. Lines count from 1.
    Offset {
        /// The line.
        line: usize,
        /// The expected offset.
        expected: usize,
    },
    /// It has no bytes, or contains something else among them. Lines count from 1.
    Bytes {
        /// The line.
        line: usize,
    },
}

impl fmt::Display for BadDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offset { line, expected } => {
                write!(f, "line {line}: the offset is not {expected:#x}")
            }
            Self::Bytes { line } => write!(f, "line {line}: not a line of bytes"),
        }
    }
}

/// One table of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dumped {
    /// The signature in the table's heading.
    pub signature: String,
    /// The bytes of the table.
    pub bytes: Vec<u8>,
}

/// Parses the tables of a dump, in their order. Returns none when the text is not a dump.
///
/// # Errors
/// [`BadDump`] for the first line that cannot be parsed.
pub fn tables(text: &str) -> Result<Vec<Dumped>, BadDump> {
    let mut tables: Vec<Dumped> = Vec::new();
    let mut inside = false;
    for (index, content) in text.lines().enumerate() {
        let line = index + 1;
        if let Some(signature) = heading(content) {
            tables.push(Dumped { signature: signature.to_owned(), bytes: Vec::new() });
            inside = true;
        } else if content.trim().is_empty() {
            inside = false;
        } else if inside && let Some(table) = tables.last_mut() {
            let (offset, rest) = content.split_once(':').ok_or(BadDump::Bytes { line })?;
            let offset = usize::from_str_radix(offset.trim(), 16);
            if offset != Ok(table.bytes.len()) {
                return Err(BadDump::Offset { line, expected: table.bytes.len() });
            }
            append(&mut table.bytes, rest).ok_or(BadDump::Bytes { line })?;
        }
    }
    Ok(tables)
}

/// Parses the signature in `SSSS @ 0xADDRESS`.
fn heading(line: &str) -> Option<&str> {
    let (signature, address) = line.trim_end().split_once(" @ 0x")?;
    let digits = !address.is_empty() && address.bytes().all(|byte| byte.is_ascii_hexdigit());
    (signature.len() == 4 && signature.is_ascii() && digits).then_some(signature)
}

/// Appends the bytes of a line. They end at two blanks or after 16 bytes. The rest of the line shows the same bytes
/// as text.
fn append(bytes: &mut Vec<u8>, rest: &str) -> Option<()> {
    let columns = rest.strip_prefix(' ')?;
    let columns = columns.get(..COLUMNS.min(columns.len()))?;
    let before = bytes.len();
    for token in columns.split(' ').take_while(|token| !token.is_empty()) {
        if token.len() != 2 || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(token, 16).ok()?);
    }
    (bytes.len() > before).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_tables_with_their_last_short_lines() {
        let text = "FACP @ 0x00000000BFFE2000\n    \
            0000: 46 41 43 50  FACP\n\n\
            DMAR @ 0x00000000BFFE2100\n  \
            0000: 44 4d 41 52 12 00 00 00 01 2B 49 4E 54 45 4C 20  DMAR.....+INTEL \n  \
            0010: AB CD                                            AB CD\n\n";
        let tables = tables(text).unwrap();
        assert_eq!(tables.len(), 2);
        assert_eq!((tables[0].signature.as_str(), &tables[0].bytes[..]), ("FACP", &b"FACP"[..]));
        assert_eq!(tables[1].bytes, *b"DMAR\x12\0\0\0\x01\x2bINTEL \xab\xcd");
    }

    #[test]
    fn what_is_not_a_dump_has_no_tables_and_a_broken_one_says_where() {
        assert_eq!(tables("DMAR\0\0\0\0"), Ok(vec![]));
        assert_eq!(tables("DMAR @ 0xZZ\n 0000: 44\n"), Ok(vec![]));
        let gap = "DMAR @ 0x1\n    0010: 44 4D\n";
        assert_eq!(tables(gap), Err(BadDump::Offset { line: 2, expected: 0 }));
        for bad in
            ["    0000: 4", "    0000: GG", "    0000:", "    0000: ", "nonsense", " 0000: é"]
        {
            let text = format!("DMAR @ 0x1\n{bad}\n");
            assert_eq!(tables(&text), Err(BadDump::Bytes { line: 2 }), "{bad}");
        }
    }
}
