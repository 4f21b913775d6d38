//! Medians.

/// The median; the mean of the middle two when there are two. Not a number for nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (half, odd) = (sorted.len() / 2, sorted.len() % 2 == 1);
    let middle = sorted.get(if odd { half..=half } else { half.saturating_sub(1)..=half });
    middle.map_or(f64::NAN, |middle| middle.iter().sum::<f64>() / if odd { 1.0 } else { 2.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_found() {
        assert_eq!(median(&[3.0, 1.0, 9.0]).to_string(), "3");
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]).to_string(), "3");
        assert_eq!(median(&[5.0]).to_string(), "5");
        assert!(median(&[]).is_nan());
    }
}
