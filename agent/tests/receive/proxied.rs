//! Through an HTTP proxy.

use super::repository::Release;
use super::{Fleet, info, limits};
use dunlin_agent::bundle::{Receiver, stage};
use dunlin_agent::files::Disk;
use dunlin_agent::http::{Client, Proxy};
use dunlin_agent::throttle::Throttle;
use dunlin_protocol::bundle::HostFacts;
use jiff::Timestamp;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// A CONNECT proxy on loopback: what it was asked, head by head.
struct Tunnels {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Tunnels {
    /// `answer` is what it says to a head.
    async fn start(answer: fn(&str) -> &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(tunnel(client, answer, Arc::clone(&seen)));
            }
        });
        Self { port, heads }
    }

    fn url(&self, user: &str) -> String {
        format!("http://{user}127.0.0.1:{}", self.port)
    }
}

async fn tunnel(
    mut client: TcpStream,
    answer: fn(&str) -> &'static str,
    seen: Arc<Mutex<Vec<String>>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    seen.lock().unwrap().push(head.clone());
    let said = answer(&head);
    client.write_all(said.as_bytes()).await.unwrap();
    if said.contains(" 200 ") {
        let to = head.split(' ').nth(1).unwrap();
        let mut server = TcpStream::connect(to).await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

fn receiver(fleet: &Fleet, proxy: &str) -> Receiver {
    let identity = fleet.server.identity(fleet.dir.path());
    let client = Client::with(
        &identity.rustls_client_config(),
        limits(),
        Proxy::fixed(&proxy.parse().unwrap()),
        Throttle::new(0),
    );
    let host = || HostFacts {
        arch: "x86_64".to_owned(),
        agent_version: "0.1.0".to_owned(),
        ram_bytes: 1 << 30,
        disk_free_bytes: 1 << 30,
    };
    let (url, dir) = (&fleet.server.url, fleet.dir.path());
    Receiver::with(client, url, &Disk::native(), dir, "jetson", Box::new(host)).unwrap()
}

#[tokio::test]
async fn a_bundle_comes_through_a_tunnel_that_sees_only_where_to() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let proxy = Tunnels::start(|_| "HTTP/1.1 200 OK\r\n\r\n").await;
    let slot = fleet.slot("a");
    receiver(&fleet, &proxy.url("dev:s3cret@"))
        .receive(&wants[0], Timestamp::now(), &slot, |_, _| {})
        .await
        .unwrap();
    assert_eq!(stage::read(&Disk::native(), &slot), Some(info(&wants[0])));
    let heads = proxy.heads.lock().unwrap().clone();
    let to = fleet.server.url.strip_prefix("https://").unwrap();
    for head in &heads {
        assert!(
            head.starts_with(&format!("CONNECT {to} HTTP/1.1\r\n")),
            "{head}"
        );
        // "dev:s3cret" in Base64.
        assert!(
            head.contains("Proxy-Authorization: Basic ZGV2OnMzY3JldA==\r\n")
                || head.contains("proxy-authorization: Basic ZGV2OnMzY3JldA==\r\n"),
            "{head}"
        );
    }
    assert!(!heads.is_empty());
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_not_there_is_named_without_its_password() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let refuses = Tunnels::start(|_| "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = free.local_addr().unwrap().port();
    drop(free);
    for (url, port, words) in [
        (
            refuses.url("dev:s3cret@"),
            refuses.port,
            "proxy authorization required",
        ),
        (
            format!("http://dev:s3cret@127.0.0.1:{gone}"),
            gone,
            "failed to create underlying connection",
        ),
    ] {
        let error = receiver(&fleet, &url)
            .receive(&wants[0], Timestamp::now(), &fleet.slot("a"), |_, _| {})
            .await
            .unwrap_err();
        assert_eq!(error.code, "connect", "{error}");
        let named = format!("through the proxy 127.0.0.1:{port}");
        assert!(error.detail.contains(&named), "{error}");
        assert!(error.detail.contains(words), "{error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error}");
    }
    assert!(fleet.server.asked("").is_empty());
}
