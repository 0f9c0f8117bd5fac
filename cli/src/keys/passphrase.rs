//! Where passphrases come from: a file, a file descriptor, or the terminal without echo. Never an
//! argument's value: other users of the machine could read it in the process list.

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const PASSPHRASE_MAX_BYTES: usize = 1024;
/// Shorter new passphrases are taken with a warning.
const SHORT_CHARS: usize = 12;

/// Why there is no passphrase.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    /// Neither a file nor a terminal.
    #[error(
        "{what}: no passphrase: there is no terminal to ask on; give --passphrase-file FILE or --passphrase-fd N, or set DUNLIN_PASSPHRASE_FILE"
    )]
    NoTerminal {
        /// What it is for.
        what: String,
    },
    /// It cannot be read.
    #[error("passphrase from {from}: {problem}")]
    Unreadable {
        /// Where from.
        from: String,
        /// What is wrong.
        problem: String,
    },
    /// The two new ones differ.
    #[error("{what}: the two passphrases differ; nothing was changed")]
    Differ {
        /// What it is for.
        what: String,
    },
}

/// A passphrase; wiped from memory when dropped, never printed.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// Its bytes, as typed.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// Where to get passphrases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The first line of a file; `-` is standard input.
    File(PathBuf),
    /// The first line from an open file descriptor.
    Descriptor(u32),
    /// The terminal.
    Terminal,
}

impl Source {
    /// What `DUNLIN_PASSPHRASE_FILE` says, else the terminal.
    #[must_use]
    pub fn from_environment() -> Self {
        match std::env::var_os("DUNLIN_PASSPHRASE_FILE").filter(|v| !v.is_empty()) {
            Some(file) => Self::File(file.into()),
            None => Self::Terminal,
        }
    }

    /// The passphrase of a key that is there; `what` says which on the terminal.
    ///
    /// # Errors
    /// [`PassphraseError`]
    pub fn existing(&self, what: &str) -> Result<Passphrase, PassphraseError> {
        match self {
            Self::File(path) => from_file(path),
            // Opening it anew needs no ownership of the descriptor, and works for pipes and files.
            Self::Descriptor(n) => from_file(Path::new(&format!("/dev/fd/{n}"))),
            Self::Terminal => ask(what, &format!("Passphrase of {what}: ")),
        }
    }

    /// A new passphrase, asked twice on the terminal.
    ///
    /// # Errors
    /// [`PassphraseError`]
    pub fn new_one(&self, what: &str) -> Result<Passphrase, PassphraseError> {
        let first = match self {
            Self::Terminal => ask(what, &format!("New passphrase for {what}: "))?,
            _ => self.existing(what)?,
        };
        if *self == Self::Terminal {
            let again = ask(what, "The same again: ")?;
            if again.expose() != first.expose() {
                let what = what.to_owned();
                return Err(PassphraseError::Differ { what });
            }
        }
        let chars = String::from_utf8_lossy(first.expose()).chars().count();
        if chars < SHORT_CHARS {
            eprintln!(
                "dunlin: warning: the passphrase for {what} is short: {SHORT_CHARS} characters or more resist guessing better"
            );
        }
        Ok(first)
    }
}

fn from_file(path: &Path) -> Result<Passphrase, PassphraseError> {
    let is_stdin = path == Path::new("-");
    let from = match is_stdin {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    };
    let bad = |problem: String| PassphraseError::Unreadable {
        from: from.clone(),
        problem,
    };
    let read = |reader: &mut dyn Read| first_line(reader);
    let line = match is_stdin {
        true => read(&mut io::stdin().lock()),
        false => File::open(path).and_then(|mut file| read(&mut file)),
    };
    match line {
        Ok(line) if line.is_empty() => Err(bad("its first line is empty".to_owned())),
        Ok(line) => Ok(Passphrase(line)),
        Err(e) => Err(bad(e.to_string())),
    }
}

