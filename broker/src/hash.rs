//! A fast hash for tables of names, which every message asks several of.

use std::hash::{BuildHasher, Hasher};

/// Hashes with a number that differs from table to table, so that nobody can choose names that collide.
#[derive(Clone, Copy, Debug)]
pub struct NameHash(u64);

impl Default for NameHash {
    fn default() -> Self {
        Self(fastrand::u64(..))
    }
}

impl BuildHasher for NameHash {
    type Hasher = NameHasher;
    fn build_hasher(&self) -> NameHasher {
        NameHasher(self.0)
    }
}

/// The hash so far.
#[derive(Debug)]
pub struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.0);
    }
    fn write_u8(&mut self, byte: u8) {
        // What ends a text; a hash of texts only needs no more than that it counts.
        self.0 = self.0.rotate_left(8) ^ u64::from(byte);
    }
}

#[cfg(test)]
mod tests {
    use gantry_proto::names::TopicName;

    use super::*;

    #[test]
    fn a_name_and_its_text_have_one_hash_and_tables_differ() {
        let name = TopicName::parse("orders").expect("a valid name");
        let (one, other) = (NameHash::default(), NameHash::default());
        assert_eq!(one.hash_one(&name), one.hash_one("orders"));
        assert_ne!(one.hash_one("orders"), one.hash_one("order"));
        assert_ne!(one.hash_one("orders"), other.hash_one("orders"));
    }
}
