//! The body with which a broker registers: what topics it has, and in which version.
//!
//! Plain, it is JSON ([`RegisterBrokerBody`]). Compressed, it is a zlib stream of
//!
//! ```text
//!  i32 length | version as JSON
//!  i32 count  | { i32 length | topic line `name read write perm filter {attributes}` } …
//!  i32 length | filter servers as JSON
//!  i32 count  | { i32 length | queue mapping as JSON } …              from V5_0_0 on
//! ```
//!
//! Filter servers and queue mappings are not used here, so reading ends after the topics.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::ZlibDecoder;
use gantry_proto::error::DecodeError;
use gantry_proto::json;
use gantry_proto::reader::Reader;
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::cluster::RegisterBrokerBody;
use gantry_proto::remoting::body::route::QueueData;
use gantry_proto::remoting::body::topic::{DataVersion, TopicConfig};

/// Bytes of a body once it is inflated, at the most.
pub const INFLATED_BYTES_MAX: usize = 64 << 20;

/// Why a body cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The checksum in the header is another one.
    #[error("the body's CRC-32 is {found:#010x}, the header says {expected:#010x}: send it again")]
    Crc {
        /// What the header says.
        expected: i32,
        /// What the body has.
        found: i32,
    },
    /// Not a zlib stream, or one of too much.
    #[error("the body is not a zlib stream of at most {INFLATED_BYTES_MAX} bytes")]
    Inflate(#[source] std::io::Error),
    /// Not what it should hold.
    #[error("the body is not a registration")]
    Malformed(#[from] DecodeError),
}

/// How a topic's queues lie on one broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicQueues {
    /// Queues that may be read.
    pub read: i32,
    /// Queues that may be written.
    pub write: i32,
    /// Bits: 4 read, 2 write, 1 inherit.
    pub perm: i32,
    /// Bits: 1 unit, 2 has a subscription from a unit.
    pub sys_flag: i32,
}

impl TopicQueues {
    /// The form that routes have.
    pub fn on(self, broker: &str) -> QueueData {
        QueueData {
            broker_name: broker.to_owned(),
            perm: self.perm,
            read_queue_nums: self.read,
            topic_sys_flag: self.sys_flag,
            write_queue_nums: self.write,
        }
    }
}

impl From<&QueueData> for TopicQueues {
    fn from(data: &QueueData) -> Self {
        Self {
            read: data.read_queue_nums,
            write: data.write_queue_nums,
            perm: data.perm,
            sys_flag: data.topic_sys_flag,
        }
    }
}

impl From<&TopicConfig> for TopicQueues {
    fn from(config: &TopicConfig) -> Self {
        Self {
            read: config.read_queue_nums,
            write: config.write_queue_nums,
            perm: config.perm,
            sys_flag: config.topic_sys_flag,
        }
    }
}

/// What a broker says it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Version of its topics.
    pub version: DataVersion,
    /// Its topics, or those of them that changed.
    pub topics: BTreeMap<String, TopicQueues>,
}

impl Inventory {
    /// Checks and reads a body. `crc` is the header's checksum, 0 for none; an empty body is a broker
    /// without topics.
    pub fn decode(body: &[u8], compressed: bool, crc: i32) -> Result<Self, BodyError> {
        if crc != 0 {
            // Java keeps the checksum in a signed number, without its sign bit.
            let found = (crc32fast::hash(body) & 0x7fff_ffff).cast_signed();
            if found != crc {
                return Err(BodyError::Crc { expected: crc, found });
            }
        }
        if body.is_empty() {
            return Ok(Self::default());
        }
        if compressed {
            return Ok(Self::decode_lines(&inflate(body)?)?);
        }
        let wrapper = RegisterBrokerBody::from_json(body)?.topic_config_serialize_wrapper;
        let topics = wrapper.topic_config_table.iter();
        Ok(Self {
            version: wrapper.data_version,
            topics: topics.map(|(name, config)| (name.clone(), TopicQueues::from(config))).collect(),
        })
    }

    fn decode_lines(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = json::from_slice(part(&mut reader, "the version")?)?;
        let mut topics = BTreeMap::new();
        for _ in 0..length(&mut reader, "the number of topics")? {
            let line = part(&mut reader, "a topic line")?;
            let line = std::str::from_utf8(line).map_err(|_| reader.expected("a topic line in UTF-8"))?;
            let config = TopicConfig::from_line(line)?;
            let queues = TopicQueues::from(&config);
            topics.insert(config.topic_name, queues);
        }
        Ok(Self { version, topics })
    }
}

