//! What must hold for any input.

use proptest::prelude::*;
use std::collections::BTreeSet;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_root_is_trusted_iff_enough_distinct_listed_keys_signed(
        listed in prop::collection::btree_set(1_u8..9, 1..6),
        signers in prop::collection::vec(1_u8..12, 0..8),
        threshold in 1_u64..5,
    ) {
        let threshold = threshold.min(listed.len() as u64);
        let mut keys = keys();
        keys.insert(Role::Root, (listed.iter().copied().collect(), threshold));
        let bytes = root(1, &keys, &signers);
        let valid = signers.iter().copied().collect::<BTreeSet<u8>>();
        let enough = valid.intersection(&listed).count() as u64 >= threshold;
        prop_assert_eq!(TrustedSet::from_root(&bytes, time(NOW)).is_ok(), enough);
    }

    #[test]
    fn a_bent_file_is_refused_or_means_the_same(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let release = release(3);
        let files = release.files();
        let mut honest = rooted();
        let _ = honest.update_timestamp(&files.timestamp).unwrap();
        let mut bent = files.timestamp.clone();
        let at = at.index(bent.len());
        bent[at] ^= 1 << bit;
        let mut set = rooted();
        if set.update_timestamp(&bent).is_ok() {
            prop_assert_eq!(set.timestamp(), honest.timestamp());
        }
        let at = at % files.targets.len();
        let mut bent = files.targets.clone();
        bent[at] ^= 1 << bit;
        honest.update_snapshot(&files.snapshot).unwrap();
        prop_assert!(honest.update_targets(&bent).is_err());
    }

    #[test]
    fn no_sequence_of_offers_takes_any_version_back(
        offers in prop::collection::vec((1_u64..6, 1_u64..6, 1_u64..6, any::<bool>()), 1..8),
    ) {
        let mut stored: Option<(Release, Files)> = None;
        for (timestamp, snapshot, targets, expired) in offers {
            let mut offer = release(1);
            offer.timestamp_version = timestamp;
            offer.snapshot_version = snapshot;
            offer.targets_version = targets;
            if expired {
                offer.expires.insert(Role::Timestamp, PAST);
            }
            let files = offer.files();
            let mut set = stored.as_ref().map_or_else(rooted, |(_, files)| restarted(files));
            if refresh(&mut set, &files) == Ok(Freshness::New) {
                prop_assert!(!expired);
                if let Some((old, _)) = &stored {
                    prop_assert!(timestamp > old.timestamp_version);
                    prop_assert!(snapshot >= old.snapshot_version);
                    prop_assert!(targets >= old.targets_version);
                }
                stored = Some((offer, files));
            }
        }
    }

    #[test]
    fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = TrustedSet::from_root(&bytes, time(NOW));
        let _ = rooted().update_timestamp(&bytes);
        let _ = rooted().load_trusted_snapshot(&bytes);
        let _ = SigningKey::from_pkcs8_pem(&String::from_utf8_lossy(&bytes));
    }
}
