//! Alert rules, where they stand, what they told, and who is still to be told.

use super::{Result, Store, StoreError, from_json, to_json};
use crate::alert::rule::Rule;
use crate::alert::track::Track;
use serde_json::Value;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};
use std::collections::BTreeMap;

/// Most deliveries that wait or are dead, together; the oldest dead ones go first.
const DELIVERIES_MAX: i64 = 10_000;

/// Rule and subject.
pub type TrackKey = (String, String);

/// An alert.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertRow {
    /// Counts up.
    pub id: i64,
    /// Name of its rule.
    pub rule: String,
    /// `FAMILY/VERSION`, or a device's id.
    pub subject: String,
    /// As the rule says.
    pub severity: String,
    /// Since when it was so, in milliseconds since 1970.
    pub since_ms: i64,
    /// When it was told.
    pub fired_ms: i64,
    /// When it was over, if it is.
    pub resolved_ms: Option<i64>,
    /// Whether nobody was told, because of a silence.
    pub silenced: bool,
    /// The numbers it rested on.
    pub seen: Value,
}

/// An alert that begins.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAlert {
    /// Name of its rule.
    pub rule: String,
    /// As in [`AlertRow`].
    pub subject: String,
    /// As in [`AlertRow`].
    pub severity: String,
    /// As in [`AlertRow`].
    pub since_ms: i64,
    /// As in [`AlertRow`].
    pub silenced: bool,
    /// As in [`AlertRow`].
    pub seen: Value,
}

/// What one look changes, all of it or nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    /// Where subjects stand now.
    pub tracks: BTreeMap<TrackKey, Track>,
    /// Alerts that begin.
    pub fired: Vec<NewAlert>,
    /// Alerts that end.
    pub resolved: Vec<TrackKey>,
    /// Webhook and body.
    pub deliveries: Vec<(String, String)>,
}

/// A time in which nobody is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilenceRow {
    /// Counts up.
    pub id: i64,
    /// Of this rule; `None`: of all.
    pub rule: Option<String>,
    /// Of this subject; `None`: of all.
    pub subject: Option<String>,
    /// Until then, in milliseconds since 1970.
    pub until_ms: i64,
    /// Why.
    pub reason: String,
    /// Whose doing.
    pub made_by: String,
}

/// Somebody who is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookRow {
    /// Its name.
    pub name: String,
    /// Where.
    pub url: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// Deliveries that wait.
    pub waiting: i64,
    /// Deliveries that were given up.
    pub dead: i64,
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Counts up.
    pub id: i64,
    /// Whom.
    pub webhook: String,
    /// Where.
    pub url: String,
    /// What its signature is made with.
    pub secret: String,
    /// What.
    pub body: String,
    /// Since when, in milliseconds since 1970.
    pub created_ms: i64,
    /// In vain so far.
    pub attempts: i64,
    /// What the last attempt met.
    pub last_error: Option<String>,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// It was taken.
    Delivered,
    /// Not yet.
    Again {
        /// When to try again, in milliseconds since 1970.
        next_ms: i64,
        /// Why.
        error: String,
    },
    /// It is given up.
    Dead {
        /// Why.
        error: String,
    },
}

