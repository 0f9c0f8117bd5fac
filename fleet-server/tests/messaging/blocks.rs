//! Files of the repository, asked for block by block.

use super::harness::{Client, Fleet, SOON};
use dunlin_protocol::block::{Answer, BLOCK_MAX_BYTES, Request};
use dunlin_protocol::id::Digest;
use dunlin_protocol::repository::RepositoryFile;
use dunlin_protocol::topic::Channel;
use futures_util::stream;
use std::convert::Infallible;

/// A device that asks for blocks.
struct Asker<'a> {
    fleet: &'a Fleet,
    client: Client,
    name: &'static str,
    id: u64,
}

impl<'a> Asker<'a> {
    async fn new(fleet: &'a Fleet, name: &'static str) -> Self {
        let client = fleet.device(name).await;
        let code = client.subscribe(&fleet.topic(name, Channel::Block)).await;
        assert!(!super::is_refused(&code), "{code:?}");
        Self {
            fleet,
            client,
            name,
            id: 0,
        }
    }

    async fn ask(&mut self, file: &RepositoryFile, offset: u64, length: u32) {
        self.id += 1;
        let request = Request {
            id: self.id,
            file: file.clone(),
            offset,
            length,
        };
        self.say(serde_json::to_vec(&request).unwrap()).await;
    }

    /// As agents do: at QoS 0.
    async fn say(&mut self, payload: Vec<u8>) {
        let topic = self.fleet.topic(self.name, Channel::Fetch);
        let options = rumqttc::PublishOptions::new(rumqttc::QoS::AtMostOnce);
        let sent = self.client.client.publish(topic, payload, options);
        sent.await.unwrap();
    }

    async fn answer(&mut self) -> (u64, Answer) {
        let (topic, payload) = self.client.next().await;
        assert_eq!(topic, self.fleet.topic(self.name, Channel::Block));
        Answer::decode(&payload).unwrap()
    }

    async fn block(&mut self, file: &RepositoryFile, offset: u64, length: u32) -> Answer {
        self.ask(file, offset, length).await;
        let (id, answer) = self.answer().await;
        assert_eq!(id, self.id);
        answer
    }
}

async fn store(fleet: &Fleet, bytes: &[u8]) -> RepositoryFile {
    let digest = Digest::of(bytes);
    let whole = stream::iter([Ok::<_, Infallible>(bytes.to_vec().into())]);
    fleet.files.blobs.put(&digest, whole).await.unwrap();
    RepositoryFile::Blob(digest)
}

async fn a_file_comes_in_blocks(fleet: Fleet) {
    let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    let blob = store(&fleet, &bytes).await;
    let mut asker = Asker::new(&fleet, "edge-a").await;
    let block = BLOCK_MAX_BYTES as u32;
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        let offset = got.len() as u64;
        match asker.block(&blob, offset, block).await {
            Answer::Data {
                offset: at,
                total,
                bytes: part,
            } => {
                assert_eq!((at, total), (offset, 200_000));
                assert!(!part.is_empty() && part.len() <= BLOCK_MAX_BYTES);
                got.extend(part);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(got == bytes);
    // At and beyond the end, and more than a block.
    for (offset, length, expected) in [(200_000, block, 0), (u64::MAX, 1, 0), (0, u32::MAX, 65_536)]
    {
        match asker.block(&blob, offset, length).await {
            Answer::Data { bytes, total, .. } => {
                assert_eq!((bytes.len(), total), (expected, 200_000), "{offset}");
            }
            other => panic!("{other:?}"),
        }
    }
    let nowhere = RepositoryFile::Blob(Digest::of(b"nowhere"));
    assert_eq!(asker.block(&nowhere, 0, block).await, Answer::Absent);
    let root = RepositoryFile::metadata("2.root.json").unwrap();
    assert_eq!(asker.block(&root, 0, block).await, Answer::Absent);
    drop(asker);
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_in_blocks_over_the_embedded_broker() {
    a_file_comes_in_blocks(Fleet::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_in_blocks_over_mosquitto() {
    a_file_comes_in_blocks(Fleet::with(true).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_not_answered_and_nobody_else_is_asked_for() {
    let fleet = Fleet::start().await;
    let blob = store(&fleet, b"something").await;
    let mut asker = Asker::new(&fleet, "edge-a").await;
    for bad in [
        &b"{"[..],
        b"",
        br#"{"id":1,"file":"metadata/../../pki/ca.key","offset":0,"length":9}"#,
        br#"{"id":1,"file":"/etc/passwd","offset":0,"length":9}"#,
        &[b' '; 2000],
    ] {
        asker.say(bad.to_vec()).await;
    }
    // Only the right one is answered.
    assert!(matches!(
        asker.block(&blob, 0, 100).await,
        Answer::Data { .. }
    ));
    let other = fleet.device("edge-b").await;
    let refused = other
        .publish(&fleet.topic("edge-a", Channel::Fetch), "x")
        .await;
    assert!(refused.unwrap_err().contains("NotAuthorized"));
    drop(asker);
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_asks_for_too_much_is_slowed_and_others_are_not() {
    let fleet = Fleet::start().await;
    let blob = store(&fleet, &vec![7; BLOCK_MAX_BYTES]).await;
    let mut greedy = Asker::new(&fleet, "edge-a").await;
    let mut modest = Asker::new(&fleet, "edge-b").await;
    // Its rate of 4 MiB a second is 60 blocks of this many.
    for _ in 0..150 {
        greedy.ask(&blob, 0, BLOCK_MAX_BYTES as u32).await;
    }
    let answer = modest.block(&blob, 0, 100).await;
    assert!(matches!(answer, Answer::Data { .. }), "{answer:?}");
    let busy = tokio::time::timeout(SOON, async {
        loop {
            if let (_, Answer::Busy { retry_after_ms }) = greedy.answer().await {
                break retry_after_ms;
            }
        }
    });
    assert!((1..=1000).contains(&busy.await.unwrap()));
    drop((greedy, modest));
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_gets_no_block_from_an_external_broker_either() {
    let fleet = Fleet::with(true).await;
    let blob = store(&fleet, b"something").await;
    let mut revoked = Asker::new(&fleet, "edge-a").await;
    let mut live = Asker::new(&fleet, "edge-b").await;
    assert!(
        fleet
            .store
            .revoke_device(&"edge-a".parse().unwrap())
            .await
            .unwrap()
    );
    revoked.ask(&blob, 0, 100).await;
    // Requests are taken in order: once this one is answered, the other was left out.
    assert!(matches!(
        live.block(&blob, 0, 100).await,
        Answer::Data { .. }
    ));
    live.block(&blob, 0, 100).await;
    assert!(revoked.client.received.try_recv().is_err());
    drop((revoked, live));
    fleet.shutdown().await;
}
