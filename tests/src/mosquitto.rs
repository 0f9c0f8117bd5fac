//! Debian's mosquitto as the fleet's broker: mutual TLS and the ACL file that the server writes.

use anyhow::{Context as _, bail};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running mosquitto; killed when dropped.
pub struct Mosquitto {
    child: Child,
    config: std::path::PathBuf,
    /// Its port on 127.0.0.1.
    pub port: u16,
}

/// A port that was free a moment ago.
///
/// # Errors
/// None is to be had.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}

impl Mosquitto {
    /// Starts it with the server's own PKI and ACL file, and waits until it listens.
    ///
    /// # Errors
    /// It is not installed, or does not start; its log is in the error.
    pub fn start(dir: &Path, pki: &Path, acl: &Path, port: u16) -> anyhow::Result<Self> {
        let log = dir.join("mosquitto.log");
        let text = format!(
            "per_listener_settings false\nallow_anonymous false\nacl_file {acl}\nlog_dest file {log}\nuser root\n\
             max_packet_size 2097152\nlistener {port} 127.0.0.1\ncafile {pki}/ca.pem\ncertfile {pki}/server.pem\n\
             keyfile {pki}/server.key\nrequire_certificate true\nuse_identity_as_username true\n\
             use_username_as_clientid true\n",
            acl = acl.display(),
            log = log.display(),
            pki = pki.display(),
        );
        Self::start_with(dir, &text, port)
    }

    /// Starts it with any configuration that logs to `mosquitto.log` in the folder, and waits until
    /// it listens.
    ///
    /// # Errors
    /// It is not installed, or does not start; its log is in the error.
    pub fn start_with(dir: &Path, text: &str, port: u16) -> anyhow::Result<Self> {
        let config = dir.join("mosquitto.conf");
        let log = dir.join("mosquitto.log");
        std::fs::write(&config, text)?;
        let child = spawn(&config)?;
        let mut this = Self {
            child,
            config,
            port,
        };
        this.wait_until_it_listens(&log)?;
        Ok(this)
    }

    /// Kills it without a goodbye and starts it again on the same port.
    ///
    /// # Errors
    /// It does not start.
    pub fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.config)?;
        let log = self.config.with_file_name("mosquitto.log");
        self.wait_until_it_listens(&log)
    }

    /// Has it read its configuration and its ACL file again, as `systemctl reload` does.
    ///
    /// # Errors
    /// It has ended.
    pub fn reload(&self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(
            pid,
            rustix::process::Signal::HUP,
        )?)
    }

    /// Ends it in order, so that it writes down what it holds, and starts it again on the same port.
    ///
    /// # Errors
    /// It does not end or start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.child.wait()?;
        self.child = spawn(&self.config)?;
        let log = self.config.with_file_name("mosquitto.log");
        self.wait_until_it_listens(&log)
    }

    fn wait_until_it_listens(&mut self, log: &Path) -> anyhow::Result<()> {
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > Duration::from_secs(10) {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                bail!("mosquitto did not start ({ended:?}): {log}");
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

fn spawn(config: &Path) -> anyhow::Result<Child> {
    // Debian puts it where an ordinary user's path does not look.
    let program = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .context("mosquitto is not installed: tests/run installs it")?;
    Command::new(program)
        .arg("-c")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting mosquitto")
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
