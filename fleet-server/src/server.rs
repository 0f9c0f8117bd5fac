//! Starting and ending everything in the right order.

use crate::acl::{AclError, AclFile, SERVER_NAME};
use crate::alert::watch::Watch;
use crate::alert::webhook::{self, Messenger};
use crate::api::{self, App};
use crate::blobs::{BlobError, Blobs};
use crate::broker::{self, BrokerConfig, BrokerError, RunningBroker, StoreAuth};
use crate::clock;
use crate::command::blocks::{self, BlockSettings};
use crate::command::capture;
use crate::command::deliver::{self, DeliverSettings, Wake};
use crate::config::{MqttMode, Settings};
use crate::enroll::succession::Desk;
use crate::export::stream::EXPORTS_MAX;
use crate::exposition;
use crate::files;
use crate::listener::Listener;
use crate::mqtt::{self, MqttClient, MqttConfig};
use crate::pki::{Pki, PkiError};
use crate::repository::{Repository, RepositoryError};
use crate::resign;
use crate::rollout::execute::{self, ExecuteSettings};
use crate::store::{Store, StoreError};
use crate::telemetry::ingest::{self, IngestSettings};
use crate::telemetry::retention;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

const ADMIN_CONNECTIONS_MAX: usize = 256;
const DEVICE_CONNECTIONS_MAX: usize = 1024;
const MQTT_CLIENTS_MAX: usize = 10_000;
/// How often the end of the server's own certificates is looked at.
const RENEW_OWN_INTERVAL: Duration = Duration::from_secs(6 * 3600);
const CORE_LOOK_INTERVAL: Duration = Duration::from_secs(1);
const TASK_TIMEOUT: Duration = Duration::from_secs(15);
/// Name of the administrator whose token is made at first start.
const FIRST_ADMIN: &str = "admin";

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder.
    #[error("state folder: {0}")]
    State(#[from] files::FileError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The TUF repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The blob store.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// An address cannot be had.
    #[error("{key}: cannot listen on {listen}: {source}")]
    Listen {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        listen: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The embedded broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The external broker's ACL file.
    #[error(transparent)]
    Acl(#[from] AclError),
    /// No randomness.
    #[error("random numbers: {0}")]
    Random(getrandom::Error),
    /// A broken installation.
    #[error("{0}")]
    Setup(String),
}

/// The fleet server.
#[derive(Debug)]
pub struct Server;

/// A fleet server that serves.
pub struct RunningServer {
    /// Where the admin API listens.
    pub admin: SocketAddr,
    /// Where devices enrol and download.
    pub devices: SocketAddr,
    /// Where the embedded broker listens.
    pub mqtt: Option<SocketAddr>,
    /// The first administrator's token, only at the first start with this state folder.
    pub first_admin_token: Option<String>,
    /// The database.
    pub store: Store,
    /// The TUF repository.
    pub repository: Arc<Repository>,
    /// SHA-256 of the fleet CA's certificate (DER).
    pub ca_sha256: dunlin_protocol::id::Digest,
    client: MqttClient,
    broker: Option<RunningBroker>,
    stop_listening: watch::Sender<bool>,
    stop_planning: watch::Sender<bool>,
    stop_ingest: watch::Sender<bool>,
    listeners: Vec<JoinHandle<()>>,
    planners: Vec<JoinHandle<()>>,
    ingest: JoinHandle<()>,
}

impl std::fmt::Debug for RunningServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningServer")
            .field("admin", &self.admin)
            .field("devices", &self.devices)
            .field("mqtt", &self.mqtt)
            .finish_non_exhaustive()
    }
}

/// What is opened before anything listens.
struct Opened {
    store: Store,
    pki: Arc<Pki>,
    repository: Arc<Repository>,
    blobs: Blobs,
}

impl Server {
    /// Starts everything; what it gives is ready to be talked to.
    ///
    /// # Errors
    /// Whatever could not be opened or listened on, in words for whoever is on call.
    pub async fn start(settings: Settings) -> Result<RunningServer, StartError> {
        Self::start_with(settings, None).await
    }

