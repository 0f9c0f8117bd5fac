//! Devices that run models of several families.

use super::*;
use dunlin_protocol::report::ModelReport;

#[tokio::test]
async fn desired_states_of_families_do_not_overwrite_each_other() {
    let Fixture { store, _dir } = open().await;
    let other: Family = "letters".parse().unwrap();
    let letters = DesiredBundle {
        family: other.clone(),
        ..wanted(7)
    };
    store
        .set_desired_family(&id("a"), &family(), Some(wanted(1)))
        .await
        .unwrap();
    store
        .set_desired_family(&id("a"), &other, Some(letters.clone()))
        .await
        .unwrap();
    let desired = store.desired(&id("a")).await.unwrap().unwrap();
    // Each says since when it is asked for.
    let since = desired.bundles.iter().map(|b| b.asked.unwrap().generation);
    assert_eq!(since.collect::<Vec<_>>(), [1, 2]);
    assert_eq!(plain(desired), [wanted(1), letters.clone()]);
    store
        .set_desired_family(&id("a"), &family(), None)
        .await
        .unwrap();
    let desired = store.desired(&id("a")).await.unwrap().unwrap();
    assert_eq!(desired.bundles[0].asked.unwrap().generation, 2);
    assert_eq!(plain(desired), std::slice::from_ref(&letters));
    // Asked for once more, it is asked for anew.
    store
        .set_desired_family(&id("a"), &other, Some(letters))
        .await
        .unwrap();
    let desired = store.desired(&id("a")).await.unwrap().unwrap();
    assert_eq!(desired.bundles[0].asked, Some(desired.revision));
}

#[tokio::test]
async fn devices_are_found_by_any_of_their_models() {
    let Fixture { store, _dir } = open().await;
    for (name, key) in [("a", 1), ("b", 2)] {
        let device = new_device(name, key);
        store
            .insert_device(&device, &labels("k", "v"), 0)
            .await
            .unwrap();
    }
    let model = |family: &str, version, progress| ModelReport {
        family: family.parse().unwrap(),
        target: None,
        rollout: None,
        progress,
        waiting: None,
        active: Some(Installed {
            family: family.parse().unwrap(),
            version,
            digest: Digest::of(b"x"),
        }),
        shadow: None,
    };
    let needed = 3;
    let inferences = 1;
    let several = Reported {
        models: vec![
            model("digits", 1, Progress::Succeeded),
            model("faces", 7, Progress::Probation { inferences, needed }),
        ],
        ..reported(1, 1)
    };
    store.set_reported(&id("a"), &several, 2).await.unwrap();
    let found = async |family: Option<&str>, version| {
        let filter = DeviceFilter {
            family: family.map(|f| f.parse().unwrap()),
            version,
            ..DeviceFilter::default()
        };
        store.list_devices(&filter).await.unwrap().len()
    };
    assert_eq!(found(Some("faces"), None).await, 1);
    assert_eq!(found(Some("faces"), Some(7)).await, 1);
    assert_eq!(found(None, Some(7)).await, 1);
    // Not one's family with the other's version.
    assert_eq!(found(Some("digits"), Some(7)).await, 0);
    // What one model of several is still at work on is asked for again.
    store
        .set_desired(&[(id("a"), vec![wanted(1)])])
        .await
        .unwrap();
    store
        .set_presence(&id("a"), &presence(true, "x"), Some(3))
        .await
        .unwrap();
    assert_eq!(store.desired_unfinished().await.unwrap().len(), 1);
}
