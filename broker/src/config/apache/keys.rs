//! What becomes of each key of Apache's `broker.conf`.

use crate::config::units;

/// What becomes of a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// It sets this of Gantry's settings; the function gives the value as Gantry writes it.
    Sets(&'static str, Convert),
    /// Gantry does what these values say, and nothing else: the others are refused for this reason.
    Only(&'static [&'static str], &'static str),
    /// A path that must be this below `storePathRootDir`.
    Below(&'static str),
    /// It has no effect, for this reason.
    Ignored(&'static str),
}

/// Gives a value as Gantry writes it; the error says what is wrong with it and what to write.
pub(super) type Convert = fn(&str) -> Result<String, String>;

/// Keys that mean something here. Apache's broker takes them in this spelling only.
const MEANT: &[(&str, Fate)] = &[
    ("brokerName", Fate::Sets("node.name", same)),
    ("brokerClusterName", Fate::Sets("node.cluster", same)),
    ("bindAddress", Fate::Sets("node.bind", same)),
    ("brokerIP1", Fate::Sets("node.advertise", same)),
    ("listenPort", Fate::Sets("ports.broker", same)),
    ("namesrvAddr", Fate::Sets("node.name_servers", same)),
    ("storePathRootDir", Fate::Sets("store.dir", same)),
    ("flushDiskType", Fate::Sets("store.policy", flush)),
    ("mappedFileSizeCommitLog", Fate::Sets("store.segment_bytes", number)),
    ("mapedFileSizeCommitLog", Fate::Sets("store.segment_bytes", number)),
    ("mappedFileSizeConsumeQueue", Fate::Sets("store.queue_file_bytes", queue_file)),
    ("mapedFileSizeConsumeQueue", Fate::Sets("store.queue_file_bytes", queue_file)),
    ("maxHashSlotNum", Fate::Sets("store.index_slots", number)),
    ("maxIndexNum", Fate::Sets("store.index_entries", number)),
    ("fileReservedTime", Fate::Sets("retention.time", hours)),
    ("diskSpaceCleanForciblyRatio", Fate::Sets("retention.force_percent", number)),
    ("diskSpaceWarningLevelRatio", Fate::Sets("retention.refuse_percent", number)),
    ("transactionTimeOut", Fate::Sets("transaction.timeout", millis)),
    ("transactionCheckInterval", Fate::Sets("transaction.check_interval", millis)),
    ("transactionCheckMax", Fate::Sets("transaction.max_checks", number)),
    ("messageDelayLevel", Fate::Sets("timer.delay_levels", same)),
    ("timerMaxDelaySec", Fate::Sets("timer.max_delay", seconds)),
    ("autoCreateTopicEnable", Fate::Sets("topics.auto_create", switch)),
    ("defaultTopicQueueNums", Fate::Sets("topics.template_queues", number)),
    ("storeReplyMessageEnable", Fate::Sets("topics.store_replies", switch)),
    ("autoCreateSubscriptionGroup", Fate::Sets("groups.auto_create", switch)),
    ("channelExpiredTimeout", Fate::Sets("groups.member_expiry", millis)),
    ("maxMessageSize", Fate::Sets("limits.message_bytes", number)),
    ("serverChannelMaxIdleTimeSeconds", Fate::Sets("limits.idle", seconds)),
    ("storePathCommitLog", Fate::Below("commitlog")),
    ("storePathConsumeQueue", Fate::Below("consumequeue")),
    ("storePathIndex", Fate::Below("index")),
    ("storeCheckpoint", Fate::Below("checkpoint")),
    ("abortFile", Fate::Below("abort")),
    ("brokerId", Fate::Only(&["0"], NO_FOLLOWERS)),
    ("brokerRole", Fate::Only(&["ASYNC_MASTER"], NO_FOLLOWERS)),
    ("enableDLegerCommitLog", Fate::Only(&["false"], NO_FOLLOWERS)),
    ("enableControllerMode", Fate::Only(&["false"], NO_FOLLOWERS)),
    ("inSyncReplicas", Fate::Only(&["1"], NO_FOLLOWERS)),
    ("minInSyncReplicas", Fate::Only(&["1"], NO_FOLLOWERS)),
    ("totalReplicas", Fate::Only(&["1"], NO_FOLLOWERS)),
    ("allAckInSyncStateSet", Fate::Only(&["false"], NO_FOLLOWERS)),
    ("duplicationEnable", Fate::Only(&["false"], NO_FOLLOWERS)),
    ("storeType", Fate::Only(&["default"], NO_ROCKSDB)),
    ("configManagerVersion", Fate::Only(&["v1"], NO_ROCKSDB)),
    ("timerRocksDBEnable", Fate::Only(&["false"], NO_ROCKSDB)),
    ("transRocksDBEnable", Fate::Only(&["false"], NO_ROCKSDB)),
    (
        "readOnlyCommitLogStorePaths",
        Fate::Only(&[""], "the store is one directory: move its log files together"),
    ),
    ("messageStorePlugIn", Fate::Only(&[""], "it names code that runs in Apache's broker: remove the key")),
    ("aclEnable", Fate::Only(&["false"], NO_AUTH)),
    ("authenticationEnabled", Fate::Only(&["false"], NO_AUTH)),
    ("authorizationEnabled", Fate::Only(&["false"], NO_AUTH)),
    (
        "brokerPermission",
        Fate::Only(&["6"], "this broker takes and gives messages: change the permissions of its topics"),
    ),
    ("rejectTransactionMessage", Fate::Only(&["false"], "transactions are taken: remove the key")),
    ("rejectPullConsumerEnable", Fate::Only(&["false"], "pull consumers are served: remove the key")),
    (
        "startAcceptSendRequestTimeStamp",
        Fate::Only(&["0"], "messages are taken as soon as the broker is ready: remove the key"),
    ),
    (
        "cleanFileForciblyEnable",
        Fate::Only(
            &["true"],
            "the oldest messages go at diskSpaceCleanForciblyRatio, before the disk is full: \
      remove the key, and raise diskSpaceCleanForciblyRatio and diskSpaceWarningLevelRatio if you must",
        ),
    ),
    ("enableLmq", Fate::Only(&["false"], NO_LITE)),
    ("enableMultiDispatch", Fate::Only(&["false"], NO_LITE)),
    ("timerStopEnqueue", Fate::Only(&["false"], "timer messages are taken: remove the key")),
];

const NO_FOLLOWERS: &str = "this broker is alone, a master without followers, and a send is acknowledged when its own disk or \
    memory has it: remove the key if that is enough";
const NO_ROCKSDB: &str = "the store has the files of Apache's default store, and nothing in RocksDB: export the store's \
    content, or keep that broker";
const NO_AUTH: &str = "who asks is not checked in this version, so what this forbids would be allowed: remove the key, and let \
    a firewall stand before the ports";
const NO_LITE: &str = "light and lite queues are not available in this version: remove the key";

const OF_THREADS: &str = "it tunes Apache's threads, queues and buffers, which are others here";
const OF_FILES: &str = "it tunes how Apache's broker writes, maps and flushes files, which is otherwise here";
const OF_CLEANING: &str = "log files go as soon as they are old enough, at any hour, or the disk too full (diskSpaceCleanForciblyRatio)";
const OF_NAMES: &str = "how Gantry registers with the name servers of namesrvAddr has no settings";
const OF_FOLLOWERS: &str = "there are no followers in this version";
const OF_FILTERS: &str = "SQL92 filters are always on, and need no bitmaps";
const OF_POP: &str = "pop keeps its state otherwise here";
const OF_TIMERS: &str = "timer messages are always on, and their files are Gantry's own";
const OF_STATISTICS: &str = "statistics and logs are Gantry's own";
const OF_ROCKSDB: &str = "nothing is in RocksDB";
const OF_LITE: &str = "lite topics are not available in this version";
const OF_AUTH: &str = "it changes nothing while nobody is checked";
const OF_CLIENTS: &str = "it concerns connections that Apache's broker makes itself";
const ALWAYS: &str = "Gantry has no switch for it";

/// Keys without an effect here; a `*` stands for anything at one end.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("brokerIP2", OF_FOLLOWERS),
    ("haListenPort", OF_FOLLOWERS),
    ("recallMessageEnable", OF_TIMERS),
    ("deleteWhen", OF_CLEANING),
    ("diskMaxUsedSpaceRatio", OF_CLEANING),
    ("enablePropertyFilter", OF_FILTERS),
    ("rocketmqHome", ALWAYS),
    ("regionId", "messages are marked with DefaultRegion"),
    ("traceTopicEnable", "the topic of traces is always there"),
    ("syncFlushTimeout", "a send waits for the disk as long as the disk takes"),
    ("*ThreadPoolNums", OF_THREADS),
    ("*QueueCapacity", OF_THREADS),
    ("*ThreadNum", OF_THREADS),
    ("*Threads", OF_THREADS),
    ("waitTimeMills*", OF_THREADS),
    ("brokerFastFailureEnable", OF_THREADS),
    ("osPageCacheBusyTimeOutMills", OF_THREADS),
    ("server*", OF_THREADS),
    ("writeBuffer*", OF_THREADS),
    ("useEpollNativeSelector", OF_THREADS),
    ("useABSLock", OF_THREADS),
    ("useReentrantLockWhenPutMessage", OF_THREADS),
    ("client*", OF_CLIENTS),
    ("channelNotActiveInterval", OF_CLIENTS),
    ("connectTimeoutMillis", OF_CLIENTS),
    ("useTLS", OF_CLIENTS),
    ("socksProxyConfig", OF_CLIENTS),
    ("flushIntervalCommitLog", OF_FILES),
    ("flushIntervalConsumeQueue", OF_FILES),
    ("flushCommitLog*", OF_FILES),
    ("flushConsumeQueue*", OF_FILES),
    ("flushLeastPagesWhenWarmMapedFile", OF_FILES),
    ("commit*", OF_FILES),
    ("mappedFileS*", OF_FILES),
    ("mapperFileS*", OF_FILES),
    ("warmMapedFileEnable", OF_FILES),
    ("transientStorePool*", OF_FILES),
    ("transferMsgByHeap", OF_FILES),
    ("accessMessageInMemory*", OF_FILES),
    ("maxTransfer*", OF_FILES),
    ("putMsgIndexHightWater", OF_FILES),
    ("checkCRCOnRecover", "checksums are always written and checked"),
    ("enabledAppendPropCRC", "checksums are always written and checked"),
    ("forceVerifyPropCRC", "checksums are always written and checked"),
    ("messageIndex*", ALWAYS),
    ("delete*", OF_CLEANING),
    ("redeleteHangedFileInterval", OF_CLEANING),
    ("destroyMapedFileIntervalForcibly", OF_CLEANING),
    ("clean*", OF_CLEANING),
    ("logicalDiskSpaceCleanForciblyThreshold", OF_CLEANING),
    ("register*", OF_NAMES),
    ("fetchName*", OF_NAMES),
    ("forceRegister", OF_NAMES),
    ("compressedRegister", OF_NAMES),
    ("compatibleWithOldNameSrv", OF_NAMES),
    ("updateNameServerAddrPeriod", OF_NAMES),
    ("rmqAddressServer*", OF_NAMES),
    ("ha*", OF_FOLLOWERS),
    ("slave*", OF_FOLLOWERS),
    ("*Slave", OF_FOLLOWERS),
    ("controller*", OF_FOLLOWERS),
    ("fetchController*", OF_FOLLOWERS),
    ("dLeger*", OF_FOLLOWERS),
    ("preferredLeaderId", OF_FOLLOWERS),
    ("sync*", OF_FOLLOWERS),
    ("enableSlaveActingMaster", OF_FOLLOWERS),
    ("enableRemoteEscape", OF_FOLLOWERS),
    ("storePathDLedgerCommitLog", OF_FOLLOWERS),
    ("storePathEpochFile", OF_FOLLOWERS),
    ("storePathBrokerIdentity", OF_FOLLOWERS),
    ("*UseFilter", OF_FILTERS),
    ("maxErrorRateOfBloomFilter", OF_FILTERS),
    ("enableCalcFilterBitMap", OF_FILTERS),
    ("bitMapLengthConsumeQueueExt", OF_FILTERS),
    ("enableConsumeQueueExt", OF_FILTERS),
    ("filter*", OF_FILTERS),
    ("pop*", OF_POP),
    ("revive*", OF_POP),
    ("enablePop*", OF_POP),
    ("timer*", OF_TIMERS),
    ("metrics*", OF_STATISTICS),
    ("metric*", OF_STATISTICS),
    ("*Metrics", OF_STATISTICS),
    ("commercial*", OF_STATISTICS),
    ("accountStats*", OF_STATISTICS),
    ("*Stats", OF_STATISTICS),
    ("enableDetailStat", OF_STATISTICS),
    ("rocksdb*", OF_ROCKSDB),
    ("*RocksDB*", OF_ROCKSDB),
    ("combineCQ*", OF_ROCKSDB),
    ("lite*", OF_LITE),
    ("maxLite*", OF_LITE),
    ("acl*", OF_AUTH),
    ("authentication*", OF_AUTH),
    ("authorization*", OF_AUTH),
    ("stateful*", OF_AUTH),
    ("user*", OF_AUTH),
];

/// Why a key that is neither meant nor known is ignored.
const NOT_KNOWN: &str = "Gantry knows no such key, or none that matters here";

/// What becomes of `key`; an error when it looks like a slip of another key's spelling, which it names.
pub(super) fn fate(key: &str) -> Result<Fate, &'static str> {
    if let Some((_, fate)) = MEANT.iter().find(|(name, _)| *name == key) {
        return Ok(*fate);
    }
    if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(name, _)| *name == key) {
        return Ok(Fate::Ignored(why));
    }
    if let Some((near, _)) = MEANT.iter().find(|(name, _)| is_near(name, key)) {
        return Err(near);
    }
    let pattern = WITHOUT_EFFECT.iter().find(|(pattern, _)| matches(pattern, key));
    Ok(Fate::Ignored(pattern.map_or(NOT_KNOWN, |(_, why)| why)))
}

