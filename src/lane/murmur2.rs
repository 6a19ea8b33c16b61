//! Computes the partition of a key as Kafka's Java client does. The relay's producer uses this partition.

/// Returns the partition of a key that hashes to `hash`: `Utils.toPositive(hash) % partitions`, as in `BuiltInPartitioner.partitionForKey`.
pub(crate) fn partition(hash: u32, partitions: i32) -> i32 {
    (hash & i32::MAX as u32) as i32 % partitions.max(1)
}

/// Hashes a key as `org.apache.kafka.common.utils.Utils.murmur2` does.
pub(crate) fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    // The length is 32 bits in Java as well; no key is longer.
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the values of `UtilsTest.testMurmur2` in Apache Kafka.
    #[test]
    fn the_hash_is_that_of_the_java_client() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn a_negative_hash_has_its_sign_cleared_and_not_turned() {
        assert_eq!(partition(murmur2(b"21"), 7), ((-973_932_308_i32) & i32::MAX) % 7);
    }
}