impl Store {
    /// Every rule, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn alert_rules(&self) -> Result<Vec<Rule>> {
        let rows = sqlx::query("SELECT rule FROM alert_rules ORDER BY name")
            .fetch_all(&self.reader)
            .await?;
        rows.iter()
            .map(|row| from_json("alert rule", row.try_get("rule")?))
            .collect()
    }

    /// Puts a rule in, or in an earlier one's place: what fired goes on, and ends by the new one.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]: there are `rules_max` others.
    pub async fn put_alert_rule(&self, rule: &Rule, rules_max: usize, now_ms: i64) -> Result<()> {
        let mut change = self.begin().await?;
        let others: i64 = sqlx::query_scalar("SELECT count(*) FROM alert_rules WHERE name <> ?")
            .bind(&rule.name)
            .fetch_one(&mut *change)
            .await?;
        if usize::try_from(others).unwrap_or(usize::MAX) >= rules_max {
            let full = format!("there are {rules_max} alert rules already, no more are kept");
            return Err(StoreError::Conflict(full));
        }
        sqlx::query(
            "INSERT INTO alert_rules (name, rule, created_ms) VALUES (?, ?, ?)
             ON CONFLICT (name) DO UPDATE SET rule = excluded.rule, created_ms = excluded.created_ms",
        )
        .bind(&rule.name)
        .bind(to_json("alert rule", rule)?)
        .bind(now_ms)
        .execute(&mut *change)
        .await?;
        // How long another condition has been so says nothing of this one.
        sqlx::query(
            "DELETE FROM alert_tracks WHERE rule = ? AND json_extract(track, '$.state') = 'rising'",
        )
        .bind(&rule.name)
        .execute(&mut *change)
        .await?;
        Ok(change.commit().await?)
    }

    /// Removes a rule; its alerts end, and nobody is told.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]
    pub async fn delete_alert_rule(&self, name: &str, now_ms: i64) -> Result<()> {
        let mut change = self.begin().await?;
        if !remove_rule(&mut change, name, now_ms).await? {
            return Err(StoreError::NotFound(format!("no alert rule {name}")));
        }
        Ok(change.commit().await?)
    }

    /// Where subjects stand that are not quiet.
    ///
    /// # Errors
    /// The database failed.
    pub async fn alert_tracks(&self) -> Result<BTreeMap<TrackKey, Track>> {
        let rows = sqlx::query("SELECT rule, subject, track FROM alert_tracks")
            .fetch_all(&self.reader)
            .await?;
        let track = |row: &SqliteRow| {
            let key = (row.try_get("rule")?, row.try_get("subject")?);
            Ok((key, from_json("alert track", row.try_get("track")?)?))
        };
        rows.iter().map(track).collect()
    }

    /// Stores what a look found. What belongs to a rule that is gone meanwhile is passed over.
    ///
    /// # Errors
    /// The database failed; nothing of it is stored then.
    pub async fn apply_look(&self, look: &Look, now_ms: i64) -> Result<()> {
        let mut change = self.begin().await?;
        for ((rule, subject), track) in &look.tracks {
            put_track(&mut change, rule, subject, track).await?;
        }
        for alert in &look.fired {
            insert_alert(&mut change, alert, now_ms).await?;
        }
        for (rule, subject) in &look.resolved {
            sqlx::query(
                "UPDATE alerts SET resolved_ms = ?
                 WHERE rule = ? AND subject = ? AND resolved_ms IS NULL",
            )
            .bind(now_ms)
            .bind(rule)
            .bind(subject)
            .execute(&mut *change)
            .await?;
        }
        for (webhook, body) in &look.deliveries {
            sqlx::query(
                "INSERT INTO deliveries (webhook, body, created_ms, attempts, next_ms, dead)
                 SELECT name, ?, ?, 0, ?, 0 FROM webhooks WHERE name = ?",
            )
            .bind(body)
            .bind(now_ms)
            .bind(now_ms)
            .bind(webhook)
            .execute(&mut *change)
            .await?;
        }
        bound_deliveries(&mut change).await?;
        Ok(change.commit().await?)
    }

    /// Alerts, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn alerts(&self, firing_only: bool, limit: u32) -> Result<Vec<AlertRow>> {
        let rows = sqlx::query(
            "SELECT * FROM alerts WHERE resolved_ms IS NULL OR NOT ? ORDER BY id DESC LIMIT ?",
        )
        .bind(firing_only)
        .bind(limit)
        .fetch_all(&self.reader)
        .await?;
        let alert = |row: &SqliteRow| {
            Ok(AlertRow {
                id: row.try_get("id")?,
                rule: row.try_get("rule")?,
                subject: row.try_get("subject")?,
                severity: row.try_get("severity")?,
                since_ms: row.try_get("since_ms")?,
                fired_ms: row.try_get("fired_ms")?,
                resolved_ms: row.try_get("resolved_ms")?,
                silenced: row.try_get("silenced")?,
                seen: from_json("alert", row.try_get("seen")?)?,
            })
        };
        rows.iter().map(alert).collect()
    }

    /// Forgets alerts that were over before then.
    ///
    /// # Errors
    /// The database failed.
    pub async fn prune_alerts(&self, older_than_ms: i64) -> Result<u64> {
        let gone = sqlx::query("DELETE FROM alerts WHERE resolved_ms < ?")
            .bind(older_than_ms)
            .execute(&self.writer)
            .await?;
        Ok(gone.rows_affected())
    }

    /// Makes a silence; its number.
    ///
    /// # Errors
    /// The database failed.
    pub async fn insert_silence(&self, silence: &SilenceRow, now_ms: i64) -> Result<i64> {
        let mut change = self.begin().await?;
        sqlx::query("DELETE FROM silences WHERE until_ms <= ?")
            .bind(now_ms)
            .execute(&mut *change)
            .await?;
        let made = sqlx::query(
            "INSERT INTO silences (rule, subject, until_ms, reason, made_by) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(&silence.rule)
        .bind(&silence.subject)
        .bind(silence.until_ms)
        .bind(&silence.reason)
        .bind(&silence.made_by)
        .execute(&mut *change)
        .await?;
        change.commit().await?;
        Ok(made.last_insert_rowid())
    }

    /// Silences that still hold.
    ///
    /// # Errors
    /// The database failed.
    pub async fn silences(&self, now_ms: i64) -> Result<Vec<SilenceRow>> {
        let rows = sqlx::query("SELECT * FROM silences WHERE until_ms > ? ORDER BY id")
            .bind(now_ms)
            .fetch_all(&self.reader)
            .await?;
        let silence = |row: &SqliteRow| {
            Ok(SilenceRow {
                id: row.try_get("id")?,
                rule: row.try_get("rule")?,
                subject: row.try_get("subject")?,
                until_ms: row.try_get("until_ms")?,
                reason: row.try_get("reason")?,
                made_by: row.try_get("made_by")?,
            })
        };
        rows.iter().map(silence).collect()
    }

    /// Ends a silence.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]
    pub async fn delete_silence(&self, id: i64) -> Result<()> {
        let gone = sqlx::query("DELETE FROM silences WHERE id = ?")
            .bind(id)
            .execute(&self.writer)
            .await?;
        if gone.rows_affected() == 0 {
            return Err(StoreError::NotFound(format!("no silence {id}")));
        }
        Ok(())
    }

    /// Makes a webhook.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]: there is one of that name, or as many as are kept.
    pub async fn insert_webhook(
        &self,
        name: &str,
        url: &str,
        secret: &str,
        webhooks_max: i64,
        now_ms: i64,
    ) -> Result<()> {
        let made = sqlx::query(
            "INSERT INTO webhooks (name, url, secret, created_ms)
             SELECT ?, ?, ?, ? WHERE (SELECT count(*) FROM webhooks) < ?
             ON CONFLICT DO NOTHING",
        )
        .bind(name)
        .bind(url)
        .bind(secret)
        .bind(now_ms)
        .bind(webhooks_max)
        .execute(&self.writer)
        .await?;
        if made.rows_affected() == 0 {
            let why = format!("there is a webhook {name} already, or {webhooks_max} others");
            return Err(StoreError::Conflict(why));
        }
        Ok(())
    }

    /// Every webhook, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn webhooks(&self) -> Result<Vec<WebhookRow>> {
        let rows = sqlx::query(
            "SELECT name, url, w.created_ms AS created_ms,
                 coalesce(sum(dead = 0), 0) AS waiting, coalesce(sum(dead = 1), 0) AS dead
             FROM webhooks w LEFT JOIN deliveries ON webhook = name GROUP BY name ORDER BY name",
        )
        .fetch_all(&self.reader)
        .await?;
        let webhook = |row: &SqliteRow| {
            Ok(WebhookRow {
                name: row.try_get("name")?,
                url: row.try_get("url")?,
                created_ms: row.try_get("created_ms")?,
                waiting: row.try_get("waiting")?,
                dead: row.try_get("dead")?,
            })
        };
        rows.iter().map(webhook).collect()
    }

    /// Removes a webhook and what it was still to be told.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]
    pub async fn delete_webhook(&self, name: &str) -> Result<()> {
        let gone = sqlx::query("DELETE FROM webhooks WHERE name = ?")
            .bind(name)
            .execute(&self.writer)
            .await?;
        if gone.rows_affected() == 0 {
            return Err(StoreError::NotFound(format!("no webhook {name}")));
        }
        Ok(())
    }

    /// Deliveries that are due, the oldest of each webhook: they arrive in order.
    ///
    /// # Errors
    /// The database failed.
    pub async fn due_deliveries(&self, now_ms: i64) -> Result<Vec<DeliveryRow>> {
        let rows = sqlx::query(
            "SELECT d.*, url, secret FROM deliveries d JOIN webhooks ON name = webhook
             WHERE d.id IN (SELECT min(id) FROM deliveries WHERE dead = 0 GROUP BY webhook)
                 AND next_ms <= ? ORDER BY d.id",
        )
        .bind(now_ms)
        .fetch_all(&self.reader)
        .await?;
        rows.iter().map(delivery).collect()
    }

    /// Deliveries that were given up, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn dead_deliveries(&self, limit: u32) -> Result<Vec<DeliveryRow>> {
        let rows = sqlx::query(
            "SELECT d.*, url, secret FROM deliveries d JOIN webhooks ON name = webhook
             WHERE dead = 1 ORDER BY d.id DESC LIMIT ?",
        )
        .bind(limit)
        .fetch_all(&self.reader)
        .await?;
        rows.iter().map(delivery).collect()
    }

    /// Writes down what became of an attempt.
    ///
    /// # Errors
    /// The database failed.
    pub async fn attempted(&self, id: i64, attempt: &Attempt) -> Result<()> {
        let query = match attempt {
            Attempt::Delivered => sqlx::query("DELETE FROM deliveries WHERE id = ?"),
            Attempt::Again { next_ms, error } => sqlx::query(
                "UPDATE deliveries SET attempts = attempts + 1, next_ms = ?, last_error = ?
                 WHERE id = ?",
            )
            .bind(next_ms)
            .bind(error),
            Attempt::Dead { error } => sqlx::query(
                "UPDATE deliveries SET attempts = attempts + 1, dead = 1, last_error = ?
                 WHERE id = ?",
            )
            .bind(error),
        };
        query.bind(id).execute(&self.writer).await?;
        Ok(())
    }

    /// Tries a delivery that was given up once more.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]
    pub async fn redeliver(&self, id: i64, now_ms: i64) -> Result<()> {
        let again = sqlx::query(
            "UPDATE deliveries SET dead = 0, attempts = 0, next_ms = ? WHERE id = ? AND dead = 1",
        )
        .bind(now_ms)
        .bind(id)
        .execute(&self.writer)
        .await?;
        if again.rows_affected() == 0 {
            return Err(StoreError::NotFound(format!("no dead delivery {id}")));
        }
        Ok(())
    }
}

