//! `dunlin keys inspect`, `sign`, `combine`: signing requests, one file at a time.

use super::KeysError;
use super::changes::describe;
use super::folder::{load_file, root_files, trusted_roots};
use super::request::{SignatureFile, SigningRequest};
use crate::args::{CombineArgs, SignRequestArgs};
use crate::failure::{Exit, Failure};
use crate::files;
use crate::table;
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::{Envelope, ROOT_MAX_BYTES, TrustedSet};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

const ANSWER_MAX_BYTES: u64 = 64;

/// Writes a request and says what it changes and who must sign.
///
/// # Errors
/// The file cannot be written.
pub fn write_request(request: &SigningRequest, out: &Path, is_json: bool) -> Result<Exit, Failure> {
    let lines = describe(request)?;
    files::write_whole(out, &request.to_bytes(&lines))?;
    if is_json {
        table::print_json(&as_json(request, &lines, out)?);
        return Ok(Exit::Done);
    }
    table::print(&format!("{}\n", words(request, &lines)?));
    table::print_line(&format!(
        "next, where each key is: dunlin keys sign {} --key FILE",
        out.display()
    ));
    Ok(Exit::Done)
}

/// `dunlin keys inspect`.
///
/// # Errors
/// Not a request.
pub fn inspect(path: &Path, is_json: bool) -> Result<Exit, Failure> {
    let request = SigningRequest::read(path)?;
    let lines = describe(&request)?;
    if is_json {
        table::print_json(&as_json(&request, &lines, path)?);
    } else {
        table::print(&words(&request, &lines)?);
    }
    Ok(Exit::Done)
}

/// `dunlin keys sign`.
///
/// # Errors
/// A request that rests on a root that is not trusted here, a key that is not asked, no passphrase,
/// or no consent.
pub fn sign(args: &SignRequestArgs, is_json: bool) -> Result<Exit, Failure> {
    let request = SigningRequest::read(&args.request)?;
    let trusted = check_base(&request, args)?;
    let lines = describe(&request)?;
    // To standard error: a pipe for --json stays clean, and the words are seen in any case.
    eprintln!("{}", words(&request, &lines)?);
    if !trusted {
        eprintln!(
            "No root metadata are trusted here (--dir DIR): compare the SHA-256 of the root it rests on with \
             the other holders."
        );
    }
    let key = load_file(&args.key, &args.passphrase.source())?;
    let keyid = key.keyid()?;
    request.check_is_asked(&keyid)?;
    if !args.yes {
        ask_consent(&request, &keyid)?;
    }
    let signature = request.sign(&key)?;
    let stem = args.key.file_stem().unwrap_or_default().to_string_lossy();
    let holders = request.holders();
    let name = holders.name(&keyid).unwrap_or(&stem).to_owned();
    let out = match &args.out {
        Some(out) => out.clone(),
        None => {
            let mut file = args.request.clone().into_os_string();
            file.push(format!(".{name}.sig"));
            PathBuf::from(file)
        }
    };
    files::write_whole(
        &out,
        &signature.to_bytes(&request.role, request.version(), &name),
    )?;
    if is_json {
        table::print_json(&json!({
            "out": out, "role": request.role, "version": request.version(), "keyid": keyid,
            "name": name, "signed_sha256": signature.signed_sha256,
        }));
        return Ok(Exit::Done);
    }
    table::print_line(&format!(
        "signed {} version {} as {name}: {}",
        request.role,
        request.version(),
        out.display()
    ));
    Ok(Exit::Done)
}

