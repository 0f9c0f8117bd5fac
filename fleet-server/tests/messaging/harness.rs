//! A whole messaging side of a server, and clients to play its devices.

use dunlin_protocol::id::{BootId, DeviceId, FleetId};
use dunlin_protocol::report::Presence;
use dunlin_protocol::telemetry::{Body, Class, Event, Record, Segment};
use dunlin_protocol::topic::{Channel, Topic};
use dunlin_server::acl;
use dunlin_server::blobs::Blobs;
use dunlin_server::broker::{self, BrokerConfig, RunningBroker, StoreAuth};
use dunlin_server::command::blocks::{self, BlockSettings, Files};
use dunlin_server::command::deliver::{self, DeliverSettings, Wake};
use dunlin_server::mqtt::{self, MqttClient, MqttConfig};
use dunlin_server::pki::Pki;
use dunlin_server::repository::Repository;
use dunlin_server::store::{NewDevice, Store};
use dunlin_server::telemetry::ingest::{self, IngestSettings};
use rumqttc::mqttbytes::v5::{Packet, SubscribeReasonCode};
use rumqttc::{AsyncClient, MqttOptions, PublishOptions, QoS, TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A whole messaging side of a server, and what is needed to play its devices.
pub(crate) struct Fleet {
    pub(crate) fleet: FleetId,
    pub(crate) pki: Pki,
    pub(crate) store: Store,
    pub(crate) broker: Broker,
    pub(crate) port: u16,
    pub(crate) mqtt: MqttClient,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) files: Files,
    tasks: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

pub(crate) enum Broker {
    Embedded(RunningBroker),
    Mosquitto { _child: tokio::process::Child },
}

impl Broker {
    pub(crate) fn embedded(&self) -> &RunningBroker {
        match self {
            Self::Embedded(broker) => broker,
            Self::Mosquitto { .. } => panic!("not the embedded broker"),
        }
    }
}

pub(crate) async fn embedded(
    pki: &Pki,
    fleet: &FleetId,
    store: &Store,
    listen: SocketAddr,
) -> RunningBroker {
    let config = BrokerConfig {
        listen,
        tls: pki.mqtt_tls().unwrap(),
        fleet: fleet.clone(),
        auth: Arc::new(StoreAuth(store.clone())),
        clients_max: 100,
    };
    broker::start(config).await.unwrap()
}

/// Debian's mosquitto with the configuration and the rules that the server writes.
async fn mosquitto(pki: &Pki, fleet: &FleetId, dir: &Path) -> (tokio::process::Child, u16) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let (files, acl_file) = (pki.server_files(), dir.join("acl"));
    let acl = acl::mosquitto_acl(fleet, &[acl::SERVER_NAME], &[]);
    std::fs::write(&acl_file, acl).unwrap();
    let mut conf = acl::mosquitto_conf(port, &files.ca, &files.cert, &files.key, &acl_file);
    // Started by root it would become a user who cannot read the key.
    conf.push_str("user root\n");
    let conf_file = dir.join("mosquitto.conf");
    std::fs::write(&conf_file, conf).unwrap();
    let program = [
        "/usr/sbin/mosquitto",
        "/usr/bin/mosquitto",
        "/usr/local/sbin/mosquitto",
    ];
    let program = program.into_iter().find(|path| Path::new(path).exists());
    let mut command = tokio::process::Command::new(
        program.expect("mosquitto is installed (Debian package mosquitto)"),
    );
    let child = command
        .arg("-c")
        .arg(&conf_file)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let listens = || async { TcpStream::connect(("127.0.0.1", port)).await.is_ok() };
    until("mosquitto listens", listens).await;
    (child, port)
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        Self::with(false).await
    }

    pub(crate) async fn with(external: bool) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let fleet: FleetId = "demo".parse().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let pki = Pki::open(
            &dir.path().join("pki"),
            &fleet,
            &names,
            jiff::Timestamp::now(),
        )
        .unwrap();
        let store = Store::open(&dir.path().join("dunlin.db")).await.unwrap();
        let (broker, port) = if external {
            let (child, port) = mosquitto(&pki, &fleet, dir.path()).await;
            (Broker::Mosquitto { _child: child }, port)
        } else {
            let broker = embedded(&pki, &fleet, &store, "127.0.0.1:0".parse().unwrap()).await;
            let port = broker.addr.port();
            (Broker::Embedded(broker), port)
        };
        let (mqtt, inbound, fetches) = mqtt::start(MqttConfig {
            host: "localhost".to_owned(),
            port,
            client_id: "dunlin-server".to_owned(),
            fleet: fleet.clone(),
            share: pki.share_name(),
            tls: pki.mqtt_client_tls().unwrap(),
        });
        let (stop, stopped) = watch::channel(false);
        let wake = Wake::default();
        let settings = DeliverSettings {
            tick: Duration::from_millis(100),
            resend_ms: 300,
            ask_again_ms: 30_000,
        };
        let deliver = deliver::run(
            store.clone(),
            mqtt.clone(),
            wake.clone(),
            settings,
            stopped.clone(),
        );
        let ingest = ingest::run(
            store.clone(),
            mqtt.clone(),
            inbound,
            wake,
            IngestSettings::default(),
            stopped.clone(),
        );
        let files = Files {
            repository: Arc::new(Repository::open(dir.path()).unwrap()),
            blobs: Blobs::open(&dir.path().join("blobs")).unwrap(),
        };
        let blocks = blocks::run(
            files.clone(),
            store.clone(),
            mqtt.clone(),
            fetches,
            BlockSettings::with_rate(4096),
            stopped,
        );
        let tasks = vec![
            tokio::spawn(deliver),
            tokio::spawn(ingest),
            tokio::spawn(blocks),
        ];
        tokio::time::timeout(SOON, mqtt.ready())
            .await
            .expect("the server's client connects");
        Self {
            fleet,
            pki,
            store,
            broker,
            port,
            mqtt,
            stop,
            files,
            tasks,
            _dir: dir,
        }
    }

    /// Enrols a device; gives its TLS.
    pub(crate) async fn enrol(&self, name: &str) -> Arc<rustls::ClientConfig> {
        self.enrol_trusting(name, self.roots()).await
    }

    pub(crate) async fn enrol_trusting(
        &self,
        name: &str,
        roots: rustls::RootCertStore,
    ) -> Arc<rustls::ClientConfig> {
        let device: DeviceId = name.parse().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        let csr = self.pki.check_csr(&request.pem().unwrap()).unwrap();
        let public_key_sha256 = csr.public_key_sha256;
        let certificate = self
            .pki
            .sign_device(csr, &device, jiff::Timestamp::now())
            .unwrap();
        let new = NewDevice {
            device,
            hardware: "test".to_owned(),
            arch: "x86_64".to_owned(),
            agent_version: "0.1.0".to_owned(),
            cert_sha256: certificate.sha256.0,
            public_key_sha256,
        };
        self.store
            .insert_device(&new, &std::collections::BTreeMap::new(), 1)
            .await
            .unwrap();
        let chain = vec![CertificateDer::from_pem_slice(certificate.pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots);
        Arc::new(tls.with_client_auth_cert(chain, key).unwrap())
    }

    pub(crate) fn roots(&self) -> rustls::RootCertStore {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pki.ca_pem().as_bytes()).unwrap())
            .unwrap();
        roots
    }

    pub(crate) fn topic(&self, device: &str, channel: Channel) -> String {
        Topic::new(&self.fleet, &device.parse().unwrap(), channel).to_string()
    }

    pub(crate) fn options(&self, client_id: &str, tls: Arc<rustls::ClientConfig>) -> MqttOptions {
        let mut options = MqttOptions::new(client_id, ("localhost", self.port));
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
        options.set_keep_alive(5);
        // The library's own limit is less than a block.
        options.set_max_packet_size(Some(1 << 20));
        options.set_clean_start(true);
        options
    }

    /// Enrols and connects a device that listens to its down channels.
    pub(crate) async fn device(&self, name: &str) -> Client {
        let tls = self.enrol(name).await;
        let mut client = Client::connect(self.options(name, tls));
        client.connected().await;
        for channel in [Channel::Ack, Channel::Desired] {
            assert_eq!(
                client.subscribe(&self.topic(name, channel)).await,
                SubscribeReasonCode::Success(QoS::AtLeastOnce)
            );
        }
        client
    }

    pub(crate) async fn shutdown(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            tokio::time::timeout(SOON, task)
                .await
                .expect("tasks end")
                .unwrap();
        }
        self.mqtt.shutdown().await;
        if let Broker::Embedded(broker) = self.broker {
            tokio::time::timeout(SOON, broker.shutdown())
                .await
                .expect("the broker ends");
        }
    }
}

