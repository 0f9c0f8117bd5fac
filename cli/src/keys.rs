//! The offline keys and the ceremony around them: made where their holders are, used there, sent
//! nowhere. What travels between people are public keys, signing requests and signatures.
//!
//! * [`make`], [`pem`], [`passphrase`], [`public`]: one key at a time, on its holder's machine.
//! * [`plan`], [`root`]: the next root.
//! * [`request`], [`quorum`], [`changes`], [`sign`]: signing by files, and what is signed in words.
//! * [`delegate`]: a family handed to a team. [`server`]: the server's own keys. [`status`]: what
//!   expires when.
//! * [`folder`]: a folder with keys and the chain of roots.

pub mod changes;
pub mod delegate;
mod error;
pub mod folder;
pub mod holders;
pub mod make;
pub mod passphrase;
pub mod pem;
pub mod plan;
pub mod public;
pub mod quorum;
pub mod request;
pub mod root;
pub mod server;
pub mod show;
pub mod sign;
pub mod status;

pub use error::KeysError;
pub use folder::{
    Ceremony, first_root_digest, init, init_with, key_names, load, load_with, root_files,
    server_keys, trusted_root, trusted_roots,
};
pub(crate) use folder::{later, shown_version};

use crate::args::{KeysAction, KeysArgs};
use crate::failure::{Exit, Failure};

/// `dunlin keys`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &KeysArgs) -> Result<Exit, Failure> {
    let shared = &args.shared;
    match &args.action {
        KeysAction::Init(init) => folder::run_init(init, shared).await,
        KeysAction::Generate(generate) => make::generate(generate, shared.json),
        KeysAction::Import(import) => make::import(import, shared.json),
        KeysAction::Public(public) => make::public(public, shared.json),
        KeysAction::Passphrase(change) => make::change_passphrase(change, shared.json),
        KeysAction::Root(action) => root::run(action, shared).await,
        KeysAction::Rotate(rotate) => root::rotate(rotate, shared).await,
        KeysAction::Revoke(revoke) => root::revoke(revoke, shared).await,
        KeysAction::Inspect { request } => sign::inspect(request, shared.json),
        KeysAction::Sign(sign) => sign::sign(sign, shared.json),
        KeysAction::Combine(combine) => sign::combine(combine, shared.json),
        KeysAction::Delegate(delegate) => delegate::delegate(delegate, shared).await,
        KeysAction::Undelegate(undelegate) => delegate::undelegate(undelegate, shared).await,
        KeysAction::Server(action) => server::run(action, shared).await,
        KeysAction::Status(status) => status::run(status, shared).await,
        KeysAction::Show { dir } => show::show(dir, shared.json),
        KeysAction::UploadRoot { dir } => root::upload(dir, shared).await,
    }
}
