//! The packet priority by which program `classify` reports to the rules in a pod that a packet is exempt.
//!
//! If another tc program stops a packet before program `classify` runs, the packet keeps the priority that its sender may have
//! chosen. So the priority must be secret: it is a keyed hash (SipHash-2-4) of the filter's class, the class is a keyed hash of
//! the network namespace, and each node has its own key. A process that reads the priority in one pod's rules, which requires
//! CAP_NET_ADMIN there, can't derive the priorities of other pods from it.

/// The key: value of `CLASSIFY_KEY`. All zero: not set yet.
pub type Key = [u64; 2];

/// The lowest priority that is used here. It is above all priorities that a process may set without CAP_NET_ADMIN (0 to
/// 6), and that the kernel itself sets (up to 15).
pub const LOWEST: u32 = 1 << 31;

/// Classes from this one on are reserved (include/uapi/linux/pkt_sched.h, `TC_H_MIN_PRIORITY`).
const RESERVED: u64 = 0xffe0;

/// Distinguishes the kinds of hashed values: a class, or a network namespace.
const IS_CLASS: u64 = 1 << 63;

/// The class of filters in the network namespace with inode `netns`. Each daemon with the same key has the same class there, so
/// one can replace the filter of another while the rules remain.
pub const fn class(key: Key, netns: u64) -> u16 {
    (1 + siphash(key, netns & !IS_CLASS) % (RESERVED - 1)) as u16
}

/// The priority of exempt packets at filters of class `class`. `None` without a key.
#[inline(always)]
pub const fn priority(key: Key, class: u16) -> Option<u32> {
    if key[0] == 0 && key[1] == 0 {
        return None;
    }
    Some(siphash(key, class as u64 | IS_CLASS) as u32 | LOWEST)
}

/// SipHash-2-4 of one 64-bit word (Aumasson and Bernstein, 2012).
#[inline(always)]
const fn siphash(key: Key, word: u64) -> u64 {
    /// The length of the message in bytes, in the highest byte of the last block.
    const LENGTH: u64 = 8 << 56;
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    v[3] ^= word;
    v = round(round(v));
    v[0] ^= word;
    v[3] ^= LENGTH;
    v = round(round(v));
    v[0] ^= LENGTH;
    v[2] ^= 0xff;
    v = round(round(round(round(v))));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
const fn round(v: [u64; 4]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = v;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;

    use super::*;

    #[test]
    #[expect(
        deprecated,
        reason = "the standard library's SipHash-2-4 serves as the reference"
    )]
    fn the_hash_is_siphash_2_4() {
        for (key, word) in [([1, 2], 3), ([u64::MAX, 0], 0x1234), ([0, 7], u64::MAX)] {
            let mut reference = core::hash::SipHasher::new_with_keys(key[0], key[1]);
            reference.write(&word.to_le_bytes());
            assert_eq!(siphash(key, word), reference.finish());
        }
    }

    #[test]
    fn no_process_without_privileges_can_set_a_priority() {
        for class in [0, 1, u16::MAX] {
            assert!(priority([1, 2], class).is_some_and(|priority| priority >= LOWEST));
        }
    }

    #[test]
    fn a_class_is_none_of_those_with_a_meaning() {
        for netns in 0..100_000 {
            assert!((1..0xffe0).contains(&class([1, 2], netns)));
        }
    }

    #[test]
    fn pods_have_different_priorities() {
        assert_ne!(class([1, 2], 1), class([1, 2], 2));
        assert_ne!(class([1, 2], 1), class([1, 3], 1));
        assert_ne!(priority([1, 2], 1), priority([1, 2], 2));
        assert_ne!(priority([1, 2], 1), priority([1, 3], 1));
    }

    #[test]
    fn without_a_key_there_is_none() {
        assert_eq!(priority([0, 0], 1), None);
    }
}
