//! Whether the database takes writes, and whose fault it is when it refuses one.

use super::{Result, Store, StoreError};
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection as _, Error};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// A write is tried for the sake of knowing at most this often.
const PROBE_PERIOD: Duration = Duration::from_secs(5);

/// Primary result codes of SQLite that blame a statement or its values, not the database or its disk:
/// ERROR, TOOBIG, CONSTRAINT, MISMATCH, RANGE.
const CODES_OF_CONTENTS: [i32; 5] = [1, 18, 19, 20, 25];

/// How writes went of late.
#[derive(Debug, Default)]
pub(super) struct Writes {
    noted: std::sync::Mutex<Noted>,
    /// When a write was last tried, and why it failed if it did.
    probed: tokio::sync::Mutex<Option<(Instant, Option<String>)>>,
}

#[derive(Debug, Default)]
struct Noted {
    done: Option<Instant>,
    failing: Option<String>,
}

impl StoreError {
    /// Whether what was to be written is at fault, so that trying again will not help. Otherwise it is
    /// the database or its disk (full, unreadable, locked): what was refused may be stored later.
    #[must_use]
    pub fn is_of_contents(&self) -> bool {
        match self {
            Self::Open { .. } => false,
            Self::Sql(Error::Database(error)) => {
                let code = error.code().and_then(|code| code.parse::<i32>().ok());
                code.is_some_and(|code| CODES_OF_CONTENTS.contains(&(code & 0xff)))
            }
            Self::Sql(error) => matches!(
                error,
                Error::Encode(_)
                    | Error::Decode(_)
                    | Error::ColumnDecode { .. }
                    | Error::RowNotFound
            ),
            Self::Damaged { .. }
            | Self::Unwritable { .. }
            | Self::Conflict(_)
            | Self::NotFound(_) => true,
        }
    }
}

impl Store {
    /// Whether the database takes a transaction that writes.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping_write(&self) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("UPDATE meta SET value = value WHERE key = 'epoch'")
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Notes how a write went that is tried until it is done. One that is refused for its contents
    /// shows that the database works.
    pub fn note_write(&self, outcome: Result<(), &StoreError>) {
        let mut noted = self.noted();
        match outcome {
            Err(error) if !error.is_of_contents() => noted.failing = Some(error.to_string()),
            _ => {
                *noted = Noted {
                    done: Some(Instant::now()),
                    failing: None,
                };
            }
        }
    }

    /// Whether the database takes writes: by those that were noted, or, if none was for five seconds,
    /// by one small transaction, whose outcome holds for five seconds.
    ///
    /// # Errors
    /// It does not, and why.
    pub async fn check_writes(&self) -> Result<(), String> {
        // Held meanwhile, so that of many who ask at once one tries.
        let mut probed = self.writes.probed.lock().await;
        {
            let noted = self.noted();
            if let Some(why) = &noted.failing {
                return Err(why.clone());
            }
            if is_fresh(noted.done) {
                return Ok(());
            }
        }
        if let Some((at, failed)) = &*probed
            && is_fresh(Some(*at))
        {
            return failed.clone().map_or(Ok(()), Err);
        }
        // Somebody is writing just now, which may take long and is no fault.
        if self.writer.size() > 0 && self.writer.num_idle() == 0 {
            return Ok(());
        }
        let failed = self.ping_write().await.err().map(|e| e.to_string());
        *probed = Some((Instant::now(), failed.clone()));
        failed.map_or(Ok(()), Err)
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.writes
            .noted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_fresh(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at.elapsed() < PROBE_PERIOD)
}

/// Whether a connection that was given back may be used again. SQLite ends a transaction by itself when
/// the disk is full or fails; sqlx counts it as open still, and none would ever begin there again.
pub(super) async fn is_usable(conn: &mut SqliteConnection) -> sqlx::Result<bool> {
    // Answered after the rollback of a transaction that was dropped.
    conn.ping().await?;
    Ok(!conn.is_in_transaction())
}
