//! What clients were told.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::Story;

/// Check 5: no 8 bytes of any frame to a client, at any offset, and no hexadecimal number in any text, lie
/// in the server's memory or the unit's registers.
pub(super) fn search(story: &Story) -> Result<String> {
    let server = story.server()?;
    let mut secret: Vec<(u64, u64)> =
        server.memory()?.pages().iter().map(|page| (page.physical, 2 << 20)).collect();
    secret.push((crate::unit::Registers::open()?.base, 4096));
    let is_secret =
        |value: u64| secret.iter().any(|(base, size)| value.wrapping_sub(*base) < *size);
    let (mut frames, mut bytes, mut granted) = (0_usize, 0, 0_usize);
    for path in &story.wire_logs {
        let log = fs::read_to_string(path).with_context(|| path.clone())?;
        for line in log.lines() {
            let mut words = line.split_whitespace();
            let (_, direction, hex) = (words.next(), words.next(), words.next().unwrap_or(""));
            let frame = decode(hex)?;
            if direction != Some("<") {
                continue;
            }
            frames += 1;
            bytes += frame.len();
            let found = numbers(&frame).find(|value| is_secret(*value));
            ensure!(found.is_none(), "{:#x} in {line}", found.unwrap_or(0));
            let found = texts(&frame).find(|value| is_secret(*value));
            ensure!(found.is_none(), "text {:#x} in {line}", found.unwrap_or(0));
            granted += numbers(&frame).filter(|value| *value == story.seen_iova).count();
        }
    }
    // The search does find what is there: an address that a client was given.
    ensure!(granted > 0, "iova {:#x} is not in the logs either", story.seen_iova);
    Ok(format!("{frames} frames, {bytes} bytes, {} secret ranges", secret.len()))
}

fn decode(hex: &str) -> Result<Vec<u8>> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    ensure!(rest.is_empty(), "half a byte in the wire log");
    pairs.iter().map(|pair| Ok(u8::from_str_radix(str::from_utf8(pair)?, 16)?)).collect()
}

/// Every 8 bytes, at every offset.
fn numbers(frame: &[u8]) -> impl Iterator<Item = u64> {
    frame.windows(8).filter_map(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)))
}

/// Every run of hexadecimal digits, as a number.
fn texts(frame: &[u8]) -> impl Iterator<Item = u64> {
    frame
        .split(|byte| !byte.is_ascii_hexdigit())
        .filter(|run| run.len() >= 5)
        .filter_map(|run| u64::from_str_radix(str::from_utf8(run).ok()?, 16).ok())
}
