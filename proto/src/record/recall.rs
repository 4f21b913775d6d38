//! Recall handles: what a client shows to take a timer message back.
//!
//! A handle is the URL-safe Base64 form, with padding, of five words:
//!
//! ```text
//! v1 TOPIC BROKER DELIVER-MS UNIQ-KEY
//! ```
//!
//! Clients read the broker's name in it; everything else is the broker's own.

use crate::ids::Millis;

/// Longest handle that is looked at, in bytes: names and ids are far shorter.
const HANDLE_BYTES_MAX: usize = 2048;

/// What a recall handle says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecallHandle {
    /// The topic that the message is for.
    pub topic: String,
    /// The broker that has it.
    pub broker: String,
    /// When it is to be delivered.
    pub deliver_at: Millis,
    /// Its id.
    pub uniq_key: String,
}

impl RecallHandle {
    /// The handle as clients get it.
    pub fn encode(topic: &str, broker: &str, deliver_at: Millis, uniq_key: &str) -> String {
        base64(format!("v1 {topic} {broker} {deliver_at} {uniq_key}").as_bytes())
    }

    /// Reads a handle; `None` when it is none.
    pub fn decode(handle: &str) -> Option<Self> {
        let bytes = from_base64(handle)?;
        // An id of the application's own may hold blanks.
        let mut words = std::str::from_utf8(&bytes).ok()?.splitn(5, ' ');
        let mut next = || words.next().filter(|word| !word.is_empty());
        let (version, topic, broker, deliver_at, uniq_key) = (next()?, next()?, next()?, next()?, next()?);
        if version != "v1" {
            return None;
        }
        Some(Self {
            topic: topic.to_owned(),
            broker: broker.to_owned(),
            deliver_at: Millis::new(deliver_at.parse().ok()?),
            uniq_key: uniq_key.to_owned(),
        })
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = ALPHABET.get((bits >> (18 - 6 * at) & 63) as usize).copied().unwrap_or(b'=');
            out.push(if at <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// Padding may be missing; what is left over of the last byte must be zero.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    if text.len() > HANDLE_BYTES_MAX {
        return None;
    }
    let text = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in text.bytes() {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xFF).ok()?);
        }
    }
    (count < 6 && bits & ((1 << count) - 1) == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_handle_is_what_the_peer_makes_of_the_same_words() {
        let handle = RecallHandle::encode("VecDelay", "broker-a", Millis::new(1_795_253_374_001), "FD00");
        assert_eq!(handle, "djEgVmVjRGVsYXkgYnJva2VyLWEgMTc5NTI1MzM3NDAwMSBGRDAw");
        let read = RecallHandle::decode(&handle).unwrap();
        assert_eq!((read.topic.as_str(), read.broker.as_str()), ("VecDelay", "broker-a"));
        assert_eq!((read.deliver_at, read.uniq_key.as_str()), (Millis::new(1_795_253_374_001), "FD00"));
    }

    #[test]
    fn what_is_no_handle_is_refused() {
        let of = |text: &str| base64(text.as_bytes());
        for bad in [
            String::new(),
            "no base64!".to_owned(),
            of("v2 t b 1 k"),
            of("v1 t b 1"),
            of("v1 t b one k"),
            of("v1 t b 1 "),
            of("v1  b 1 k"),
            "A".repeat(HANDLE_BYTES_MAX + 1),
        ] {
            assert_eq!(RecallHandle::decode(&bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_survive(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(from_base64(&base64(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_read(text in "\\PC{0,100}") {
            let _ = RecallHandle::decode(&text);
        }

        #[test]
        fn handles_survive(topic in "[a-zA-Z0-9_%-]{1,40}", at in any::<i64>(), key in "[0-9A-F ]{1,56}") {
            let handle = RecallHandle::encode(&topic, "broker-a", Millis::new(at), &key);
            let read = RecallHandle::decode(&handle).unwrap();
            prop_assert_eq!((read.topic, read.deliver_at, read.uniq_key), (topic, Millis::new(at), key));
        }
    }
}
