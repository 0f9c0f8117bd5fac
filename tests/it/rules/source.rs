//! Reads Rust sources just far enough for the rules: no comments, no literals, paths written out.

use std::fs;
use std::path::Path;

/// One source file, its path relative to the root, with forward slashes.
pub(crate) struct RustFile {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl RustFile {
    pub(crate) fn code(&self) -> Code {
        Code::of(&self.text)
    }
}

/// Files and folders below `root/folder`, relative to `root`, in order; build output and hidden
/// names left out.
pub(crate) fn everything_below(root: &Path, folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root.join(folder)) else {
        return found;
    };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let name = name.to_string_lossy();
        if name.starts_with('.') || name == "target" || name == "__pycache__" {
            continue;
        }
        let path = format!("{folder}/{name}");
        if root.join(&path).is_dir() {
            found.extend(everything_below(root, &path));
        }
        found.push(path);
    }
    found
}

pub(crate) fn rust_files(root: &Path, folder: &str) -> Vec<RustFile> {
    everything_below(root, folder)
        .into_iter()
        .filter(|path| path.ends_with(".rs"))
        .map(|path| RustFile {
            text: fs::read_to_string(root.join(&path)).unwrap(),
            path,
        })
        .collect()
}

/// Whether the segments of `name` stand together in `path`.
pub(crate) fn contains(path: &str, name: &str) -> bool {
    format!("::{path}::").contains(&format!("::{name}::"))
}

/// Source text whose comments and literals are blanks; line numbers stay.
pub(crate) struct Code {
    text: Vec<char>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    PathSeparator,
    Sign(char),
}

impl Code {
    pub(crate) fn of(source: &str) -> Self {
        let mut text: Vec<char> = source.chars().collect();
        let mut at = 0;
        while at < text.len() {
            let end = literal_or_comment_end(&text, at);
            if end > at {
                blank(&mut text, at, end);
                at = end;
            } else if is_name(text[at]) {
                // A name swallows the `r` and `b` that would else look like a literal's start.
                at = name_end(&text, at);
            } else {
                at += 1;
            }
        }
        Self { text }
    }

    /// The same without `#[cfg(test)] mod … { … }`.
    pub(crate) fn without_test_modules(mut self) -> Self {
        let mark: Vec<char> = "#[cfg(test)]".chars().collect();
        let mut at = 0;
        while at + mark.len() <= self.text.len() {
            if self.text[at..at + mark.len()] == mark[..]
                && let Some(end) = module_end(&self.text, at + mark.len())
            {
                blank(&mut self.text, at, end);
            }
            at += 1;
        }
        self
    }

    /// Every path with its line; `a::{b, c::d}` gives `a::b` and `a::c::d`.
    pub(crate) fn paths(&self) -> Vec<(usize, String)> {
        let tokens = self.tokens();
        let mut found = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            at = read_path(&tokens, at, "", &mut found);
        }
        found
    }

    /// Names of declared modules, with their lines.
    pub(crate) fn modules(&self) -> Vec<(usize, String)> {
        let tokens = self.tokens();
        let pairs = tokens.iter().zip(tokens.iter().skip(1));
        pairs
            .filter_map(|((_, first), (line, second))| match (first, second) {
                (Token::Name(word), Token::Name(name)) if word == "mod" => {
                    Some((*line, name.clone()))
                }
                _ => None,
            })
            .collect()
    }

    fn tokens(&self) -> Vec<(usize, Token)> {
        let (mut tokens, mut line, mut at) = (Vec::new(), 1, 0);
        while let Some(&sign) = self.text.get(at) {
            if is_name(sign) {
                let end = name_end(&self.text, at);
                tokens.push((line, Token::Name(self.text[at..end].iter().collect())));
                at = end;
                continue;
            }
            if sign == ':' && self.text.get(at + 1) == Some(&':') {
                tokens.push((line, Token::PathSeparator));
                at += 2;
                continue;
            }
            if sign == '\n' {
                line += 1;
            } else if !sign.is_whitespace() {
                tokens.push((line, Token::Sign(sign)));
            }
            at += 1;
        }
        tokens
    }
}

