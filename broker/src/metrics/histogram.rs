//! A distribution as counts of powers of two.

use super::Counter;

/// Buckets: 0, 1, 2 to 3, 4 to 7, … and everything from about 12 days on in milliseconds.
const BUCKETS: usize = 32;

/// How often which values were seen. A value is known to a factor of two.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
}

impl Histogram {
    /// Notes one value.
    pub fn record(&self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        if let Some(bucket) = self.buckets.get(bucket.min(BUCKETS - 1)) {
            bucket.bump();
        }
    }

    /// How many values were noted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }

    /// A value that at least `percent` percent of the noted ones do not exceed; 0 when nothing was noted.
    pub fn at_most(&self, percent: u64) -> u64 {
        let wanted = self.count().saturating_mul(percent.min(100)).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count.get();
            if seen >= wanted {
                return (1_u64 << bucket) - 1;
            }
        }
        u64::MAX
    }

    /// Upper bound and count of each bucket that holds something, smallest first.
    pub fn filled(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counts = self.buckets.iter().map(Counter::get).enumerate();
        counts.filter(|(_, count)| *count > 0).map(|(bucket, count)| ((1_u64 << bucket) - 1, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_known_to_a_factor_of_two() {
        let histogram = Histogram::default();
        assert_eq!((histogram.count(), histogram.at_most(99)), (0, 0));
        for value in 0..100 {
            histogram.record(value);
        }
        histogram.record(u64::MAX);
        assert_eq!(histogram.count(), 101);
        assert_eq!((histogram.at_most(50), histogram.at_most(99)), (63, 127));
        assert_eq!(histogram.at_most(100), (1 << 31) - 1);
        assert_eq!(histogram.filled().next(), Some((0, 1)));
        assert_eq!(histogram.filled().map(|(_, count)| count).sum::<u64>(), 101);
    }
}
