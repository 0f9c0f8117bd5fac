//! An HTTPS server with mutual TLS whose answers can be spoilt.

use bytes::Bytes;
use dunlin_agent::identity::{DeviceKey, Enrolled, Identity};
use dunlin_protocol::id::Digest;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

/// How an answer is spoilt.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Breaks off after so many bytes, once.
    CutAfterOnce(usize),
    /// One bit is wrong.
    FlippedBit,
    /// One bit is wrong, the first time.
    FlippedBitOnce,
    /// Never ends, no length.
    Endless,
    /// A few bytes, then none.
    Stalls,
    /// Not even a head.
    Silent,
    /// Ranges are not understood.
    NoRanges,
    /// Only a status.
    Status(u16),
}

type Enroll = Box<dyn Fn(&Server, &[u8]) -> (u16, Vec<u8>) + Send + Sync>;

/// What the server answers with.
#[derive(Default)]
pub(crate) struct Content {
    /// Content by path below `/repository/`.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Faults by the start of a path below `/repository/`.
    pub(crate) faults: Vec<(String, Fault)>,
    /// Path and first byte of every request.
    pub(crate) log: Vec<(String, u64)>,
}

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) content: Mutex<Content>,
    ca: CertifiedIssuer<'static, KeyPair>,
    enroll: Mutex<Option<Enroll>>,
}

impl Server {
    pub(crate) async fn start() -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "test fleet CA");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(Self {
            url: format!(
                "https://localhost:{}",
                listener.local_addr().unwrap().port()
            ),
            content: Mutex::default(),
            enroll: Mutex::default(),
            ca,
        });
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server.tls()));
        tokio::spawn(serve(Arc::clone(&server), listener, acceptor));
        server
    }

    fn tls(&self) -> rustls::ServerConfig {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.ca).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let provider = dunlin_agent::identity::provider();
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .unwrap();
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![leaf.der().clone(), self.ca.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap()
    }

    pub(crate) fn ca_sha256(&self) -> Digest {
        Digest::of(self.ca.der())
    }

    pub(crate) fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    /// A device certificate for a request.
    pub(crate) fn certify(&self, csr_pem: &str, name: &str) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        request.params.distinguished_name = rcgen::DistinguishedName::new();
        request
            .params
            .distinguished_name
            .push(DnType::CommonName, name);
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.signed_by(&self.ca).unwrap().pem()
    }

    /// Identity of a device that is enrolled already.
    pub(crate) fn identity(&self, state_dir: &Path) -> Identity {
        let key = DeviceKey::load_or_create(state_dir).unwrap();
        let enrolled = Enrolled {
            fleet: "demo".parse().unwrap(),
            device: "edge-1".parse().unwrap(),
            certificate_pem: self.certify(&key.csr_pem("x").unwrap(), "edge-1"),
            ca_pem: self.ca_pem(),
            mqtt_host: "localhost".to_owned(),
            mqtt_port: 8883,
            repository_url: self.url.clone(),
            labels: BTreeMap::new(),
            key_file: "device.key".to_owned(),
        };
        Identity::check(key, enrolled, &self.ca_sha256()).unwrap()
    }

    pub(crate) fn on_enroll(
        &self,
        answer: impl Fn(&Self, &[u8]) -> (u16, Vec<u8>) + Send + Sync + 'static,
    ) {
        *self.enroll.lock().unwrap() = Some(Box::new(answer));
    }

    pub(crate) fn spoil(&self, path: &str, fault: Fault) {
        let mut content = self.content.lock().unwrap();
        content.faults = vec![(path.to_owned(), fault)];
    }

    pub(crate) fn heal(&self) {
        self.content.lock().unwrap().faults.clear();
    }

    /// Requests for paths that begin so, since the last call.
    pub(crate) fn asked(&self, start: &str) -> Vec<(String, u64)> {
        let mut content = self.content.lock().unwrap();
        let mut log = std::mem::take(&mut content.log);
        log.retain(|(path, _)| path.starts_with(start));
        log
    }

    fn fault(&self, path: &str) -> Option<Fault> {
        let mut content = self.content.lock().unwrap();
        let at = content
            .faults
            .iter()
            .position(|(start, _)| path.starts_with(start))?;
        let fault = content.faults[at].1.clone();
        if matches!(fault, Fault::CutAfterOnce(_) | Fault::FlippedBitOnce) {
            content.faults.remove(at);
        }
        Some(fault)
    }

    fn get(&self, request: &Request<Incoming>, authenticated: bool) -> Response<Scripted> {
        let Some(path) = request.uri().path().strip_prefix("/repository/") else {
            return status(404);
        };
        if !authenticated {
            return status(401);
        }
        let range = request.headers().get(header::RANGE).map(|value| {
            let text = value.to_str().unwrap();
            let first = text
                .strip_prefix("bytes=")
                .unwrap()
                .strip_suffix('-')
                .unwrap();
            first.parse::<usize>().unwrap()
        });
        let fault = self.fault(path);
        let first = match fault {
            Some(Fault::NoRanges) => 0,
            _ => range.unwrap_or(0),
        };
        let mut content = self.content.lock().unwrap();
        content
            .log
            .push((path.to_owned(), range.unwrap_or(0) as u64));
        let Some(mut bytes) = content.files.get(path).cloned() else {
            return status(404);
        };
        let total = bytes.len();
        if first >= total {
            return status(416);
        }
        if matches!(fault, Some(Fault::FlippedBit | Fault::FlippedBitOnce)) {
            bytes[total / 2] ^= 1;
        }
        let mut answer = Response::builder();
        if first > 0 {
            answer = answer.status(StatusCode::PARTIAL_CONTENT).header(
                header::CONTENT_RANGE,
                format!("bytes {first}-{}/{total}", total - 1),
            );
        }
        let data: Bytes = bytes.split_off(first).into();
        let script = match fault {
            Some(Fault::Status(code)) => return status(code),
            Some(Fault::Silent) => vec![Step::Wait],
            Some(Fault::Endless) => vec![Step::Forever(data)],
            Some(Fault::Stalls) => vec![Step::Data(data.slice(..data.len().min(10))), Step::Wait],
            Some(Fault::CutAfterOnce(n)) => {
                answer = answer.header(header::CONTENT_LENGTH, data.len());
                vec![Step::Data(data.slice(..n.min(data.len()))), Step::Fail]
            }
            _ => {
                answer = answer.header(header::CONTENT_LENGTH, data.len());
                let pieces = data.chunks(16 * 1024);
                pieces
                    .map(|p| Step::Data(Bytes::copy_from_slice(p)))
                    .collect()
            }
        };
        answer.body(Scripted(script.into())).unwrap()
    }
}

