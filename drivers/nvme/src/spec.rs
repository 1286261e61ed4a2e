//! Layouts. Sections are those of the NVM Express Base Specification 2.0c, unless another document is named.

/// Controller capabilities (3.1.3.1).
pub(crate) const CAPABILITIES: u64 = 0x00;
/// Controller configuration (3.1.3.5).
pub(crate) const CONFIGURATION: u64 = 0x14;
/// Controller status (3.1.3.6).
pub(crate) const STATUS: u64 = 0x1c;
/// Admin queue attributes (3.1.3.8).
pub(crate) const ADMIN_ATTRIBUTES: u64 = 0x24;
/// Admin submission queue base address (3.1.3.9).
pub(crate) const ADMIN_SUBMISSION: u64 = 0x28;
/// Admin completion queue base address (3.1.3.10).
pub(crate) const ADMIN_COMPLETION: u64 = 0x30;
/// First doorbell (NVMe over PCIe Transport 1.0c, 3.1.2).
pub(crate) const DOORBELLS: u64 = 0x1000;

/// Configuration: enabled, pages of 4096 bytes, submission entries of 64 and completion entries of 16 bytes.
pub(crate) const ENABLED: u32 = 4 << 20 | 6 << 16 | 1;
/// Status: ready.
pub(crate) const READY: u32 = 1 << 0;
/// Status: fatal error.
pub(crate) const FATAL: u32 = 1 << 1;

/// Admin commands (5, figure 87).
pub(crate) const CREATE_SUBMISSION: u32 = 0x01;
pub(crate) const CREATE_COMPLETION: u32 = 0x05;
pub(crate) const IDENTIFY: u32 = 0x06;
pub(crate) const ABORT: u32 = 0x08;
pub(crate) const SET_FEATURES: u32 = 0x09;
/// I/O commands (NVM Command Set 1.0c, figure 12).
pub(crate) const FLUSH: u32 = 0x00;
pub(crate) const WRITE: u32 = 0x01;
pub(crate) const READ: u32 = 0x02;

/// The feature that states how many queues there may be (5.27.1.5).
pub(crate) const NUMBER_OF_QUEUES: u32 = 0x07;

/// The objects of Identify (5.17.1, CNS).
pub(crate) const NAMESPACE: u32 = 0x00;
pub(crate) const CONTROLLER: u32 = 0x01;
pub(crate) const ACTIVE_NAMESPACES: u32 = 0x02;

/// The first word of a command: its data pointer is a descriptor (3.3.3.1, PSDT 01b).
pub(crate) const SGL: u32 = 1 << 14;

/// The descriptor of a data block (4.1.2.1): its address, and its length in bytes. The type, in the highest 4 bits, is 0.
pub(crate) fn data_block(iova: u64, length: u32) -> [u64; 2] {
    [iova, u64::from(length)]
}

/// Physically contiguous: the queue is one piece of addresses (5.4, 5.5).
pub(crate) const CONTIGUOUS: u32 = 1;
/// Completions raise interrupts (5.4).
pub(crate) const INTERRUPTS: u32 = 2;

/// Bytes of registers that a driver maps: those of the controller, and a page of doorbells.
pub const REGISTERS: u64 = 0x2000;

/// Bytes of a page, and of the result of Identify.
pub(crate) const PAGE: u64 = 4096;

/// A command: 16 little-endian words of 32 bits (3.3.3.1).
pub(crate) type Command = [u32; 16];

/// A command with its data pointer: two addresses of pages, or a descriptor. The identifier is set when it is sent.
pub(crate) fn command(
    opcode: u32,
    namespace: u32,
    prp1: u64,
    prp2: u64,
    words: [u32; 3],
) -> Command {
    let [low1, high1] = halves(prp1);
    let [low2, high2] = halves(prp2);
    let [w10, w11, w12] = words;
    [opcode, namespace, 0, 0, 0, 0, low1, high1, low2, high2, w10, w11, w12, 0, 0, 0]
}