/// `dunlin keys combine`.
///
/// # Errors
/// A stranger's signature, one over other content, or files that cannot be read or written.
pub fn combine(args: &CombineArgs, is_json: bool) -> Result<Exit, Failure> {
    let mut request = SigningRequest::read(&args.request)?;
    for path in &args.signatures {
        let signature = SignatureFile::read(path)?;
        request
            .add(&signature)
            .map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
    }
    let lines = describe(&request)?;
    files::write_whole(&args.request, &request.to_bytes(&lines))?;
    let standing = request.standing()?;
    let holders = request.holders();
    let sentences: Vec<String> = standing.iter().map(|s| s.sentence(&holders)).collect();
    let complete = standing.iter().all(|s| s.missing == 0);
    let mut written = None;
    if complete {
        check_complete(&request)?;
        let out = place(args, &request)?;
        if request.role == "root" {
            check_follows_folder(&request, &out)?;
        }
        files::write_whole(&out, &request.metadata.to_bytes())?;
        written = Some(out);
    }
    if is_json {
        let mut shown = as_json(&request, &lines, &args.request)?;
        shown["written"] = json!(written);
        table::print_json(&shown);
    } else {
        for sentence in sentences {
            table::print_line(&sentence);
        }
        table::print_line(&match &written {
            Some(out) => format!(
                "{} version {} is complete: {}, SHA-256 {}",
                request.role,
                request.version(),
                out.display(),
                Digest::of(&request.metadata.to_bytes())
            ),
            None => format!(
                "not complete yet; the signatures are kept in {}",
                args.request.display()
            ),
        });
    }
    Ok(match complete {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

fn place(args: &CombineArgs, request: &SigningRequest) -> Result<PathBuf, Failure> {
    if let Some(out) = &args.out {
        return Ok(out.clone());
    }
    let beside = args.request.parent().unwrap_or(Path::new(""));
    let dir = match &args.dir {
        Some(dir) => {
            files::make_private_folder(dir)?;
            dir.as_path()
        }
        None => beside,
    };
    Ok(dir.join(request.file_name()))
}

/// The last check is the devices' own.
fn check_complete(request: &SigningRequest) -> Result<(), KeysError> {
    if request.role != "root" {
        return Ok(());
    }
    let bytes = request.metadata.to_bytes();
    let now = Timestamp::now();
    TrustedSet::from_root(&bytes, now)?;
    if let Some(before) = &request.root {
        let mut set = TrustedSet::from_root(before, now)?;
        let _ = set.update_root(&bytes)?;
    }
    Ok(())
}

/// Whether the signer's own folder vouches for the root that the request rests on.
fn check_base(request: &SigningRequest, args: &SignRequestArgs) -> Result<bool, Failure> {
    let beside = args.key.parent().unwrap_or(Path::new("."));
    let folder = match &args.dir {
        Some(dir) => dir.as_path(),
        None if beside.join("1.root.json").is_file() => beside,
        None => return Ok(false),
    };
    if request.role != "root" {
        // What this folder has built on before is neither gone back behind nor changed.
        crate::sign::check_follows(folder, &request.role, &request.metadata.to_bytes())?;
    }
    check_rests_on(request, folder)?;
    Ok(true)
}

/// Whether the request rests on the newest root of this folder, byte for byte.
fn check_rests_on(request: &SigningRequest, folder: &Path) -> Result<(), KeysError> {
    trusted_roots(folder, Timestamp::now())?;
    let newest = root_files(folder)?.pop().unwrap_or_default();
    let digest = |bytes: &[u8]| {
        let version = super::shown_version::<dunlin_protocol::trust::RootMetadata>(bytes);
        let version = version.map_or("?".to_owned(), |v| v.to_string());
        format!("root version {version} (SHA-256 {})", Digest::of(bytes))
    };
    match &request.root {
        Some(base) if *base == newest => Ok(()),
        other => Err(KeysError::OtherRoot {
            folder: folder.to_owned(),
            trusted: digest(&newest),
            got: other
                .as_deref()
                .map_or("no root: it is a first one".to_owned(), digest),
        }),
    }
}

/// A root joins a folder of roots only as the next one, or as one that is there with more
/// signatures: tokens are sealed with what lies there, and signers trust it.
fn check_follows_folder(request: &SigningRequest, out: &Path) -> Result<(), KeysError> {
    let folder = out.parent().unwrap_or(Path::new(""));
    let there = match out.is_file() {
        true => Some(files::read_bounded(out, ROOT_MAX_BYTES as u64)?),
        false => None,
    };
    if let Some(bytes) = there {
        let there = Envelope::parse(&bytes, ROOT_MAX_BYTES)?;
        if there.signed_bytes()? == request.metadata.signed_bytes()? {
            return Ok(());
        }
    }
    match folder.join("1.root.json").is_file() {
        true => check_rests_on(request, folder),
        false => Ok(()),
    }
}

fn words(request: &SigningRequest, lines: &[String]) -> Result<String, KeysError> {
    let mut text = String::new();
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    if let Some(root) = &request.root {
        text.push_str(&format!(
            "rests on the root with SHA-256 {}\n",
            Digest::of(root)
        ));
    }
    text.push_str(&format!(
        "SHA-256 of what is signed: {}\n",
        request.signed_sha256()?
    ));
    let holders = request.holders();
    for standing in request.standing()? {
        text.push_str(&standing.sentence(&holders));
        text.push('\n');
    }
    Ok(text)
}

fn as_json(request: &SigningRequest, lines: &[String], path: &Path) -> Result<Value, KeysError> {
    let standing = request.standing()?;
    let standing: Vec<Value> = standing
        .iter()
        .map(|s| {
            json!({
                "named_by": s.quorum.named_by, "threshold": s.quorum.threshold, "signed": s.signed,
                "missing": s.missing, "could_sign": s.open,
            })
        })
        .collect();
    Ok(json!({
        "request": path, "role": request.role, "version": request.version(), "changes": lines,
        "signed_sha256": request.signed_sha256()?, "quorums": standing,
        "root_sha256": request.root.as_deref().map(Digest::of),
    }))
}

fn ask_consent(request: &SigningRequest, keyid: &str) -> Result<(), Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::new(
            "not signed: there is no terminal to ask on; read what is shown and give --yes",
        ));
    }
    eprint!(
        "Sign {} version {} with key {keyid}? Type yes: ",
        request.role,
        request.version()
    );
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = stdin.lock().take(ANSWER_MAX_BYTES).read_line(&mut answer);
    match read {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        Ok(_) => Err(Failure::new("not signed")),
        Err(e) => Err(Failure::new(format!("not signed: standard input: {e}"))),
    }
}