fn inflate(body: &[u8]) -> Result<Vec<u8>, BodyError> {
    let mut inflated = Vec::new();
    let limit = INFLATED_BYTES_MAX as u64 + 1;
    ZlibDecoder::new(body).take(limit).read_to_end(&mut inflated).map_err(BodyError::Inflate)?;
    if inflated.len() > INFLATED_BYTES_MAX {
        return Err(BodyError::Inflate(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(inflated)
}

fn length(reader: &mut Reader<'_>, what: &str) -> Result<usize, DecodeError> {
    let len = reader.i32(what)?;
    usize::try_from(len).map_err(|_| reader.expected(format!("{what}, not {len}")))
}

fn part<'a>(reader: &mut Reader<'a>, what: &str) -> Result<&'a [u8], DecodeError> {
    let len = length(reader, what)?;
    reader.bytes(len, what)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use gantry_proto::remoting::body::topic::TopicConfigTable;
    use proptest::prelude::*;

    use super::*;

    fn topics() -> BTreeMap<String, TopicConfig> {
        let config = |name: &str, perm| TopicConfig {
            topic_name: name.to_owned(),
            perm,
            read_queue_nums: 8,
            write_queue_nums: 4,
            ..TopicConfig::default()
        };
        BTreeMap::from([("a".to_owned(), config("a", 6)), ("b".to_owned(), config("b", 4))])
    }

    const VERSION: DataVersion = DataVersion { counter: 3, state_version: 0, timestamp: 1_700_000_000_000 };

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn lines() -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |bytes: &[u8]| {
            out.extend_from_slice(&i32::try_from(bytes.len()).unwrap().to_be_bytes());
            out.extend_from_slice(bytes);
        };
        put(&VERSION.to_json());
        let mut topics: Vec<_> = topics().values().map(TopicConfig::to_line).collect();
        // As older brokers write it.
        topics.push("c 1 2 6 SINGLE_TAG".to_owned());
        out.extend_from_slice(&3i32.to_be_bytes());
        for line in topics {
            out.extend_from_slice(&i32::try_from(line.len()).unwrap().to_be_bytes());
            out.extend_from_slice(line.as_bytes());
        }
        out.extend_from_slice(b"\0\0\0\x02[]\0\0\0\0");
        out
    }

    #[test]
    fn plain_and_compressed_bodies_say_the_same() {
        let table =
            TopicConfigTable { data_version: VERSION, topic_config_table: topics(), ..Default::default() };
        let body =
            RegisterBrokerBody { topic_config_serialize_wrapper: table, ..Default::default() }.to_json();
        let crc = (crc32fast::hash(&body) & 0x7fff_ffff).cast_signed();
        let plain = Inventory::decode(&body, false, crc).unwrap();
        assert_eq!(plain.version, VERSION);
        assert_eq!(plain.topics["b"], TopicQueues { read: 8, write: 4, perm: 4, sys_flag: 0 });
        let mut compressed = Inventory::decode(&zlib(&lines()), true, 0).unwrap();
        assert_eq!(compressed.topics.remove("c").map(|queues| (queues.read, queues.write)), Some((1, 2)));
        assert_eq!(compressed, plain);
        assert_eq!(Inventory::decode(b"", false, 0).unwrap(), Inventory::default());
    }

    #[test]
    fn sampled_bodies_are_read() {
        for version in ["5.3.3", "5.5.0"] {
            let path = format!("{}/../tests/vectors/json_bodies.{version}.json", env!("CARGO_MANIFEST_DIR"));
            let samples: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            let samples = samples.as_array().unwrap().iter();
            let text = samples.clone().find(|sample| sample["name"] == "RegisterBrokerBody (empty)");
            let text = text.and_then(|sample| sample["text"].as_str()).expect("the sample is there");
            assert_eq!(Inventory::decode(text.as_bytes(), false, 0).unwrap().version, VERSION);
        }
    }

    #[test]
    fn damaged_bodies_are_refused() {
        let error = Inventory::decode(b"{}", false, 7).unwrap_err();
        assert!(matches!(error, BodyError::Crc { expected: 7, .. }), "{error}");
        assert!(matches!(Inventory::decode(b"{", false, 0), Err(BodyError::Malformed(_))));
        assert!(matches!(Inventory::decode(b"not zlib", true, 0), Err(BodyError::Inflate(_))));
        let bomb = zlib(&vec![0; INFLATED_BYTES_MAX + 1]);
        assert!(matches!(Inventory::decode(&bomb, true, 0), Err(BodyError::Inflate(_))));
        let short = lines();
        assert!(Inventory::decode(&zlib(&short[..40]), true, 0).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Inventory::decode(&bytes, false, 0);
            let _ = Inventory::decode(&zlib(&bytes), true, 0);
        }
    }
}
