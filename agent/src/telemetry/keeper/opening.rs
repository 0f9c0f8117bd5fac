//! Opens what is in the folder, and what is done when it is damaged.

use super::tell;
use crate::telemetry::boot::Counter;
use crate::telemetry::buffer::{Folder, OPENINGS_MAX};
use crate::telemetry::evict::Eviction;
use crate::telemetry::journal::Journal;
use crate::telemetry::journaled::{JournaledStore, Replayed};
use crate::telemetry::segment::Meta;
use crate::telemetry::store::StoreError;
use std::collections::BTreeSet;

/// The store, open.
pub(super) struct Opened {
    pub(super) counter: Counter,
    pub(super) store: JournaledStore,
    pub(super) found: AtStart,
}

/// What was found.
#[derive(Default)]
pub(super) struct AtStart {
    pub(super) heads: Vec<(u64, Meta)>,
    pub(super) set_aside: Option<String>,
    pub(super) damage: Option<String>,
    pub(super) damaged: Vec<Eviction>,
    /// What the journal removed.
    pub(super) deleted: BTreeSet<u64>,
}

/// Opens the store. One that is damaged is set aside, and what only the journal has goes into a new one,
/// under the same boot and numbers: so what the server has of it already is known to it.
pub(super) fn open_store(folder: &Folder) -> Result<Opened, StoreError> {
    let died = folder.count_opening();
    let there = folder.settle()?;
    let Some(counter) = load_counter(folder)?.filter(|_| died < 2 * OPENINGS_MAX) else {
        return begin_anew(folder, there, died);
    };
    let why = if !there {
        counter.has_journal().then(|| "it is missing".to_owned())
    } else if died >= OPENINGS_MAX {
        Some(format!("{died} starts in a row died while opening it"))
    } else {
        match JournaledStore::open(folder, counter.boot()) {
            Ok((store, heads, replayed)) => {
                return Ok(opened(folder, counter, store, heads, replayed, None));
            }
            Err(StoreError::Damaged { problem, .. }) => Some(problem),
            Err(other) => return Err(other),
        }
    };
    let set_aside = why.map(|why| set_aside(folder, there, &why)).transpose()?;
    let (store, heads, replayed) = JournaledStore::renew(folder, counter.boot())?;
    let set_aside = set_aside.map(|why| format!("{why}; {}", tell::kept(&replayed)));
    Ok(opened(folder, counter, store, heads, replayed, set_aside))
}

/// The boot and its numbers: from their file, or else from the journal.
fn load_counter(folder: &Folder) -> Result<Option<Counter>, StoreError> {
    if let Some(counter) = Counter::load(folder.dir())? {
        return Ok(Some(counter));
    }
    let known = Journal::boot(folder.dir()).map_err(|e| StoreError::Medium {
        path: folder.dir().join("journal"),
        what: "reading its boot id",
        problem: e.to_string(),
    })?;
    let Some((boot, used)) = known else {
        return Ok(None);
    };
    tracing::warn!(%boot, used, "the file with the boot id is lost: the journal knows it");
    let counter = Counter::restored(folder.dir(), boot, used);
    counter.save()?;
    Ok(Some(counter))
}

fn begin_anew(folder: &Folder, there: bool, died: u32) -> Result<Opened, StoreError> {
    let why = if died < 2 * OPENINGS_MAX {
        "its boot id is lost".to_owned()
    } else {
        format!("{died} starts in a row died while opening it; the journal is given up, too")
    };
    let set_aside = there.then(|| set_aside(folder, there, &why)).transpose()?;
    let counter = Counter::begin(folder.dir())?;
    let store = JournaledStore::create(folder, counter.boot())?;
    let replayed = Replayed::default();
    Ok(opened(
        folder,
        counter,
        store,
        Vec::new(),
        replayed,
        set_aside,
    ))
}

fn set_aside(folder: &Folder, there: bool, why: &str) -> Result<String, StoreError> {
    if !there {
        return Ok(why.to_owned());
    }
    let aside = folder.set_aside()?;
    Ok(format!("{why}; it is kept as {}", aside.display()))
}

fn opened(
    folder: &Folder,
    mut counter: Counter,
    store: JournaledStore,
    heads: Vec<(u64, Meta)>,
    replayed: Replayed,
    set_aside: Option<String>,
) -> Opened {
    folder.opened();
    let lost = replayed.lost.keys().next_back();
    let last = heads.iter().map(|(n, _)| *n).chain(lost.copied()).max();
    if let Some(last) = last {
        counter.skip_past(last);
    }
    let damage = replayed.damage.as_ref();
    // Before there ever was one, or while there was no room for it, none is missing.
    let damage = damage.filter(|_| counter.has_journal());
    let damage = damage.and_then(|damage| tell::damage(damage, &replayed.lost));
    let found = AtStart {
        damaged: tell::evictions(&replayed.lost),
        heads,
        set_aside,
        damage,
        deleted: replayed.deleted,
    };
    if let Err(e) = counter.note_journal(store.has_journal()) {
        tracing::debug!(problem = %e, "whether there is a journal is not remembered");
    }
    Opened {
        counter,
        store,
        found,
    }
}