    /// As [`start`](Self::start); the first administrator's token is written to `token_file`
    /// (mode 0600) before it is valid, so that a lost stdout loses nothing.
    ///
    /// # Errors
    /// As [`start`](Self::start), and the file cannot be written.
    pub async fn start_with(
        settings: Settings,
        token_file: Option<&Path>,
    ) -> Result<RunningServer, StartError> {
        // Another user of this process may have installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let opened = open(&settings).await?;
        let (pki, store) = (&opened.pki, opened.store.clone());
        let admin = bind("admin.listen", settings.admin.listen).await?;
        let devices = bind("devices.listen", settings.devices.listen).await?;
        let admin_tls = settings.admin.tls.then(|| pki.admin_tls()).transpose()?;
        let device_tls = Some(pki.device_tls()?);
        let acl = AclFile::new(settings.mqtt.acl_file.clone(), settings.fleet.clone());
        acl.write(&store).await?;
        let broker = start_broker(&settings, pki, &store).await?;
        let (client, inbound, fetches) = mqtt::start(mqtt_config(&settings, pki, broker.as_ref())?);
        // Only once nothing can fail any more: a token that was never shown is a lost one.
        let first_admin_token = first_token(&store, token_file).await?;
        let (wake, messages) = (Wake::default(), Arc::new(Notify::new()));
        let captures = Arc::new(Notify::new());
        let stop = || watch::channel(false);
        let (stop_listening, listening) = stop();
        let (stop_planning, planning) = stop();
        let (stop_ingest, ingesting) = stop();
        let mut running = RunningServer {
            admin: admin.1,
            devices: devices.1,
            mqtt: broker.as_ref().map(|b| b.addr),
            first_admin_token,
            store: store.clone(),
            repository: opened.repository.clone(),
            ca_sha256: pki.ca_sha256(),
            client: client.clone(),
            ingest: tokio::spawn(ingest::run(
                store.clone(),
                client.clone(),
                inbound,
                wake.clone(),
                ingest_settings(&settings),
                ingesting,
            )),
            planners: spawn_planners(
                &settings,
                &opened,
                &client,
                &wake,
                &planning,
                fetches,
                (&messages, &captures),
            ),
            listeners: Vec::new(),
            stop_listening,
            stop_planning,
            stop_ingest,
            broker,
        };
        let app = Arc::new(app(
            settings,
            opened,
            &running,
            wake,
            (messages, captures),
            acl,
        )?);
        for listener in [
            Listener {
                name: "admin",
                socket: admin.0,
                tls: admin_tls,
                router: api::admin_router(app.clone()),
                connections_max: ADMIN_CONNECTIONS_MAX,
            },
            Listener {
                name: "devices",
                socket: devices.0,
                tls: device_tls,
                router: api::device_router(app),
                connections_max: DEVICE_CONNECTIONS_MAX,
            },
        ] {
            running
                .listeners
                .push(tokio::spawn(listener.run(listening.clone())));
        }
        Ok(running)
    }
}

impl RunningServer {
    /// Waits until a task without which the server is of no use has ended by itself; its name.
    pub async fn core_task_ended(&self) -> &'static str {
        let mut looks = tokio::time::interval(CORE_LOOK_INTERVAL);
        loop {
            looks.tick().await;
            if self.ingest.is_finished() {
                return "telemetry ingest";
            }
            if self.planners.iter().any(JoinHandle::is_finished) {
                return "rollouts, delivery, signing or retention";
            }
            if self.listeners.iter().any(JoinHandle::is_finished) {
                return "a listener";
            }
            if !self.client.is_polling() {
                return "MQTT client";
            }
            if self.broker.as_ref().is_some_and(|b| !b.is_running()) {
                return "MQTT broker";
            }
        }
    }

    /// Stops in this order: no new requests, those in hand are finished, the planner, the
    /// ingest with its batch in hand, the broker, the database.
    pub async fn shutdown(self) {
        self.stop_listening.send_replace(true);
        join(self.listeners).await;
        self.stop_planning.send_replace(true);
        join(self.planners).await;
        self.stop_ingest.send_replace(true);
        join(vec![self.ingest]).await;
        self.client.shutdown().await;
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
        self.store.close().await;
    }
}

async fn join(tasks: Vec<JoinHandle<()>>) {
    for mut task in tasks {
        if tokio::time::timeout(TASK_TIMEOUT, &mut task).await.is_err() {
            tracing::warn!("a task did not end within {TASK_TIMEOUT:?}, it is cut");
            task.abort();
        }
    }
}

async fn open(settings: &Settings) -> Result<Opened, StartError> {
    let state_dir = &settings.state_dir;
    files::make_private_folder(state_dir)?;
    let store = Store::open(&database_path(state_dir)).await?;
    let now = clock::now();
    let names = certificate_names(settings);
    let pki = Pki::open(&state_dir.join("pki"), &settings.fleet, &names, now)?
        .with_device_life(settings.enrolment.certificate_life_s);
    let pki = Arc::new(pki);
    let repository = Arc::new(Repository::open(state_dir)?);
    let blobs = Blobs::open(&state_dir.join("blobs"))?;
    store.read_profiles_from(blobs.clone());
    // A cut between publishing and recording is made up for here.
    match repository.published() {
        Ok(Some(published)) => api::bundles::record(&store, &published).await?,
        Ok(None) => {}
        Err(error) => {
            tracing::error!(%error, "what is published does not verify; devices will refuse it")
        }
    }
    // Straight away: the server may have been down for longer than a timestamp lives.
    resign::once(&repository, &store, &mut resign::Belief::default(), now).await?;
    if matches!(settings.mqtt.mode, MqttMode::Embedded { .. }) {
        store.set_all_offline().await?;
    }
    Ok(Opened {
        store,
        pki,
        repository,
        blobs,
    })
}

