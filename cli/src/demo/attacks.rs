//! Bundles put straight in a device's way, past the server's own check.

use super::captured::Captured;
use super::story::{POLL_MS, STEP_TIMEOUT_MS, Story};
use super::summary::RefusalSummary;
use crate::pack::PackedBundle;
use anyhow::Context as _;
use dunlin_protocol::id::{DeviceId, Digest};
use dunlin_protocol::report::Progress;
use std::time::{Duration, Instant};

impl Story {
    /// Each past the server's own check, straight in the way of one device.
    pub(super) async fn attacks(&mut self, v1: &PackedBundle) -> anyhow::Result<()> {
        self.heading("a captured server: its checks are gone around, its own keys are used");
        let captured = Captured::open(&self.dir.join("server")).await?;

        let [first, second, third] = self.victims()?;

        // Version 4 is version 3's model again: only version 3's canaries ever had its blob.
        let v4 = self.pack("v3", Some(4), None, "v4")?;
        self.publish(std::slice::from_ref(&v4), 2).await?;
        let model = &v4.manifest.files.model;
        let blob = model.transport().0;
        captured.flip_bit(model)?;
        let said = format!(
            "published with blob {} whole; flipped on disk since",
            blob.short()
        );
        self.attack(&captured, first, "one flipped bit", &v4, said, "hash")
            .await?;
        captured.flip_bit(model)?;

        // The floor rises to 2: version 1 is closed for good.
        let v2_floor = self.pack("v2", None, Some(2), "v2-floor")?;
        self.publish(std::slice::from_ref(&v2_floor), 2).await?;
        let said = self.server_refuses_version(second, 1).await?;
        self.attack(
            &captured,
            second,
            "below its rollback floor",
            v1,
            said,
            "below_floor",
        )
        .await?;

        let v5 = self.pack("v1", Some(5), None, "v5")?;
        let few = self.signed(std::slice::from_ref(&v5), 1)?;
        let said =
            match crate::publish::publish(&self.session()?.client, std::slice::from_ref(&v5), &few)
                .await
            {
                Ok(_) => "published it".to_owned(),
                Err(refusal) => refusal.to_string(),
            };
        captured.serve_targets(&few)?;
        self.attack(
            &captured,
            third,
            "signed by too few keys",
            &v5,
            said,
            "threshold",
        )
        .await?;
        Ok(())
    }

    /// Three devices that were no canaries of version 3.
    fn victims(&self) -> anyhow::Result<[usize; 3]> {
        let canaries = self.rollouts.last().map_or(&[][..], |r| &r.canaries);
        let spared = |id: &str| canaries.iter().all(|c| c != id);
        let mut others = (0..self.devices.len()).filter(|&n| spared(self.devices[n].id.as_str()));
        let mut next = || others.next().context("no device is left to attack");
        Ok([next()?, next()?, next()?])
    }

    async fn server_refuses_version(&self, device: usize, version: u64) -> anyhow::Result<String> {
        let device = &self.devices.get(device).context("no such device")?.id;
        let pinned = self
            .session()?
            .client
            .pin_device(device, &self.family, version)
            .await;
        Ok(match pinned {
            Ok(_) => "accepted it".to_owned(),
            Err(refusal) => refusal.to_string(),
        })
    }

    /// Orders a device to run a bundle and waits for its refusal.
    async fn attack(
        &mut self,
        captured: &Captured,
        device: usize,
        attack: &str,
        bundle: &PackedBundle,
        server_said: String,
        expected: &str,
    ) -> anyhow::Result<()> {
        let id = self
            .devices
            .get(device)
            .context("no such device")?
            .id
            .clone();
        let (version, digest) = (bundle.manifest.version, bundle.digest());
        captured.order(&id, &self.family, version, digest).await?;
        let refusal = self.refusal(&id, digest).await?;
        let (code, detail) = refusal.unwrap_or(("none".to_owned(), "not refused".to_owned()));
        self.say(&format!("{attack}: {id} refuses version {version}"));
        self.say(&format!("  server: {server_said}"));
        self.say(&format!("  device: {detail} ({code})"));
        let still = self
            .reported(&id)
            .await?
            .and_then(|r| r.active)
            .map(|a| a.version);
        self.check(
            &format!("{attack}, in the way of {id}"),
            format!("refused: {expected}; version 2 serves"),
            format!(
                "refused: {code}; version {} serves",
                still.map_or("none".to_owned(), |v| v.to_string())
            ),
        );
        self.refusals.push(RefusalSummary {
            attack: attack.to_owned(),
            device: id.to_string(),
            code,
            detail,
            server_said,
        });
        Ok(())
    }

    async fn refusal(
        &self,
        device: &DeviceId,
        digest: Digest,
    ) -> anyhow::Result<Option<(String, String)>> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(STEP_TIMEOUT_MS) {
            if let Some(reported) = self.reported(device).await?
                && reported.target.as_ref().is_some_and(|t| t.digest == digest)
                && reported.progress.is_terminal()
            {
                return Ok(match reported.progress {
                    Progress::Refused(f) => Some((f.code, f.detail)),
                    other => Some((format!("{other:?}"), String::new())),
                });
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
        Ok(None)
    }
}
