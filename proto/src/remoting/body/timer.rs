//! What an Apache broker tells of its timer messages: codes 60 and 61, and the files `timercheck` and `timermetrics`.

use std::collections::BTreeMap;

use super::body;
use super::topic::DataVersion;
use crate::error::DecodeError;
use crate::ids::Millis;
use crate::reader::Reader;

/// Code 60, and the begin of the file `timercheck`.
///
/// ```text
///  0          8           16          24          32          40          48         56
///  +----------+-----------+-----------+-----------+-----------+-----------+----------+
///  | read i64 | flush i64 | queue i64 | master i64| state i64 | time i64  | count i64|
///  +----------+-----------+-----------+-----------+-----------+-----------+----------+
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerCheckpoint {
    /// Everything that was due before was delivered: `lastReadTimeMs`, whole seconds.
    pub read_time: Millis,
    /// Where the timer log ends: `lastTimerLogFlushPos`.
    pub flushed: i64,
    /// First offset of the timers' queue that is not in the wheel: `lastTimerQueueOffset`.
    pub queue_offset: i64,
    /// The same as the master has it: `masterTimerQueueOffset`. The smaller one counts.
    pub master_queue_offset: i64,
    /// Version: state, time and counter.
    pub version: [i64; 3],
}

impl TimerCheckpoint {
    /// Bytes of its form.
    pub const BYTES: usize = 56;

    /// Its form.
    pub fn encode(&self) -> Vec<u8> {
        let [state, time, counter] = self.version;
        let fields = [
            self.read_time.get(),
            self.flushed,
            self.queue_offset,
            self.master_queue_offset,
            state,
            time,
            counter,
        ];
        fields.into_iter().flat_map(i64::to_be_bytes).collect()
    }

    /// Reads it; what follows is left.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        Ok(Self {
            read_time: Millis::new(reader.i64("lastReadTimeMs")?),
            flushed: reader.i64("lastTimerLogFlushPos")?,
            queue_offset: reader.i64("lastTimerQueueOffset")?,
            master_queue_offset: reader.i64("masterTimerQueueOffset")?,
            version: [reader.i64("stateVersion")?, reader.i64("timestamp")?, reader.i64("counter")?],
        })
    }
}

body! {
    /// Code 61: how many timer messages wait, by topic.
    #[derive(Default)]
    TimerMetrics {
        data_version: DataVersion,
        timing_count: BTreeMap<String, TimerMetric>,
    }
}

body! {
    /// How many timer messages of a topic wait, and when that was counted.
    #[derive(Default)]
    TimerMetric {
        count: i64,
        time_stamp: i64,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Body as _;
    use super::*;

    #[test]
    fn metrics_have_javas_names() {
        let mut metrics = TimerMetrics::default();
        metrics.timing_count.insert("orders".to_owned(), TimerMetric { count: 3, time_stamp: 5 });
        let text = String::from_utf8(metrics.to_json()).unwrap();
        assert!(text.contains(r#""timingCount":{"orders":{"count":3,"timeStamp":5}}"#), "{text}");
        assert_eq!(TimerMetrics::from_json(text.as_bytes()), Ok(metrics));
    }

    proptest! {
        #[test]
        fn a_checkpoint_survives(fields: [i64; 7]) {
            let [read, flushed, queue_offset, master_queue_offset, state, time, counter] = fields;
            let version = [state, time, counter];
            let read_time = Millis::new(read);
            let checkpoint = TimerCheckpoint { read_time, flushed, queue_offset, master_queue_offset, version };
            let bytes = checkpoint.encode();
            prop_assert_eq!(bytes.len(), TimerCheckpoint::BYTES);
            prop_assert_eq!(TimerCheckpoint::decode(&bytes), Ok(checkpoint));
        }

        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            prop_assert_eq!(TimerCheckpoint::decode(&bytes).is_ok(), bytes.len() >= TimerCheckpoint::BYTES);
        }
    }
}