/// Low and high half.
pub(crate) fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// Capabilities of a controller (3.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities(pub(crate) u64);

impl Capabilities {
    /// The most entries of a queue, 2 to 65536 (MQES, which counts from 0).
    pub(crate) fn entries(self) -> u64 {
        (self.0 & 0xffff) + 1
    }

    /// How long the controller may take from enable to ready, in ms (TO, in units of 500 ms).
    pub(crate) fn timeout_ms(self) -> u64 {
        (self.0 >> 24 & 0xff).max(1) * 500
    }

    /// Bytes from one doorbell to the next (DSTRD).
    pub(crate) fn stride(self) -> u64 {
        4 << (self.0 >> 32 & 0xf)
    }

    /// How many queues of requests have doorbells among the registers that are mapped: 1 to 511.
    pub(crate) fn queues(self) -> u16 {
        let pairs = (REGISTERS - DOORBELLS) / (2 * self.stride());
        u16::try_from(pairs.saturating_sub(1)).unwrap_or(u16::MAX).max(1)
    }

    /// The smallest page, in bytes (MPSMIN).
    pub(crate) fn smallest_page(self) -> u64 {
        4096 << (self.0 >> 48 & 0xf)
    }
}

/// A completion (3.3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    /// The result of the command.
    pub(crate) result: u32,
    /// Identifier of the command.
    pub(crate) command: u16,
    /// Status code type and status code: 0 is success (3.3.3.2.1).
    pub(crate) status: u16,
}

/// The phase bit of the last word of a completion.
pub(crate) const fn phase(word: u32) -> bool {
    word & 1 << 16 != 0
}

impl Completion {
    /// Reads the first and the last of the four words.
    pub(crate) fn from_words(result: u32, word: u32) -> Self {
        let [c0, c1, s0, s1] = word.to_le_bytes();
        let status = u16::from_le_bytes([s0, s1]) >> 1 & 0x7ff;
        Self { result, command: u16::from_le_bytes([c0, c1]), status }
    }
}

/// A field of the result of Identify; zeros past its end.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    found.copied().unwrap_or([0; N])
}

/// Text of a fixed length, padded with spaces.
pub(crate) fn text<const N: usize>(bytes: &[u8], at: usize) -> String {
    String::from_utf8_lossy(&field::<N>(bytes, at)).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CAP as QEMU's hw/nvme/ctrl.c composes it: MQES 0x7ff, CQR, TO 0xf, CSS bits 0, 6 and 7, MPSMAX 4.
    #[test]
    fn capabilities_of_qemu() {
        let cap = Capabilities(0x0040_1820_0f01_07ff);
        assert_eq!((cap.entries(), cap.timeout_ms(), cap.stride()), (2048, 7500, 4));
        assert_eq!((cap.smallest_page(), cap.queues()), (4096, 511));
        let other = Capabilities(1 << 48 | 3 << 32);
        assert_eq!((other.stride(), other.smallest_page(), other.timeout_ms()), (32, 8192, 500));
        assert_eq!((other.queues(), Capabilities(15 << 32).queues()), (63, 1));
    }

    #[test]
    fn a_read_is_written_as_the_specification_says() {
        let words = command(READ, 3, 0x1_2345_6000, 0x0_9876_5000, [0x11, 0x22, 7]);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes[..8], [2, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(
            bytes[24..40],
            [0, 0x60, 0x45, 0x23, 1, 0, 0, 0, 0, 0x50, 0x76, 0x98, 0, 0, 0, 0]
        );
        assert_eq!(bytes[40..52], [0x11, 0, 0, 0, 0x22, 0, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn a_completion_is_read() {
        let done = Completion::from_words(5, 0x4281 << 17 | 1 << 16 | 0x0102);
        assert_eq!(done, Completion { result: 5, command: 0x0102, status: 0x281 });
        assert!(phase(1 << 16) && !phase(0xfffe_ffff));
    }
}