/// Reads one path (or steps over one token) and returns where to go on.
fn read_path(
    tokens: &[(usize, Token)],
    mut at: usize,
    prefix: &str,
    found: &mut Vec<(usize, String)>,
) -> usize {
    let (line, Token::Name(first)) = &tokens[at] else {
        return at + 1;
    };
    let mut path = format!("{prefix}{first}");
    at += 1;
    while tokens
        .get(at)
        .is_some_and(|(_, token)| *token == Token::PathSeparator)
    {
        match tokens.get(at + 1).map(|(_, token)| token) {
            Some(Token::Name(next)) => {
                path = format!("{path}::{next}");
                at += 2;
            }
            Some(Token::Sign('{')) => {
                return read_group(tokens, at + 2, &format!("{path}::"), found);
            }
            _ => break,
        }
    }
    found.push((*line, path));
    at
}

/// Reads what stands between the braces of `a::{…}`.
fn read_group(
    tokens: &[(usize, Token)],
    mut at: usize,
    prefix: &str,
    found: &mut Vec<(usize, String)>,
) -> usize {
    while let Some((_, token)) = tokens.get(at) {
        if *token == Token::Sign('}') {
            return at + 1;
        }
        at = read_path(tokens, at, prefix, found);
    }
    at
}

fn is_name(sign: char) -> bool {
    sign.is_alphanumeric() || sign == '_'
}

fn name_end(text: &[char], at: usize) -> usize {
    text[at..]
        .iter()
        .position(|sign| !is_name(*sign))
        .map_or(text.len(), |length| at + length)
}

fn blank(text: &mut [char], from: usize, to: usize) {
    for sign in &mut text[from..to] {
        if *sign != '\n' {
            *sign = ' ';
        }
    }
}

/// Where the literal or comment that starts at `at` ends, or `at` if none starts there.
fn literal_or_comment_end(text: &[char], at: usize) -> usize {
    let sign = |offset: usize| text.get(at + offset).copied();
    match (sign(0), sign(1)) {
        (Some('/'), Some('/')) => text[at..]
            .iter()
            .position(|one| *one == '\n')
            .map_or(text.len(), |length| at + length),
        (Some('/'), Some('*')) => block_comment_end(text, at),
        (Some('"'), _) => quoted_end(text, at + 1, '"'),
        (Some('b' | 'c'), Some('"')) => quoted_end(text, at + 2, '"'),
        (Some('b' | 'c'), Some('r')) => raw_string_end(text, at + 2).unwrap_or(at),
        (Some('r'), Some('"' | '#')) => raw_string_end(text, at + 1).unwrap_or(at),
        (Some('\''), Some('\\')) => quoted_end(text, at + 1, '\''),
        // Otherwise a lifetime.
        (Some('\''), Some(_)) if sign(2) == Some('\'') => at + 3,
        _ => at,
    }
}

fn block_comment_end(text: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while at + 1 < text.len() {
        match (text[at], text[at + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') if depth == 1 => return at + 2,
            ('*', '/') => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
    }
    text.len()
}

fn quoted_end(text: &[char], mut at: usize, quote: char) -> usize {
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            sign if sign == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// End of a raw string whose hashes start at `at`; none if it is a raw name such as `r#type`.
fn raw_string_end(text: &[char], at: usize) -> Option<usize> {
    let hashes = text[at..].iter().take_while(|sign| **sign == '#').count();
    if text.get(at + hashes) != Some(&'"') {
        return None;
    }
    let mut end = at + hashes + 1;
    while end < text.len() {
        let closes = text[end] == '"'
            && text.len() > end + hashes
            && text[end + 1..=end + hashes].iter().all(|sign| *sign == '#');
        if closes {
            return Some(end + hashes + 1);
        }
        end += 1;
    }
    Some(text.len())
}

/// End of the module whose attributes and `mod name {` come right after `at`.
fn module_end(text: &[char], at: usize) -> Option<usize> {
    let open = at
        + text[at..]
            .iter()
            .position(|sign| matches!(sign, '{' | ';'))?;
    let head: String = text[at..open].iter().collect();
    if text[open] == ';' || !head.split_whitespace().any(|word| word == "mod") {
        return None;
    }
    let mut depth = 0_usize;
    for (offset, sign) in text[open..].iter().enumerate() {
        match sign {
            '{' => depth += 1,
            '}' if depth == 1 => return Some(open + offset + 1),
            '}' => depth -= 1,
            _ => {}
        }
    }
    Some(text.len())
}
