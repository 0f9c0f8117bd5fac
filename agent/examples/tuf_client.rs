//! A TUF client on the command line, made of the very code with which a device comes to a bundle, so
//! that other people's test suites and repositories can be held against it.
//!
//! ```text
//! tuf_client --metadata-dir DIR init ROOT_JSON
//! tuf_client --metadata-dir DIR --metadata-url URL refresh
//! tuf_client --metadata-dir DIR --metadata-url URL --target-name PATH [--target-name PATH …] \
//!            --target-base-url URL --target-dir DIR download
//! ```
//!
//! Accepted metadata is kept in the metadata folder under unversioned, percent-encoded names. Exit
//! status 0, or 1 with one line `error: … (code)`.
//!
//! Two things differ from a device. Plain `http` is spoken. And the time is the clock's as it is,
//! with no floor under it: a repository kept for tests may have been valid only before this program
//! was built.

use clap::{Parser, Subcommand};
use dunlin_agent::bundle::verify::{self, MetadataFolder, MetadataSource};
use dunlin_agent::bundle::{Kind, UpdateError};
use dunlin_agent::files::{self, Disk};
use dunlin_agent::http::{Client, Limits, Scheme};
use dunlin_protocol::trust::{
    FoundTarget, Role, TrustedSet, percent_encoded, percent_encoded_path,
};
use jiff::Timestamp;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Longest target that is held in memory, in bytes.
const TARGET_MAX_BYTES: u64 = 256 << 20;

#[derive(Debug, Parser)]
#[command(name = "tuf_client", about = "A TUF client made of the device's code")]
struct Arguments {
    /// Folder of the trusted metadata.
    #[arg(long, global = true)]
    metadata_dir: Option<PathBuf>,
    /// Where the repository's metadata is.
    #[arg(long, global = true)]
    metadata_url: Option<String>,
    /// Path of a target; several are fetched in order.
    #[arg(long, global = true)]
    target_name: Vec<String>,
    /// Where the repository's targets are.
    #[arg(long, global = true)]
    target_base_url: Option<String>,
    /// Folder for fetched targets.
    #[arg(long, global = true)]
    target_dir: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Trust this root; asks no server.
    Init {
        /// The root's file.
        root: PathBuf,
    },
    /// Update the top-level metadata.
    Refresh,
    /// Update, then fetch targets that are not here yet.
    Download,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), UpdateError> {
    let metadata_dir = needed(arguments.metadata_dir, "--metadata-dir")?;
    let stored = MetadataFolder::new(&Disk::native(), &metadata_dir);
    if let Action::Init { root } = arguments.action {
        let bytes = files::read_bounded(&root, Role::Root.max_bytes() as u64)?;
        files::create_private_dir(&metadata_dir)?;
        return Ok(stored.write(&Role::Root.into(), &bytes)?);
    }
    let server = Server {
        client: client(),
        metadata_url: with_slash(needed(arguments.metadata_url, "--metadata-url")?),
    };
    let downloads = match arguments.action {
        Action::Download => Some(Downloads {
            base_url: with_slash(needed(arguments.target_base_url, "--target-base-url")?),
            dir: needed(arguments.target_dir, "--target-dir")?,
            names: arguments.target_name,
        }),
        Action::Init { .. } | Action::Refresh => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| failed("runtime", e.to_string()))?;
    runtime.block_on(async {
        let mut set = verify::update_metadata(&server, &stored, Timestamp::now()).await?;
        if let Some(downloads) = downloads {
            downloads.run(&server, &stored, &mut set).await?;
        }
        Ok(())
    })
}

struct Downloads {
    base_url: String,
    dir: PathBuf,
    names: Vec<String>,
}

impl Downloads {
    /// One after the other; the first that fails ends it.
    async fn run(
        &self,
        server: &Server,
        stored: &MetadataFolder,
        set: &mut TrustedSet,
    ) -> Result<(), UpdateError> {
        if self.names.is_empty() {
            return Err(failed(
                "arguments",
                "download needs --target-name".to_owned(),
            ));
        }
        for name in &self.names {
            // 5.7 The target, as far as it is not here yet.
            let target = verify::find_target(server, stored, set, name).await?;
            self.fetch(server, &target, set.root().consistent_snapshot)
                .await?;
        }
        Ok(())
    }

    async fn fetch(
        &self,
        server: &Server,
        target: &FoundTarget,
        hash_prefixed: bool,
    ) -> Result<(), UpdateError> {
        let length = target.length;
        if length > TARGET_MAX_BYTES {
            return Err(failed(
                "too_large",
                format!(
                    "{}: {length} bytes, at most {TARGET_MAX_BYTES}",
                    target.path
                ),
            ));
        }
        let path = self.dir.join(file_name(&target.path)?);
        let held = files::read_if_there(&path, length);
        if let Ok(Some(bytes)) = held
            && target.verify_bytes(&bytes).is_ok()
        {
            return Ok(());
        }
        let remote = if hash_prefixed {
            target.consistent_path()
        } else {
            target.path.clone()
        };
        let url = format!("{}{}", self.base_url, percent_encoded_path(&remote));
        let bytes = server.client.get(&url, length).await?;
        // Only what is verified gets its name.
        let content = target.verify_bytes(&bytes)?;
        Ok(files::write_atomic(&path, &content, 0o644)?)
    }
}

/// One name in the target folder for a target path, whatever is in it.
fn file_name(path: &str) -> Result<String, UpdateError> {
    let name = percent_encoded(path);
    if name.bytes().all(|b| b == b'.') {
        return Err(failed("file", format!("{path:?} names no file")));
    }
    Ok(name)
}

struct Server {
    client: Client,
    metadata_url: String,
}

impl MetadataSource for Server {
    async fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, UpdateError> {
        let url = format!("{}{name}", self.metadata_url);
        Ok(self.client.get_if_there(&url, max_bytes).await?)
    }
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // No certificate is trusted: what is fetched is trusted for its signatures alone, and over TLS
    // only what a device is configured with would be right.
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let limits = Limits {
        connect_timeout: Duration::from_secs(10),
        request_timeout: Duration::from_secs(10),
        rate_window: Duration::from_secs(30),
        rate_min_bytes_s: 1024,
        bandwidth_bytes_s: 0,
    };
    Client::speaking(Scheme::HttpOrHttps, &tls, limits)
}

fn with_slash(mut url: String) -> String {
    if !url.ends_with('/') {
        url.push('/');
    }
    url
}

fn needed<T>(given: Option<T>, name: &str) -> Result<T, UpdateError> {
    given.ok_or_else(|| failed("arguments", format!("{name} is missing")))
}

fn failed(code: &'static str, detail: String) -> UpdateError {
    UpdateError {
        kind: Kind::Failed,
        code,
        detail,
    }
}