fn delivery(row: &SqliteRow) -> Result<DeliveryRow> {
    Ok(DeliveryRow {
        id: row.try_get("id")?,
        webhook: row.try_get("webhook")?,
        url: row.try_get("url")?,
        secret: row.try_get("secret")?,
        body: row.try_get("body")?,
        created_ms: row.try_get("created_ms")?,
        attempts: row.try_get("attempts")?,
        last_error: row.try_get("last_error")?,
    })
}

async fn remove_rule(
    change: &mut Transaction<'static, Sqlite>,
    name: &str,
    now_ms: i64,
) -> Result<bool> {
    let ended = "UPDATE alerts SET resolved_ms = ? WHERE rule = ? AND resolved_ms IS NULL";
    sqlx::query(ended)
        .bind(now_ms)
        .bind(name)
        .execute(&mut **change)
        .await?;
    let gone = sqlx::query("DELETE FROM alert_rules WHERE name = ?")
        .bind(name)
        .execute(&mut **change)
        .await?;
    Ok(gone.rows_affected() > 0)
}

async fn put_track(
    change: &mut Transaction<'static, Sqlite>,
    rule: &str,
    subject: &str,
    track: &Track,
) -> Result<()> {
    let query = if *track == Track::Quiet {
        sqlx::query("DELETE FROM alert_tracks WHERE rule = ? AND subject = ?")
            .bind(rule)
            .bind(subject)
    } else {
        sqlx::query(
            "INSERT INTO alert_tracks (rule, subject, track)
             SELECT name, ?, ? FROM alert_rules WHERE name = ?
             ON CONFLICT (rule, subject) DO UPDATE SET track = excluded.track",
        )
        .bind(subject)
        .bind(to_json("alert track", track)?)
        .bind(rule)
    };
    query.execute(&mut **change).await?;
    Ok(())
}

async fn insert_alert(
    change: &mut Transaction<'static, Sqlite>,
    alert: &NewAlert,
    now_ms: i64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO alerts (rule, subject, severity, since_ms, fired_ms, silenced, seen)
         SELECT name, ?, ?, ?, ?, ?, ? FROM alert_rules WHERE name = ?
         ON CONFLICT DO NOTHING",
    )
    .bind(&alert.subject)
    .bind(&alert.severity)
    .bind(alert.since_ms)
    .bind(now_ms)
    .bind(alert.silenced)
    .bind(to_json("alert", &alert.seen)?)
    .bind(&alert.rule)
    .execute(&mut **change)
    .await?;
    Ok(())
}

async fn bound_deliveries(change: &mut Transaction<'static, Sqlite>) -> Result<()> {
    sqlx::query(
        "DELETE FROM deliveries WHERE id IN (
             SELECT id FROM deliveries ORDER BY dead DESC, id
             LIMIT max(0, (SELECT count(*) FROM deliveries) - ?))",
    )
    .bind(DELIVERIES_MAX)
    .execute(&mut **change)
    .await?;
    Ok(())
}
