//! Shell-style patterns of target paths.

use std::fmt;

/// A pattern of target paths, such as `digits/*/manifest.json`.
///
/// It is compared component by component, as the shell does with file names: `*` and `?` never
/// match a `/`. `*` is any run of characters, `?` any one, `[a-f]` one of a set, `[!a-f]` one
/// outside of it; a `[` that is never closed stands for itself. Every text is a pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathPattern(String);

impl PathPattern {
    /// The pattern `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The pattern's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `path` is one of those meant.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let mut patterns = self.0.split('/');
        let mut components = path.split('/');
        loop {
            match (patterns.next(), components.next()) {
                (None, None) => return true,
                (Some(pattern), Some(component)) if component_matches(pattern, component) => {}
                _ => return false,
            }
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Goes back to the last `*` only, so that the time is at most the product of both lengths.
fn component_matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // Behind the last `*`, and where the text stood when it was met.
    let mut last_star: Option<(&str, &str)> = None;
    loop {
        if let Some(rest) = pattern.strip_prefix('*') {
            last_star = Some((rest, text));
            pattern = rest;
            continue;
        }
        let mut following = text.chars();
        let next = following.next();
        match (next, one(pattern)) {
            (None, None) => return true,
            (Some(c), Some((item, rest))) if item.accepts(c) => {
                (pattern, text) = (rest, following.as_str());
                continue;
            }
            _ => {}
        }
        // The last `*` takes one character more.
        let Some((after_star, met)) = last_star else {
            return false;
        };
        let mut longer = met.chars();
        if longer.next().is_none() {
            return false;
        }
        last_star = Some((after_star, longer.as_str()));
        (pattern, text) = (after_star, longer.as_str());
    }
}

/// What stands for one character in a pattern.
enum One<'a> {
    Any,
    Exactly(char),
    In { set: &'a str, negated: bool },
}

impl One<'_> {
    fn accepts(&self, c: char) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(expected) => c == *expected,
            Self::In { set, negated } => in_set(set, c) != *negated,
        }
    }
}

/// The first item of a pattern that does not begin with `*`, and what follows it.
fn one(pattern: &str) -> Option<(One<'_>, &str)> {
    let mut following = pattern.chars();
    let first = following.next()?;
    let rest = following.as_str();
    match first {
        '?' => Some((One::Any, rest)),
        '[' => Some(set(rest).unwrap_or((One::Exactly('['), rest))),
        c => Some((One::Exactly(c), rest)),
    }
}

/// The set behind a `[`; a `]` that comes first belongs to it.
fn set(text: &str) -> Option<(One<'_>, &str)> {
    let (negated, text) = match text.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let from = usize::from(text.starts_with(']'));
    let end = from + text[from..].find(']')?;
    let set = &text[..end];
    Some((One::In { set, negated }, &text[end + 1..]))
}

fn in_set(set: &str, c: char) -> bool {
    let mut rest = set.chars();
    while let Some(low) = rest.next() {
        let mut ahead = rest.clone();
        match (ahead.next(), ahead.next()) {
            (Some('-'), Some(high)) => {
                if low <= c && c <= high {
                    return true;
                }
                rest = ahead;
            }
            _ if low == c => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::PathPattern;
    use proptest::prelude::*;

    fn matches(pattern: &str, path: &str) -> bool {
        PathPattern::new(pattern).matches(path)
    }

    #[test]
    fn as_the_shell_matches_file_names() {
        for (pattern, path) in [
            ("*", "file"),
            ("*", ""),
            ("targets/*.tgz", "targets/foo.tgz"),
            ("foo-version-?.tgz", "foo-version-a.tgz"),
            ("*/*/manifest.json", "digits/1/manifest.json"),
            ("a*b*c", "aXbXbXc"),
            ("**", "x"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[]x]", "]"),
            ("[x-]", "-"),
            ("[", "["),
            ("[ab", "[ab"),
            ("[!]", "[!]"),
            ("é?", "éü"),
            ("/a", "/a"),
        ] {
            assert!(matches(pattern, path), "{pattern} should match {path}");
        }
        for (pattern, path) in [
            ("*", "folder/file"),
            ("*/*", "file"),
            ("targets/*.tgz", "targets/foo.txt"),
            ("foo-version-?.tgz", "foo-version-alpha.tgz"),
            ("a?b", "a/b"),
            ("a[!x]b", "a/b"),
            ("", "x"),
            ("x", ""),
            ("?", ""),
            ("[a-c]", "d"),
            ("[!a-c]", "b"),
            ("[c-a]", "b"),
            ("A", "a"),
            ("a", "/a"),
            ("a/", "a"),
            ("*.json", "x.json/"),
        ] {
            assert!(!matches(pattern, path), "{pattern} should not match {path}");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "a*".repeat(2000) + "b";
        assert!(!matches(&pattern, &"a".repeat(4000)));
    }

    /// The definition, without any cleverness.
    fn slow(pattern: &[char], text: &[char]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some('*'), _) => {
                slow(&pattern[1..], text)
                    || (text.first().is_some_and(|c| *c != '/') && slow(pattern, &text[1..]))
            }
            (Some('?'), Some(c)) => *c != '/' && slow(&pattern[1..], &text[1..]),
            (Some(p), Some(c)) => p == c && slow(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?/]{0,8}", text in "[ab/]{0,8}") {
            let chars = |s: &str| s.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text), slow(&chars(&pattern), &chars(&text)));
        }

        #[test]
        fn no_pattern_panics(pattern in any::<String>(), path in any::<String>()) {
            let _ = matches(&pattern, &path);
            let _ = matches(&format!("[{pattern}"), &path);
        }
    }
}