/// The bytes up to the first newline, one at a time: what follows on a pipe is somebody else's.
fn first_line(reader: &mut dyn Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(PASSPHRASE_MAX_BYTES));
    let mut byte = Zeroizing::new([0_u8; 1]);
    while reader.read(byte.as_mut())? == 1 && byte[0] != b'\n' {
        if line.len() == PASSPHRASE_MAX_BYTES {
            return Err(too_long());
        }
        line.push(byte[0]);
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(line)
}

fn too_long() -> io::Error {
    let problem = format!("longer than {PASSPHRASE_MAX_BYTES} bytes");
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

fn ask(what: &str, prompt: &str) -> Result<Passphrase, PassphraseError> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/tty");
    let Ok(mut tty) = opened else {
        let what = what.to_owned();
        return Err(PassphraseError::NoTerminal { what });
    };
    let typed = type_in(&mut tty, prompt);
    match typed {
        Ok(line) if line.is_empty() => Err(PassphraseError::Unreadable {
            from: "the terminal".to_owned(),
            problem: "nothing was typed".to_owned(),
        }),
        Ok(line) => Ok(Passphrase(line)),
        Err(e) => Err(PassphraseError::Unreadable {
            from: "the terminal".to_owned(),
            problem: e.to_string(),
        }),
    }
}

/// Puts the terminal back as it was, however the reading ends.
struct Quiet<'a> {
    tty: &'a File,
    before: Termios,
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.tty, OptionalActions::Flush, &self.before);
    }
}

/// Reads a line without echo. Keys that would end the process are read like any other, so that
/// it can never end with the terminal left silent.
fn type_in(tty: &mut File, prompt: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let reading = tty.try_clone()?;
    let before = tcgetattr(&reading)?;
    let mut silent = before.clone();
    silent
        .local_modes
        .remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
    tcsetattr(&reading, OptionalActions::Flush, &silent)?;
    let quiet = Quiet {
        tty: &reading,
        before,
    };
    // Only now: whoever answers at once is not echoed.
    tty.write_all(prompt.as_bytes())?;
    let mut line = Zeroizing::new(Vec::with_capacity(PASSPHRASE_MAX_BYTES));
    let mut byte = Zeroizing::new([0_u8; 1]);
    let typed = loop {
        match tty.read(byte.as_mut()) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(e) => break Err(e),
        }
        match byte[0] {
            b'\n' | b'\r' => break Ok(()),
            3 | 4 | 28 => break Err(io::Error::new(io::ErrorKind::Interrupted, "broken off")),
            8 | 127 => drop_char(&mut line),
            21 => line.clear(),
            _ if line.len() == PASSPHRASE_MAX_BYTES => break Err(too_long()),
            other => line.push(other),
        }
    };
    drop(quiet);
    tty.write_all(b"\n")?;
    typed.map(|()| line)
}

/// Takes back the last character, whole if it is UTF-8.
fn drop_char(line: &mut Vec<u8>) {
    while let Some(byte) = line.pop() {
        if byte & 0xC0 != 0x80 {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_its_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p");
        for (text, passphrase) in [
            ("geheim\nmore\n", "geheim"),
            ("a b \r\n", "a b "),
            ("x", "x"),
        ] {
            std::fs::write(&file, text).unwrap();
            let got = Source::File(file.clone()).existing("key").unwrap();
            assert_eq!(got.expose(), passphrase.as_bytes());
            assert!(!format!("{got:?}").contains(passphrase));
        }
        for text in ["", "\nsecond", &"x".repeat(1025)] {
            std::fs::write(&file, text).unwrap();
            let refused = Source::File(file.clone()).existing("key").unwrap_err();
            assert!(refused.to_string().contains(&file.display().to_string()));
        }
    }

    #[test]
    fn a_character_is_taken_back_whole() {
        let mut line = "aé".as_bytes().to_vec();
        drop_char(&mut line);
        assert_eq!(line, b"a");
        drop_char(&mut line);
        drop_char(&mut line);
        assert!(line.is_empty());
    }
}
