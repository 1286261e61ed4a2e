//! Secrets in the bytes sent to clients.

use std::fs;

use anyhow::{Context, Result, ensure};
use iommu_protocol::fault::RECORD_SIZE;
use iommu_protocol::frame::HEADER_SIZE;

use super::Story;

/// Check 15: no frame to a client contains an address in a server's memory or in the unit's registers. It examines
/// every 8 bytes at multiples of 4, and every hexadecimal number in texts. The only exception is the address in a
/// fault record, if a check made a device use that very address.
pub(super) fn search(story: &Story) -> Result<String> {
    ensure!(story.server.is_none(), "iommud still runs");
    let registers = (crate::unit::Registers::open()?.base, 4096);
    let (mut frames, mut bytes, mut granted, mut planted) = (0_usize, 0, 0_usize, 0);
    for (path, memory) in &story.past {
        let ranges = [memory.as_slice(), &[registers]].concat();
        let secret = Secret { ranges, asked: &story.asked };
        secret.is_found()?;
        planted += 2;
        let log = fs::read_to_string(path).with_context(|| path.clone())?;
        for line in log.lines() {
            let mut words = line.split_whitespace();
            let (_, direction, hex) = (words.next(), words.next(), words.next().unwrap_or(""));
            if direction != Some("<") {
                continue;
            }
            let frame = decode(hex)?;
            let payload = frame.get(HEADER_SIZE..).context("a frame without a header")?;
            frames += 1;
            bytes += frame.len();
            let found = secret.binary(payload).or_else(|| secret.text(payload));
            ensure!(found.is_none(), "{:#x} in {}", found.unwrap_or(0), shown(payload));
            granted += numbers(payload).filter(|(_, value)| *value == story.seen_iova).count();
        }
    }
    // The same search finds an address that a client was given.
    ensure!(granted > 0, "iova {:#x} is not in the logs either", story.seen_iova);
    let servers = story.past.len();
    Ok(format!("{servers} servers, {frames} frames, {bytes} bytes; {planted} planted ones found"))
}

/// Addresses that no client may learn.
struct Secret<'a> {
    ranges: Vec<(u64, u64)>,
    asked: &'a [u64],
}

impl Secret<'_> {
    /// Checks that the search finds planted addresses, in binary and in text.
    fn is_found(&self) -> Result<()> {
        let planted = self.ranges.first().map_or(0, |(base, _)| base + 0x123);
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&planted.to_le_bytes());
        ensure!(self.binary(&frame) == Some(planted), "a planted address was not found");
        let text = format!("root: {planted:#x}");
        ensure!(self.text(text.as_bytes()) == Some(planted), "a planted text was not found");
        Ok(())
    }

    fn holds(&self, value: u64) -> bool {
        self.ranges.iter().any(|(base, size)| value.wrapping_sub(*base) < *size)
    }

    fn was_asked(&self, value: u64) -> bool {
        self.asked.iter().any(|asked| asked & !0xfff == value & !0xfff)
    }

    /// Finds a secret among the 8-byte numbers.
    fn binary(&self, payload: &[u8]) -> Option<u64> {
        let records = !payload.is_empty() && payload.len().is_multiple_of(RECORD_SIZE);
        let excused = |at: usize, value| records && at % RECORD_SIZE == 8 && self.was_asked(value);
        let found =
            numbers(payload).find(|(at, value)| self.holds(*value) && !excused(*at, *value));
        found.map(|(_, value)| value)
    }

    /// Finds a secret among the runs of hexadecimal digits.
    fn text(&self, payload: &[u8]) -> Option<u64> {
        let mut start = 0;
        for run in payload.split(|byte| !byte.is_ascii_hexdigit()) {
            let before = payload.get(..start)?;
            start += run.len() + 1;
            let digits = str::from_utf8(run).ok().filter(|digits| digits.len() >= 5);
            let Some(Ok(value)) = digits.map(|digits| u64::from_str_radix(digits, 16)) else {
                continue;
            };
            let excused = before.ends_with(b"iova 0x") && self.was_asked(value);
            if self.holds(value) && !excused {
                return Some(value);
            }
        }
        None
    }
}

fn decode(hex: &str) -> Result<Vec<u8>> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    ensure!(rest.is_empty(), "half a byte in the wire log");
    pairs.iter().map(|pair| Ok(u8::from_str_radix(str::from_utf8(pair)?, 16)?)).collect()
}

/// Returns every 8 bytes at a multiple of 4. Numbers of the protocol lie at multiples of their size.
fn numbers(payload: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
    payload
        .windows(8)
        .enumerate()
        .step_by(4)
        .filter_map(move |(at, bytes)| Some((at, number(bytes)?)))
}

/// Formats a payload as text, or else in hexadecimal.
fn shown(payload: &[u8]) -> String {
    match str::from_utf8(payload) {
        Ok(text) if text.is_ascii() => text.into(),
        _ => payload.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}