fn matches(pattern: &str, key: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(rest), Some(_)) => key.contains(rest.trim_end_matches('*')),
        (Some(end), None) => key.ends_with(end),
        (None, Some(start)) => key.starts_with(start),
        (None, None) => pattern == key,
    }
}

/// Whether two names differ by case, or by two letters at the most (one in a short name).
fn is_near(name: &str, key: &str) -> bool {
    let (name, key) = (name.to_ascii_lowercase(), key.to_ascii_lowercase());
    let allowed = if name.len() < 10 { 1 } else { 2 };
    name.len().abs_diff(key.len()) <= allowed && distance(name.as_bytes(), key.as_bytes()) <= allowed
}

/// How many letters must be added, removed or changed to make one name of the other.
fn distance(left: &[u8], right: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, a) in left.iter().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        next.push(line + 1);
        for (pair, b) in row.windows(2).zip(right) {
            let &[diagonal, above] = pair else { continue };
            let before = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(a != b)).min(above + 1).min(before + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[expect(clippy::unnecessary_wraps, reason = "it is one of the conversions")]
fn same(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// A plain number, as Java reads one: without a unit.
fn number(text: &str) -> Result<String, String> {
    text.parse::<u64>().map(|number| number.to_string()).map_err(|_| format!("{text:?} is not a number"))
}

fn with_unit(text: &str, unit: &str) -> Result<String, String> {
    let time = format!("{}{unit}", number(text)?);
    units::duration(&time).map(|_| time)
}

fn millis(text: &str) -> Result<String, String> {
    with_unit(text, "ms")
}

fn seconds(text: &str) -> Result<String, String> {
    with_unit(text, "s")
}

fn hours(text: &str) -> Result<String, String> {
    with_unit(text, "h")
}

/// `true` in any case is on; Java takes all else for off, which is more likely a slip.
fn switch(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "true" | "false" => Ok(lower),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

fn flush(text: &str) -> Result<String, String> {
    match text {
        "ASYNC_FLUSH" => Ok("memory".to_owned()),
        "SYNC_FLUSH" => Ok("disk".to_owned()),
        _ => Err(format!("{text:?} is not a way to flush: write ASYNC_FLUSH or SYNC_FLUSH")),
    }
}

/// Bytes of a consume-queue file; Apache's broker takes the next whole number of entries.
fn queue_file(text: &str) -> Result<String, String> {
    const ENTRY: u64 = 20;
    let bytes: u64 = number(text)?.parse().map_err(|_| format!("{text:?} is not a number"))?;
    Ok(bytes.div_ceil(ENTRY).saturating_mul(ENTRY).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::SETTINGS;

    #[test]
    fn every_key_is_listed_once_and_sets_what_there_is() {
        for list in [
            MEANT.iter().map(|(key, _)| *key).collect::<Vec<_>>(),
            WITHOUT_EFFECT.iter().map(|(key, _)| *key).collect(),
        ] {
            let mut sorted = list.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), list.len());
        }
        for (key, fate) in MEANT {
            if let Fate::Sets(setting, _) = fate {
                assert!(SETTINGS.iter().any(|known| known.key == *setting), "{key} sets {setting}");
            }
        }
    }

    #[test]
    fn slips_are_told_from_other_keys() {
        for (slip, meant) in [
            ("fileReserveTime", "fileReservedTime"),
            ("flushdisktype", "flushDiskType"),
            ("brokerNmae", "brokerName"),
            ("autoCreateTopicEnabled", "autoCreateTopicEnable"),
            ("timerMaxDelaySecs", "timerMaxDelaySec"),
        ] {
            assert_eq!(fate(slip).err(), Some(meant), "{slip}");
        }
        for other in
            ["brokerIP2", "haListenPort", "sendMessageThreadPoolNums", "myOwnKey", "timerPrecisionMs"]
        {
            assert!(matches!(fate(other), Ok(Fate::Ignored(_))), "{other}");
        }
    }

    #[test]
    fn values_get_gantrys_form() {
        assert_eq!(queue_file("300001"), Ok("300020".to_owned()));
        assert_eq!(hours("72"), Ok("72h".to_owned()));
        assert_eq!(flush("SYNC_FLUSH"), Ok("disk".to_owned()));
        assert_eq!(switch("True"), Ok("true".to_owned()));
        for wrong in [millis("6s"), number("-1"), flush("sync"), switch("yes"), queue_file("x")] {
            assert!(wrong.is_err());
        }
    }
}