async fn first_token(
    store: &Store,
    token_file: Option<&Path>,
) -> Result<Option<String>, StartError> {
    if !store.admins().await?.is_empty() {
        return Ok(None);
    }
    let (token, hash) = api::tokens::new_secret().map_err(StartError::Random)?;
    if let Some(path) = token_file {
        files::write_atomic(path, format!("{token}\n").as_bytes(), files::SECRET)?;
    }
    store.insert_admin(FIRST_ADMIN, &hash).await?;
    Ok(Some(token))
}

/// Makes a token for an administrator, in place of an earlier one of that name. The server may run
/// meanwhile.
pub(crate) async fn new_admin_token(state_dir: &Path, name: &str) -> Result<String, StartError> {
    files::make_private_folder(state_dir)?;
    let store = Store::open(&database_path(state_dir)).await?;
    let (token, hash) = api::tokens::new_secret().map_err(StartError::Random)?;
    store.insert_admin(name, &hash).await?;
    store.close().await;
    Ok(token)
}

async fn bind(
    key: &'static str,
    listen: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = async {
        let socket = TcpListener::bind(listen).await?;
        let address = socket.local_addr()?;
        Ok((socket, address))
    };
    let failed = |source| StartError::Listen {
        key,
        listen,
        source,
    };
    bound.await.map_err(failed)
}

async fn start_broker(
    settings: &Settings,
    pki: &Pki,
    store: &Store,
) -> Result<Option<RunningBroker>, StartError> {
    let MqttMode::Embedded { listen } = settings.mqtt.mode else {
        return Ok(None);
    };
    let config = BrokerConfig {
        listen,
        tls: pki.mqtt_tls()?,
        fleet: settings.fleet.clone(),
        auth: Arc::new(StoreAuth(store.clone())),
        clients_max: MQTT_CLIENTS_MAX,
    };
    Ok(Some(broker::start(config).await?))
}

fn mqtt_config(
    settings: &Settings,
    pki: &Pki,
    broker: Option<&RunningBroker>,
) -> Result<MqttConfig, StartError> {
    let (host, port, tls) = match &settings.mqtt.mode {
        MqttMode::Embedded { listen } => {
            let port = broker.map_or(0, |b| b.addr.port());
            (own_host(*listen), port, pki.mqtt_client_tls()?)
        }
        MqttMode::External {
            host,
            port,
            ca_file,
            cert_file,
            key_file,
        } => {
            let pair = cert_file.as_deref().zip(key_file.as_deref());
            let tls = pki.external_mqtt_tls(ca_file.as_deref(), pair)?;
            (host.clone(), *port, tls)
        }
    };
    Ok(MqttConfig {
        host,
        port,
        client_id: SERVER_NAME.to_owned(),
        fleet: settings.fleet.clone(),
        share: pki.share_name(),
        tls,
    })
}

/// How the server reaches its own broker; its certificate carries this too.
fn own_host(listen: SocketAddr) -> String {
    let ip = listen.ip();
    match ip.is_ipv4() {
        true if ip.is_unspecified() => "127.0.0.1".to_owned(),
        true => ip.to_string(),
        false => "localhost".to_owned(),
    }
}

/// The configured names, and the one by which the server reaches its own broker.
fn certificate_names(settings: &Settings) -> Vec<String> {
    let mut names = settings.names.clone();
    if let MqttMode::Embedded { listen } = settings.mqtt.mode {
        let own = own_host(listen);
        if !names.contains(&own) {
            names.push(own);
        }
    }
    names
}

fn ingest_settings(settings: &Settings) -> IngestSettings {
    IngestSettings {
        batch_max: settings.ingest_batch_max,
        batch_wait: Duration::from_millis(settings.ingest_batch_wait_ms),
    }
}

