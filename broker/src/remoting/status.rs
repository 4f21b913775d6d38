//! The broker itself: how it is set (26) and how it is doing (28), under the names that Apache's tools know.
//!
//! Nothing is invented: what this broker does not have (thread pools, a page-cache lock) is
//! 0, rates are averages of real counts, and days are counted in UTC from the start of the process.

use std::collections::BTreeMap;
use std::path::Path;

use gantry_proto::ids::{Millis, QueueId};
use gantry_proto::names::topics as names;
use gantry_proto::record::RecordView;
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::lists::KvTable;
use gantry_proto::remoting::body::topic::DataVersion;
use gantry_proto::remoting::request::topic::GetBrokerConfigResponse;

use super::context::Reply;
use super::offset::read_delay_offsets;
use crate::config::{Config, Policy};
use crate::flow::Flow;
use crate::join::Join;
use crate::metrics::Metrics;
use crate::metrics::history::Totals;
use crate::routes::{Drain, Phase};
use crate::store::Store;

/// Spans over which rates are averaged, in milliseconds.
const SPANS_MS: [u64; 3] = [10_000, 60_000, 600_000];

/// Code 26. `version` is that of the topics; `broker_port` the port that the broker listens on.
pub fn config(config: &Config, version: DataVersion, broker_port: u16) -> Reply {
    let delay_levels: Vec<_> =
        config.timer.delay_levels.iter().map(|delay| format!("{}ms", delay.as_millis())).collect();
    let flush = match config.store.policy {
        Policy::Memory => "ASYNC_FLUSH",
        Policy::Disk => "SYNC_FLUSH",
    };
    let settings = [
        ("brokerName", config.node.name.clone()),
        ("brokerClusterName", config.node.cluster.clone()),
        ("brokerId", "0".to_owned()),
        ("brokerRole", "ASYNC_MASTER".to_owned()),
        ("brokerPermission", "6".to_owned()),
        ("listenPort", broker_port.to_string()),
        ("brokerIP1", config.node.advertise.clone().unwrap_or_else(|| config.node.bind.to_string())),
        ("storePathRootDir", config.store.dir.display().to_string()),
        ("flushDiskType", flush.to_owned()),
        ("mappedFileSizeCommitLog", config.store.segment_bytes.to_string()),
        ("mappedFileSizeConsumeQueue", config.store.queue_file_bytes.to_string()),
        ("maxHashSlotNum", config.store.index_slots.to_string()),
        ("maxIndexNum", config.store.index_entries.to_string()),
        ("fileReservedTime", (config.retention.time.as_secs() / 3600).to_string()),
        ("diskSpaceCleanForciblyRatio", format!("0.{:02}", config.retention.force_percent.min(99))),
        ("diskSpaceWarningLevelRatio", format!("0.{:02}", config.retention.refuse_percent.min(99))),
        ("transactionTimeOut", config.transaction.timeout.as_millis().to_string()),
        ("transactionCheckInterval", config.transaction.check_interval.as_millis().to_string()),
        ("transactionCheckMax", config.transaction.max_checks.to_string()),
        ("messageDelayLevel", delay_levels.join(" ")),
        ("autoCreateTopicEnable", config.topics.auto_create.to_string()),
        ("defaultTopicQueueNums", config.topics.template_queues.to_string()),
        ("autoCreateSubscriptionGroup", config.groups.auto_create.to_string()),
        ("maxMessageSize", config.limits.message_bytes.to_string()),
        ("enablePropertyFilter", "false".to_owned()),
    ];
    let text = settings.map(|(name, value)| format!("{name}={value}\n")).concat();
    let version = String::from_utf8_lossy(&version.to_standard_json()).into_owned();
    Reply::header(&GetBrokerConfigResponse { version }).with_body(text.into_bytes())
}

/// How the timers stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timers {
    /// How many wait.
    pub pending: u64,
    /// When the next one is due, as far as it is near.
    pub first_due: Option<Millis>,
}