fn status(code: u16) -> Response<Scripted> {
    Response::builder()
        .status(code)
        .body(Scripted(VecDeque::new()))
        .unwrap()
}

async fn serve(
    server: Arc<Server>,
    listener: tokio::net::TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (server, acceptor) = (Arc::clone(&server), acceptor.clone());
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else {
                return;
            };
            let authenticated = tls.get_ref().1.peer_certificates().is_some();
            let service = service_fn(|request| answer(Arc::clone(&server), request, authenticated));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(tls), service)
                .await;
        });
    }
}

async fn answer(
    server: Arc<Server>,
    request: Request<Incoming>,
    authenticated: bool,
) -> Result<Response<Scripted>, Infallible> {
    if request.method() == Method::POST && request.uri().path() == "/enroll" {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let enroll = server.enroll.lock().unwrap();
        let (code, body) = enroll.as_ref().unwrap()(&server, &body);
        let mut response = status(code);
        response.body_mut().0.push_back(Step::Data(body.into()));
        return Ok(response);
    }
    let silent = matches!(
        server.content.lock().unwrap().faults.first(),
        Some((start, Fault::Silent)) if request.uri().path()["/repository/".len()..].starts_with(start)
    );
    if silent {
        std::future::pending::<()>().await;
    }
    Ok(server.get(&request, authenticated))
}

enum Step {
    Data(Bytes),
    Forever(Bytes),
    Wait,
    Fail,
    FailNow,
}

/// A body that does what it is told.
pub(crate) struct Scripted(VecDeque<Step>);

impl Body for Scripted {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.0.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Step::Forever(data)) => {
                self.0.push_front(Step::Forever(data.clone()));
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Step::Wait) => {
                self.0.push_front(Step::Wait);
                Poll::Pending
            }
            Some(Step::Fail) => {
                // What was said before goes out first.
                self.0.push_front(Step::FailNow);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::FailNow) => Poll::Ready(Some(Err(std::io::Error::other("cut")))),
        }
    }
}