fn spawn_planners(
    settings: &Settings,
    opened: &Opened,
    client: &MqttClient,
    wake: &Wake,
    stop: &watch::Receiver<bool>,
    fetches: mpsc::Receiver<mqtt::Inbound>,
    (messages, captures): (&Arc<Notify>, &Arc<Notify>),
) -> Vec<JoinHandle<()>> {
    let store = &opened.store;
    let files = blocks::Files {
        repository: opened.repository.clone(),
        blobs: opened.blobs.clone(),
    };
    let execute_settings = ExecuteSettings {
        tick: Duration::from_millis(settings.rollout_tick_ms),
        ..ExecuteSettings::default()
    };
    let delivery = DeliverSettings::default();
    let watch = Watch {
        store: store.clone(),
        blobs: opened.blobs.clone(),
        fleet: settings.fleet.clone(),
        every: Duration::from_millis(settings.alerts_tick_ms),
        deliver: messages.clone(),
    };
    let messenger = Messenger::new(store.clone(), messages.clone(), webhook::machine_roots());
    vec![
        tokio::spawn(execute::run(
            store.clone(),
            wake.clone(),
            client.listening(),
            execute_settings,
            stop.clone(),
        )),
        tokio::spawn(deliver::run(
            store.clone(),
            client.clone(),
            wake.clone(),
            delivery,
            stop.clone(),
        )),
        tokio::spawn(blocks::run(
            files,
            store.clone(),
            client.clone(),
            fetches,
            BlockSettings::with_rate(settings.mqtt.device_blocks_kib_s),
            stop.clone(),
        )),
        tokio::spawn(resign::run(
            opened.repository.clone(),
            store.clone(),
            stop.clone(),
        )),
        tokio::spawn(watch.run(stop.clone())),
        tokio::spawn(messenger.run(stop.clone())),
        tokio::spawn(capture::run(
            store.clone(),
            client.clone(),
            captures.clone(),
            stop.clone(),
        )),
        tokio::spawn(retention::run(
            store.clone(),
            opened.blobs.clone(),
            settings.telemetry,
            settings.captures,
            stop.clone(),
        )),
        tokio::spawn(renew_own(opened.pki.clone(), stop.clone())),
    ]
}

fn app(
    settings: Settings,
    opened: Opened,
    running: &RunningServer,
    deliver: Wake,
    (messages, captures): (Arc<Notify>, Arc<Notify>),
    acl: AclFile,
) -> Result<App, StartError> {
    let first_name = settings.names.first().cloned().unwrap_or_default();
    let devices_url = settings.devices.public_url.clone();
    let devices_url = devices_url.unwrap_or_else(|| {
        format!(
            "https://{}:{}",
            bracketed(&first_name),
            running.devices.port()
        )
    });
    let (broker_host, broker_port) = match &settings.mqtt.mode {
        MqttMode::Embedded { .. } => (first_name, running.mqtt.map_or(0, |a| a.port())),
        MqttMode::External { host, port, .. } => (host.clone(), *port),
    };
    Ok(App {
        mqtt_host: settings.mqtt.public_host.clone().unwrap_or(broker_host),
        mqtt_port: settings.mqtt.public_port.unwrap_or(broker_port),
        devices_url,
        settings,
        store: opened.store,
        pki: opened.pki,
        desk: Desk::new().map_err(StartError::Random)?,
        repository: opened.repository,
        blobs: opened.blobs,
        broker: running.broker.as_ref().map(RunningBroker::handle),
        acl,
        deliver,
        captures,
        uploads: Semaphore::new(api::captures::UPLOADS_MAX),
        messages,
        listening: running.client.listening(),
        exports: Arc::new(Semaphore::new(EXPORTS_MAX)),
        metrics: recorder()?,
    })
}

fn bracketed(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

/// One recorder a process, however many servers it runs.
fn recorder() -> Result<PrometheusHandle, StartError> {
    static RECORDER: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    let installed = RECORDER.get_or_init(|| {
        let installed = PrometheusBuilder::new().install_recorder();
        // Before anything counts: a name without a word of explanation is no use to anybody.
        exposition::describe();
        installed.map_err(|e| format!("metrics: {e}"))
    });
    installed.clone().map_err(StartError::Setup)
}

/// Keeps the server's own certificates from ending.
async fn renew_own(pki: Arc<Pki>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(RENEW_OWN_INTERVAL) => {}
        }
        let pki = pki.clone();
        match tokio::task::spawn_blocking(move || pki.renew_own(clock::now())).await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => tracing::info!("the server's own certificate renewed"),
            Ok(Err(error)) => {
                tracing::error!(%error, "the server's own certificate not renewed; devices refuse it once it ends");
            }
            Err(error) => {
                tracing::error!(%error, "renewing the server's own certificate ended badly")
            }
        }
    }
}

/// The database of a state folder.
pub(crate) fn database_path(state_dir: &Path) -> PathBuf {
    state_dir.join("dunlin.db")
}
