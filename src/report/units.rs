//! Sizes and durations for people: short, with a unit, and never more exact than anybody needs.

use std::time::Duration;

/// A size with a binary unit: `0 B`, `34.5 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0 of the smaller unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A duration in its two largest units, as durations are written in flags: `0s`, `0.4s`, `12s`, `3m12s`, `2h5m`,
/// `3d4h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => {
            let tenths = duration.as_millis() / 100;
            match tenths % 10 {
                0 => format!("{}s", tenths / 10),
                rest => format!("{}.{rest}s", tenths / 10),
            }
        }
        10..60 => format!("{seconds}s"),
        60..3600 => two_units(seconds, (60, 'm'), (1, 's')),
        3600..86_400 => two_units(seconds, (3600, 'h'), (60, 'm')),
        _ => two_units(seconds, (86_400, 'd'), (3600, 'h')),
    }
}

fn two_units(seconds: u64, (large, large_name): (u64, char), (small, small_name): (u64, char)) -> String {
    match seconds % large / small {
        0 => format!("{}{large_name}", seconds / large),
        rest => format!("{}{large_name}{rest}{small_name}", seconds / large),
    }
}

/// A compression ratio: `7.8 : 1`.
pub fn ratio(ratio: f64) -> String {
    format!("{ratio:.1} : 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let shown: Vec<String> =
            [0, 1023, 1024, 36_175_872, (1 << 30) - 1, 1 << 30, u64::MAX].map(size).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "34.5 MiB", "1.0 GiB", "1.0 GiB", "16.0 EiB"]);
    }

    #[test]
    fn durations() {
        let shown: Vec<String> = [0, 40, 400, 9_960, 12_900, 60_000, 192_000, 7_500_000, 273_600_000]
            .map(|millis| duration(Duration::from_millis(millis)))
            .into();
        let expected = ["0s", "0s", "0.4s", "9.9s", "12s", "1m", "3m12s", "2h5m", "3d4h"];
        assert_eq!(shown, expected);
    }
}
