//! Which certificate counts.

use super::*;

fn successor(key: u8) -> Successor {
    Successor {
        sha256: Digest([key; 32]),
        public_key_sha256: [key; 32],
    }
}

#[tokio::test]
async fn a_certificate_counts_until_the_next_is_used() {
    let Fixture { store, _dir } = open().await;
    let a = id("a");
    store
        .insert_device(&new_device("a", 1), &labels("k", "v"), 0)
        .await
        .unwrap();
    let standing = async |cert| store.standing(&a, &[cert; 32]).await.unwrap();
    let succeed = async |holds, next| {
        let holds = Digest([holds; 32]);
        store
            .succeed(&a, &holds, &successor(next), 9, 5)
            .await
            .unwrap()
    };
    // Two answers were asked for; whichever came, came.
    assert_eq!(succeed(1, 2).await, Succession::Recorded);
    assert_eq!(succeed(1, 3).await, Succession::Recorded);
    for (cert, worth) in [
        (1, Standing::Current),
        (2, Standing::Next),
        (3, Standing::Next),
    ] {
        assert_eq!(standing(cert).await, worth);
    }
    assert_eq!(
        store.admit(&a, &[1; 32], 6, 6).await.unwrap(),
        Standing::Current
    );
    assert_eq!(
        standing(2).await,
        Standing::Next,
        "the old one's use decides nothing"
    );

    assert_eq!(
        store.admit(&a, &[3; 32], 7, 7).await.unwrap(),
        Standing::Current
    );
    for cert in [1, 2] {
        assert_eq!(standing(cert).await, Standing::Superseded);
    }
    let row = store.device(&a).await.unwrap().unwrap();
    assert_eq!(row.cert_sha256, Digest([3; 32]));
    // A connection that was made before may be finished, and brings no more than that.
    let finishing = store.admit(&a, &[1; 32], 7, 100).await.unwrap();
    assert_eq!(finishing, Standing::Finishing);
    let late = store.admit(&a, &[1; 32], 8, 100).await.unwrap();
    assert_eq!(late, Standing::Superseded);
    // What was superseded brings nothing any more.
    assert_eq!(
        succeed(1, 4).await,
        Succession::Refused(Standing::Superseded)
    );
    assert_eq!(
        succeed(9, 4).await,
        Succession::Refused(Standing::UnknownCertificate)
    );
    let stranger = store.standing(&id("b"), &[3; 32]).await.unwrap();
    assert_eq!(stranger, Standing::UnknownDevice);
}

#[tokio::test]
async fn the_use_of_a_superseded_certificate_is_an_event_once_an_hour() {
    let Fixture { store, _dir } = open().await;
    let a = id("a");
    store
        .insert_device(&new_device("a", 1), &labels("k", "v"), 0)
        .await
        .unwrap();
    store
        .succeed(&a, &Digest([1; 32]), &successor(2), 9, 1)
        .await
        .unwrap();
    store.admit(&a, &[2; 32], 2, 2).await.unwrap();
    let hour = 3_600_000;
    for at in [10, 20, hour, hour + 10] {
        assert_eq!(
            store.admit(&a, &[1; 32], at, at).await.unwrap(),
            Standing::Superseded
        );
    }
    let events = store.events(&a, 10).await.unwrap();
    let codes: Vec<_> = events
        .iter()
        .map(|e| match &e.record.body {
            Body::Event(event) => (event.code.as_str(), e.record.time_ms),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        codes,
        [("identity_shared", hour + 10), ("identity_shared", 10)]
    );
}

#[tokio::test]
async fn a_device_is_given_so_many_certificates_an_hour() {
    let Fixture { store, _dir } = open().await;
    let a = id("a");
    store
        .insert_device(&new_device("a", 1), &labels("k", "v"), 0)
        .await
        .unwrap();
    let hour = 3_600_000;
    let holds = Digest([1; 32]);
    let mut recorded = 0;
    for n in 0..40 {
        let next = successor(100 + n);
        let given = store
            .succeed(&a, &holds, &next, 7, hour + i64::from(n))
            .await;
        match given.unwrap() {
            Succession::Recorded => recorded += 1,
            other => assert_eq!(other, Succession::TooMany),
        }
    }
    assert_eq!(recorded, 7);
    let later = store.succeed(&a, &holds, &successor(99), 7, 3 * hour).await;
    assert_eq!(later.unwrap(), Succession::Recorded);
}

#[tokio::test]
async fn a_live_device_with_another_token_keeps_its_certificate_until_it_uses_the_new_one() {
    let Fixture { store, _dir } = open().await;
    store.insert_claim(&claim(1)).await.unwrap();
    let second = NewClaim {
        id: "c2".to_owned(),
        hash: [7; 32],
        labels: labels("site", "south"),
        ..claim(1)
    };
    store.insert_claim(&second).await.unwrap();
    let a = id("a");
    store.enrol(&[9; 32], &new_device("a", 1), 1).await.unwrap();
    let again = NewDevice {
        cert_sha256: [5; 32],
        ..new_device("a", 1)
    };
    assert_eq!(
        store.enrol(&[7; 32], &again, 2).await.unwrap(),
        EnrolmentOutcome::Enrolled(labels("site", "south"))
    );
    // The answer was lost: the device goes on with what it has, as long as it likes.
    for now_ms in [3, 4] {
        let admitted = store.admit(&a, &[1; 32], now_ms, now_ms).await.unwrap();
        assert_eq!(admitted, Standing::Current);
    }
    let row = store.device(&a).await.unwrap().unwrap();
    assert_eq!(row.labels, labels("site", "south"));
    assert_eq!(row.cert_sha256, Digest([1; 32]));
    assert_eq!(
        store.device_of_key(&[7; 32], &[1; 32]).await.unwrap(),
        Some(a.clone()),
        "the second token's use is spent, and repeats cost none"
    );
    // The same token again, this time with an answer that arrives.
    let third = NewDevice {
        cert_sha256: [6; 32],
        ..again
    };
    assert_eq!(
        store.enrol(&[7; 32], &third, 5).await.unwrap(),
        EnrolmentOutcome::Repeated(labels("site", "south"))
    );
    let admitted = store.admit(&a, &[6; 32], 6, 6).await.unwrap();
    assert_eq!(admitted, Standing::Current);
    for cert in [1, 5] {
        let standing = store.standing(&a, &[cert; 32]).await.unwrap();
        assert_eq!(standing, Standing::Superseded);
    }
    assert_eq!(
        store.enrol(&[7; 32], &new_device("b", 2), 7).await.unwrap(),
        EnrolmentOutcome::SpentToken
    );
}