/// What is told of timers: seconds that the earliest is overdue, records that are not taken in yet, how many wait, and
/// rates. Under names of our own, how late deliveries were: the bound that so many percent of them kept, in ms.
fn timer_info(metrics: &Metrics, timers: &Timers, now: Millis) -> [(&'static str, String); 8] {
    let late_ms = timers.first_due.map_or(0, |due| now.since(due));
    let last = |count: Count| {
        let all = averages(metrics, now, count);
        all.split(' ').next().unwrap_or("0.00").to_owned()
    };
    [
        ("timerReadBehind", (late_ms / 1000).to_string()),
        // Listed and taken in at once.
        ("timerOffsetBehind", "0".to_owned()),
        ("timerCongestNum", timers.pending.to_string()),
        ("timerEnqueueTps", last(|totals| totals.timers_taken)),
        ("timerDequeueTps", last(|totals| totals.timers_delivered)),
        ("timerLatenessP50Mills", metrics.timer_lateness.at_most(50).to_string()),
        ("timerLatenessP99Mills", metrics.timer_lateness.at_most(99).to_string()),
        ("timerLatenessMaxMills", metrics.timer_lateness.at_most(100).to_string()),
    ]
}

/// How many limits are told of by name.
const LIMITS_TOLD: usize = 32;

/// What flow control did, under names of our own: how many requests it held or refused, and where most of them.
pub fn flow_info(metrics: &Metrics, flow: &Flow) -> Vec<(String, String)> {
    let counts = [
        ("flowSendsLimited", &metrics.sends_limited),
        ("flowSendsBehindDisk", &metrics.sends_behind),
        ("flowPullsHeld", &metrics.pulls_limited),
        ("flowConnectionsPaused", &metrics.connections_paused),
    ];
    let limits = flow.busiest(LIMITS_TOLD).into_iter().map(|(subject, limiter)| {
        let limits = limiter.limits();
        let rates =
            format!("messages={} bytes={} limited={}", limits.messages, limits.bytes, limiter.limited());
        (format!("flowLimit {subject} {}", limiter.name()), rates)
    });
    counts.into_iter().map(|(name, count)| (name.to_owned(), count.get().to_string())).chain(limits).collect()
}

/// How this broker stands with each name server that it registers with, and whether it is going.
pub fn membership(join: &Join, drain: &Drain) -> Vec<(String, String)> {
    let phase = match drain.phase() {
        Phase::Serving => "serving",
        Phase::Announced { .. } => "announced",
        Phase::Sealed => "sealed",
        Phase::Left => "left",
    };
    let servers = join.standings().into_iter().map(|standing| {
        (format!("nameServer_{}", standing.server), format!("{} (since {})", standing.state, standing.since))
    });
    servers.chain([("phase".to_owned(), phase.to_owned())]).collect()
}

/// Code 28. `started_at` is when the process started; `more` is told as it is.
pub fn runtime_info(
    store: &Store,
    metrics: &Metrics,
    timers: &Timers,
    started_at: Millis,
    more: Vec<(String, String)>,
) -> Reply {
    let now = store.clock().now();
    let mut table: BTreeMap<String, String> = more.into_iter().collect();
    let mut put = |name: &str, value: String| {
        table.insert(name.to_owned(), value);
    };
    put("brokerVersionDesc", format!("V5_5_0 (gantry {})", env!("CARGO_PKG_VERSION")));
    put("brokerActive", store.failure().is_none().to_string());
    put("bootTimestamp", started_at.to_string());
    put("runtime", lasted(now.since(started_at)));
    for (name, count) in rates() {
        put(name, averages(metrics, now, count));
    }
    let (totals, mornings) = (metrics.totals(), metrics.history.mornings());
    put("putMessageTimesTotal", totals.messages_in.to_string());
    put("putMessageSizeTotal", metrics.bytes_in.get().to_string());
    for (name, count) in [("Put", (|t| t.messages_in) as Count), ("Get", |t| t.messages_out)] {
        put(&format!("msg{name}TotalYesterdayMorning"), count(&mornings.yesterday).to_string());
        put(&format!("msg{name}TotalTodayMorning"), count(&mornings.today).to_string());
        put(&format!("msg{name}TotalTodayNow"), count(&totals).to_string());
    }
    for pool in ["send", "pull"] {
        for what in ["Size", "Capacity", "HeadWaitTimeMills"] {
            put(&format!("{pool}ThreadPoolQueue{what}"), "0".to_owned());
        }
    }
    put("pageCacheLockTimeMills", "0".to_owned());
    for (name, value) in timer_info(metrics, timers, now) {
        put(name, value);
    }
    put("earliestMessageTimeStamp", earliest(store).map_or(-1, Millis::get).to_string());
    put("commitLogMinOffset", store.min_offset().to_string());
    put("commitLogMaxOffset", store.max_offset().to_string());
    put("dispatchBehindBytes", store.dispatch_behind_bytes().to_string());
    if let Some(ratio) = disk_ratio(store.dir()) {
        put("commitLogDiskRatio", format!("{ratio:.2}"));
        put("consumeQueueDiskRatio", format!("{ratio:.2}"));
    }
    for (level, delivered) in read_delay_offsets(store).unwrap_or_default().offset_table {
        let queue = QueueId::from_wire(level.saturating_sub(1));
        let end = queue.and_then(|queue| store.find_queue(names::SCHEDULE, queue)).map(|queue| queue.max());
        put(&format!("scheduleMessageOffset_{level}"), format!("{delivered},{}", end.unwrap_or_default()));
    }
    Reply::body(KvTable { table }.to_json())
}

type Count = fn(&Totals) -> u64;

fn rates() -> [(&'static str, Count); 5] {
    [
        ("putTps", |totals| totals.messages_in),
        ("getTransferredTps", |totals| totals.messages_out),
        ("getTotalTps", |totals| totals.pulls_found + totals.pulls_missed),
        ("getFoundTps", |totals| totals.pulls_found),
        ("getMissTps", |totals| totals.pulls_missed),
    ]
}

/// Counts a second over the last 10, 60 and 600 seconds.
fn averages(metrics: &Metrics, now: Millis, count: Count) -> String {
    let current = count(&metrics.totals());
    let average = |span_ms| {
        let (before, ago_ms) = metrics.history.before(now, span_ms).filter(|(_, ago_ms)| *ago_ms > 0)?;
        let grown = u32::try_from(current.saturating_sub(count(&before))).unwrap_or(u32::MAX);
        Some(f64::from(grown) * 1000.0 / f64::from(u32::try_from(ago_ms).unwrap_or(u32::MAX)))
    };
    SPANS_MS.map(|span_ms| format!("{:.2}", average(span_ms).unwrap_or(0.0))).join(" ")
}

fn lasted(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    format!("[ {days} days, {hours} hours, {minutes} minutes, {} seconds ]", seconds % 60)
}

/// When the oldest message of the log was stored.
fn earliest(store: &Store) -> Option<Millis> {
    let record = store.record_at(store.min_offset()).ok()?;
    RecordView::parse(&record).ok().map(|view| view.store_at())
}

/// Used share of the disk that holds the store, from 0 to 1.
fn disk_ratio(dir: &Path) -> Option<f64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    // Whole percents are all that tools show.
    let percent =
        disk.f_blocks.saturating_sub(disk.f_bavail).saturating_mul(100).checked_div(disk.f_blocks)?;
    Some(f64::from(u32::try_from(percent).ok()?) / 100.0)
}

#[cfg(test)]
mod tests {
    use gantry_proto::json;
    use tempfile::TempDir;

    use super::*;
    use crate::fixture;

    #[tokio::test]
    async fn the_runtime_info_has_every_key_that_tools_read() {
        let dir = TempDir::new().unwrap();
        let clock = fixture::clock();
        let store = fixture::store(dir.path(), clock.clone(), Vec::new());
        fixture::send(&store, "T", 0, 3).await;
        std::fs::create_dir_all(store.layout().config()).unwrap();
        std::fs::write(store.layout().config().join("delayOffset.json"), "{\"offsetTable\":{3:1}}").unwrap();
        let metrics = Metrics::default();
        metrics.sample(fixture::NOW);
        metrics.messages_in.add(50);
        clock.advance(10_000);
        let timers = Timers { pending: 7, first_due: Some(fixture::NOW.plus(8_500)) };
        metrics.timers_taken.add(20);
        metrics.timer_lateness.record(3);
        let more = vec![("phase".to_owned(), "serving".to_owned())];
        let reply = runtime_info(&store, &metrics, &timers, fixture::NOW, more);
        let table = KvTable::from_json(&reply.body).unwrap().table;
        let samples =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/broker_admin_samples.json"));
        let samples = json::parse(samples.as_bytes()).unwrap();
        let theirs = json::parse(samples["28 "]["body"].as_str().unwrap().as_bytes()).unwrap();
        // Of thread pools, timings and buffers that exist in Apache's broker only, nothing is said.
        let read_by_tools = |name: &str| {
            [
                "brokerVersionDesc",
                "brokerActive",
                "putMessageTimesTotal",
                "putMessageSizeTotal",
                "runtime",
                "dispatchBehindBytes",
                "earliestMessageTimeStamp",
            ]
            .contains(&name)
                || name.ends_with("Tps")
                || name.starts_with("msg")
                || name.starts_with("sendThread")
                || name.starts_with("pullThread")
                || name.starts_with("timer")
                || (name.starts_with("commitLog") && name.ends_with("Offset"))
                || name.ends_with("DiskRatio")
        };
        for name in theirs["table"].as_object().unwrap().keys().filter(|name| read_by_tools(name)) {
            assert!(table.contains_key(name), "{name} is missing");
        }
        assert_eq!(table["putTps"], "5.00 5.00 5.00");
        assert_eq!((table["timerCongestNum"].as_str(), table["timerReadBehind"].as_str()), ("7", "1"));
        assert_eq!((table["timerEnqueueTps"].as_str(), table["timerDequeueTps"].as_str()), ("2.00", "0.00"));
        assert_eq!(table["timerLatenessP99Mills"], "3");
        assert_eq!(table["phase"], "serving");
        assert_eq!(table["msgPutTotalTodayNow"], "50");
        assert_eq!(table["runtime"], "[ 0 days, 0 hours, 0 minutes, 10 seconds ]");
        assert_eq!(table["earliestMessageTimeStamp"], fixture::NOW.to_string());
        assert_eq!(table["commitLogMaxOffset"], store.max_offset().to_string());
        assert_eq!(table["scheduleMessageOffset_3"], "1,0");
    }

    #[test]
    fn the_configuration_is_one_line_a_setting() {
        let reply = config(&Config::default(), DataVersion::default(), 10911);
        let text = String::from_utf8(reply.body).unwrap();
        assert!(
            text.contains("brokerName=broker-a\n") && text.contains("flushDiskType=SYNC_FLUSH\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.split_once('=').is_some_and(|(name, _)| !name.is_empty())));
        assert_eq!(reply.ext.get("version"), Some(r#"{"counter":0,"stateVersion":0,"timestamp":0}"#));
    }

    #[test]
    fn durations_are_told_in_days_to_seconds() {
        assert_eq!(lasted(90_061_999), "[ 1 days, 1 hours, 1 minutes, 1 seconds ]");
    }
}
