//! One key at a time, on its holder's machine: `dunlin keys generate`, `import`, `passphrase`.

use super::KeysError;
use super::folder::{fresh_key, load_file};
use super::passphrase::{Passphrase, Source};
use super::pem::{self, Salt};
use super::public::{PublicKey, check_name};
use crate::args::{GenerateArgs, ImportArgs, PassphraseArgs, PublicArgs};
use crate::failure::{Exit, Failure};
use crate::files;
use crate::table;
use dunlin_protocol::trust::SigningKey;
use serde_json::json;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// `dunlin keys generate`.
///
/// # Errors
/// There are files of that name, no passphrase, or nothing can be written.
pub fn generate(args: &GenerateArgs, is_json: bool) -> Result<Exit, Failure> {
    let place = Place::free(&args.dir, &args.name)?;
    let passphrase = match args.no_passphrase {
        true => None,
        false => Some(args.passphrase.source().new_one(&place.what())?),
    };
    place.write(&fresh_key()?, passphrase.as_ref(), is_json)
}

/// `dunlin keys import`.
///
/// # Errors
/// Not an Ed25519 key, or as [`generate`].
pub fn import(args: &ImportArgs, is_json: bool) -> Result<Exit, Failure> {
    let place = Place::free(&args.dir, &args.name)?;
    let source = args.passphrase.source();
    let old = args.old_passphrase_file.clone().map(Source::File);
    let key = load_file(&args.file, old.as_ref().unwrap_or(&source))?;
    let passphrase = match args.no_passphrase {
        true => None,
        false => Some(source.new_one(&place.what())?),
    };
    place.write(&key, passphrase.as_ref(), is_json)
}

/// `dunlin keys public`.
///
/// # Errors
/// Not an Ed25519 key, no passphrase, or the file cannot be written.
pub fn public(args: &PublicArgs, is_json: bool) -> Result<Exit, Failure> {
    let stem = args.file.file_stem().unwrap_or_default().to_string_lossy();
    let name = args.name.as_deref().unwrap_or(&stem);
    let key = load_file(&args.file, &args.passphrase.source())?;
    let public = PublicKey::of(name, &key)?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => args.file.with_extension("pub"),
    };
    files::write_whole(&out, &public.to_bytes())?;
    if is_json {
        table::print_json(&json!({"name": name, "keyid": public.keyid, "public": out}));
        return Ok(Exit::Done);
    }
    table::print_line(&format!("{}: key id {}", out.display(), public.keyid));
    Ok(Exit::Done)
}

/// `dunlin keys passphrase`.
///
/// # Errors
/// The old passphrase is wrong, there is no new one, or the file cannot be written.
pub fn change_passphrase(args: &PassphraseArgs, is_json: bool) -> Result<Exit, Failure> {
    let key = load_file(&args.file, &args.passphrase.source())?;
    let what = args.file.display().to_string();
    let passphrase = match (args.remove, &args.new_passphrase_file) {
        (true, _) => None,
        (false, Some(file)) => Some(Source::File(file.clone()).new_one(&what)?),
        (false, None) => Some(Source::Terminal.new_one(&what)?),
    };
    let text = private_text(&key, passphrase.as_ref(), &args.file)?;
    files::write_secret(&args.file, text.as_bytes())?;
    if is_json {
        table::print_json(&json!({"private": args.file, "encrypted": !args.remove}));
        return Ok(Exit::Done);
    }
    table::print_line(&match args.remove {
        true => format!("{what} is not encrypted any more"),
        false => format!("{what} is encrypted with the new passphrase"),
    });
    Ok(Exit::Done)
}

/// Where a new key's two files go; neither is there yet.
struct Place {
    name: String,
    private: PathBuf,
    public: PathBuf,
}

impl Place {
    fn free(dir: &Path, name: &str) -> Result<Self, KeysError> {
        check_name(name)?;
        files::make_private_folder(dir)?;
        let place = Self {
            name: name.to_owned(),
            private: dir.join(format!("{name}.pem")),
            public: dir.join(format!("{name}.pub")),
        };
        for path in [&place.private, &place.public] {
            // Also a dangling link: nothing is ever written through one.
            if path.symlink_metadata().is_ok() {
                return Err(KeysError::Exists(path.clone()));
            }
        }
        Ok(place)
    }

    fn what(&self) -> String {
        self.private.display().to_string()
    }

    fn write(
        &self,
        key: &SigningKey,
        passphrase: Option<&Passphrase>,
        is_json: bool,
    ) -> Result<Exit, Failure> {
        let public = PublicKey::of(&self.name, key)?;
        let text = private_text(key, passphrase, &self.private)?;
        files::create_secret(&self.private, text.as_bytes())?;
        files::write_whole(&self.public, &public.to_bytes())?;
        let is_encrypted = passphrase.is_some();
        if is_json {
            table::print_json(&json!({
                "name": self.name, "keyid": public.keyid, "private": self.private,
                "public": self.public, "encrypted": is_encrypted,
            }));
            return Ok(Exit::Done);
        }
        let guard = match is_encrypted {
            true => "encrypted",
            false => "NOT encrypted",
        };
        table::print(&format!(
            "{} ({guard}) stays here\n{} is to hand over\nkey id {}\n",
            self.private.display(),
            self.public.display(),
            public.keyid
        ));
        Ok(Exit::Done)
    }
}

/// The private key's file, encrypted if there is a passphrase.
pub(super) fn private_text(
    key: &SigningKey,
    passphrase: Option<&Passphrase>,
    path: &Path,
) -> Result<Zeroizing<String>, KeysError> {
    let bad = |error| KeysError::Pem {
        path: path.to_owned(),
        error,
    };
    match passphrase {
        None => {
            let pem = key.to_pkcs8_pem().map_err(|e| bad(e.into()))?;
            Ok(Zeroizing::new(pem.expose().to_owned()))
        }
        Some(passphrase) => {
            let mut fresh = Salt {
                salt: [0; 16],
                iv: [0; 16],
            };
            for part in [&mut fresh.salt, &mut fresh.iv] {
                getrandom::fill(part).map_err(|e| KeysError::Random(e.to_string()))?;
            }
            pem::encrypt(key, passphrase.expose(), &fresh).map_err(bad)
        }
    }
}
