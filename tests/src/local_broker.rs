//! A mosquitto beside the device, as a sensor's gateway has one: no TLS, sessions and queues kept on
//! disk; and its own command-line clients.

use crate::mosquitto::{self, free_port};
use anyhow::Context as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A running broker; killed when dropped.
pub struct LocalBroker {
    broker: mosquitto::Mosquitto,
    /// User and password that it asks for.
    credentials: Option<(String, String)>,
}

impl LocalBroker {
    /// Starts it; with a user and password it lets nobody else in.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(dir: &Path, credentials: Option<(&str, &str)>) -> anyhow::Result<Self> {
        Self::start_with(dir, credentials, "")
    }

    /// As [`Self::start`], with more lines of configuration.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start_with(
        dir: &Path,
        credentials: Option<(&str, &str)>,
        more: &str,
    ) -> anyhow::Result<Self> {
        let dir = dir.join("local-broker");
        std::fs::create_dir_all(&dir)?;
        let port = free_port()?;
        let access = match credentials {
            None => "allow_anonymous true".to_owned(),
            Some((user, password)) => {
                let file = dir.join("passwords");
                std::fs::write(&file, format!("{user}:{password}\n"))?;
                let hashed = std::process::Command::new("mosquitto_passwd")
                    .arg("-U")
                    .arg(&file)
                    .status()?;
                anyhow::ensure!(hashed.success(), "mosquitto_passwd: {hashed}");
                format!("allow_anonymous false\npassword_file {}", file.display())
            }
        };
        let text = format!(
            "{access}\nlistener {port} 127.0.0.1\nuser root\npersistence true\npersistence_location {dir}/\n\
             max_queued_messages 0\nlog_dest file {dir}/mosquitto.log\n{more}\n",
            dir = dir.display()
        );
        Ok(Self {
            broker: mosquitto::Mosquitto::start_with(&dir, &text, port)?,
            credentials: credentials.map(|(user, password)| (user.to_owned(), password.to_owned())),
        })
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.broker.port
    }

    /// Ends it and starts it again on the same port; every connection is cut. (Killed, mosquitto
    /// itself loses what it acknowledged in the moment before.)
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.broker.restart()
    }

    fn client(&self, program: &str, first: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(first);
        command.args(["-h", "127.0.0.1", "-V", "mqttv5", "-p"]);
        command.arg(self.port().to_string()).kill_on_drop(true);
        if let Some((user, password)) = &self.credentials {
            command.args(["-u", user, "-P", password]);
        }
        command
    }

    /// `mosquitto_pub` at `QoS` 1 with more arguments; returns once the broker has the message.
    ///
    /// # Errors
    /// It fails.
    pub async fn publish(&self, topic: &str, payload: &str, more: &[&str]) -> anyhow::Result<()> {
        let mut command = self.client("mosquitto_pub", &[]);
        command
            .args(["-q", "1", "-t", topic, "-m", payload])
            .args(more);
        let output = command.output().await.context("mosquitto_pub")?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        Ok(())
    }

    /// `mosquitto_rr`: publishes a request and waits for the message on its response topic.
    ///
    /// # Errors
    /// It fails, or there is no answer.
    pub async fn request(
        &self,
        topic: &str,
        response_topic: &str,
        payload: &str,
    ) -> anyhow::Result<String> {
        let mut command = self.client("mosquitto_rr", &[]);
        command.args([
            "-q",
            "1",
            "-W",
            "60",
            "-t",
            topic,
            "-e",
            response_topic,
            "-m",
            payload,
        ]);
        let output = command.output().await.context("mosquitto_rr")?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `mosquitto_pub -l`: a message a line, over one connection.
    ///
    /// # Errors
    /// It fails.
    pub async fn publish_lines(&self, topic: &str, lines: &Path) -> anyhow::Result<()> {
        let mut command = self.client("mosquitto_pub", &[]);
        command.args(["-q", "1", "-l", "-t", topic]);
        command.stdin(std::fs::File::open(lines)?);
        let output = command.output().await.context("mosquitto_pub -l")?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        Ok(())
    }

    /// `mosquitto_sub` into memory, once it is subscribed; it may be killed and started again with
    /// the broker, in one session.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn subscribe(&self, topic: &str, client_id: &str) -> anyhow::Result<Heard> {
        // Into a pipe it would print whole blocks only.
        let mut command = self.client("stdbuf", &["-oL", "mosquitto_sub"]);
        command.args([
            "-q", "1", "-t", topic, "-i", client_id, "-c", "-x", "3600", "-d",
        ]);
        // Payload, content type, correlation data.
        command.args(["-F", "heard %t|%p|%C|%D"]);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&lines);
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let (mut read, mut ready) = (BufReader::new(stdout).lines(), Some(ready));
            while let Ok(Some(line)) = read.next_line().await {
                if line.starts_with("Subscribed")
                    && let Some(ready) = ready.take()
                {
                    let _ = ready.send(());
                }
                if let Some(heard) = line.strip_prefix("heard ") {
                    let mut lines = into.lock().unwrap_or_else(PoisonError::into_inner);
                    lines.push(heard.to_owned());
                }
            }
        });
        tokio::time::timeout(std::time::Duration::from_secs(10), is_ready).await??;
        Ok(Heard {
            lines,
            _child: child,
        })
    }
}

/// What a subscriber heard.
pub struct Heard {
    lines: Arc<Mutex<Vec<String>>>,
    _child: Child,
}

impl Heard {
    /// Until now: topic, payload, content type and correlation data, `|` between them.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.clone()
    }
}
