//! Archives that the kernel unpacks as its first file system, in the "new" cpio format without checksums (Linux
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive under construction.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a directory.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    /// Adds an executable file.
    pub(crate) fn executable(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.entry(path, EXECUTABLE, (0, 0), content)
    }

    /// Adds a character device node.
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Returns the archive's bytes.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    /// Writes an entry: the magic, a header of 13 fields of 8 hexadecimal digits, the name with its zero, and the
    /// content. Name and content are padded to a multiple of 4.
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too large"))?;
        let name_size = u32::try_from(path.len() + 1).context("the name is too long")?;
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected bytes: the output of GNU cpio for `printf hi > bin/x; chmod 755 bin/x; echo bin/x | cpio -o -H newc`,
    /// with inode, owner, time and device numbers set to the values used here.
    #[test]
    fn a_file_is_written_as_gnu_cpio_writes_it() {
        let mut archive = Archive::default();
        archive.executable("bin/x", b"hi").unwrap();
        let expected = concat!(
            "070701", "00000001", "000081ed", "00000000", "00000000", "00000001", "00000000",
            "00000002", "00000000", "00000000", "00000000", "00000000", "00000006", "00000000",
            "bin/x\0", "hi\0\0",
        );
        assert_eq!(String::from_utf8(archive.bytes.clone()).unwrap(), expected);
        let whole = archive.finish().unwrap();
        assert_eq!(whole.len() % 4, 0);
        assert!(whole.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }
}