/// An MQTT client of somebody else's making, which does not reconnect.
pub(crate) struct Client {
    pub(crate) client: AsyncClient,
    pub(crate) received: mpsc::UnboundedReceiver<(String, Vec<u8>)>,
    connected: Option<oneshot::Receiver<()>>,
    pub(crate) ended: JoinHandle<String>,
}

impl Client {
    pub(crate) fn connect(options: MqttOptions) -> Self {
        let (client, mut events) = AsyncClient::builder(options).capacity(50).build();
        let (to_test, received) = mpsc::unbounded_channel();
        let (up, connected) = oneshot::channel();
        let mut up = Some(up);
        let ended = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(rumqttc::Event::Incoming(Packet::ConnAck(_))) => {
                        up.take().map(|up| up.send(()));
                    }
                    Ok(rumqttc::Event::Incoming(Packet::Publish(publish))) => {
                        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
                        let _ = to_test.send((topic, publish.payload.to_vec()));
                    }
                    Ok(_) => {}
                    Err(error) => return format!("{error:?}"),
                }
            }
        });
        Self {
            client,
            received,
            connected: Some(connected),
            ended,
        }
    }

    pub(crate) async fn connected(&mut self) {
        let connected = self.connected.take().unwrap();
        tokio::time::timeout(SOON, connected)
            .await
            .expect("an answer to CONNECT")
            .expect("CONNECT accepted");
    }

    /// The error that ended the connection.
    pub(crate) async fn end(self) -> String {
        tokio::time::timeout(SOON, self.ended)
            .await
            .expect("the connection ends")
            .unwrap()
    }

    pub(crate) async fn subscribe(&self, filter: &str) -> SubscribeReasonCode {
        let notice = self
            .client
            .subscribe_tracked(filter, QoS::AtLeastOnce)
            .await
            .unwrap();
        let answer = tokio::time::timeout(SOON, notice.wait_async())
            .await
            .unwrap()
            .unwrap();
        answer.return_codes[0]
    }

    pub(crate) async fn publish(
        &self,
        topic: &str,
        payload: impl Into<Vec<u8>>,
    ) -> Result<(), String> {
        let options = PublishOptions::new(QoS::AtLeastOnce);
        let notice = self
            .client
            .publish_tracked(topic.to_owned(), payload.into(), options)
            .await
            .unwrap();
        let result = tokio::time::timeout(SOON, notice.wait_async())
            .await
            .unwrap();
        match result {
            Ok(result) => {
                let text = format!("{result:?}");
                if text.contains("Success") || text.contains("NoMatchingSubscribers") {
                    Ok(())
                } else {
                    Err(text)
                }
            }
            Err(error) => Err(format!("{error:?}")),
        }
    }

    pub(crate) async fn next(&mut self) -> (String, Vec<u8>) {
        tokio::time::timeout(SOON, self.received.recv())
            .await
            .expect("a message")
            .unwrap()
    }
}

pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = tokio::time::timeout(SOON, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "within {SOON:?}: {what}");
}

pub(crate) fn event_segment(number: u64) -> Vec<u8> {
    let event = Event {
        code: "test".to_owned(),
        detail: number.to_string(),
        bundle: None,
    };
    let records = vec![Record {
        time_ms: 1,
        body: Body::Event(event),
    }];
    Segment {
        boot: BootId([7; 16]),
        segment: number,
        backfilled: false,
        records,
    }
    .encode(Class::Event)
    .unwrap()
}

pub(crate) fn presence(online: bool, connection: &str) -> Vec<u8> {
    let presence = Presence {
        online,
        connection: connection.to_owned(),
        agent_version: "0.1.0".to_owned(),
    };
    serde_json::to_vec(&presence).unwrap()
}

pub(crate) fn is_refused(code: &SubscribeReasonCode) -> bool {
    !matches!(code, SubscribeReasonCode::Success(_))
}
