//! Reading one field of parsed metadata at a time, with its path in every complaint.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::TrustError;
use super::hashes::Sha512Digest;
use crate::id::Digest;

/// A value and the path that leads to it.
pub(super) struct Field<'a> {
    value: &'a Value,
    at: String,
}

impl<'a> Field<'a> {
    pub(super) fn new(value: &'a Value, at: impl Into<String>) -> Self {
        Self {
            value,
            at: at.into(),
        }
    }

    pub(super) fn bad(&self, expected: &'static str) -> TrustError {
        let mut got: String = self.value.to_string().chars().take(81).collect();
        if got.chars().count() > 80 {
            got.push('…');
        }
        TrustError::BadField {
            at: self.at.clone(),
            expected,
            got,
        }
    }

    pub(super) fn object(&self) -> Result<&'a Map<String, Value>, TrustError> {
        self.value.as_object().ok_or_else(|| self.bad("an object"))
    }

    /// The field `name` if it is there.
    pub(super) fn optional(&self, name: &str) -> Result<Option<Field<'a>>, TrustError> {
        let at = format!("{}.{name}", self.at);
        Ok(self.object()?.get(name).map(|value| Field { value, at }))
    }

    pub(super) fn required(&self, name: &str) -> Result<Field<'a>, TrustError> {
        self.optional(name)?.ok_or_else(|| TrustError::BadField {
            at: format!("{}.{name}", self.at),
            expected: "a value",
            got: "nothing".to_owned(),
        })
    }

    /// Every entry of an object, under its key.
    pub(super) fn entries(&self) -> Result<Vec<(&'a String, Field<'a>)>, TrustError> {
        let entries = self.object()?.iter();
        Ok(entries
            .map(|(key, value)| (key, Field::new(value, format!("{}.{key}", self.at))))
            .collect())
    }

    /// Every item of a list.
    pub(super) fn items(&self) -> Result<Vec<Field<'a>>, TrustError> {
        let items = self.value.as_array().ok_or_else(|| self.bad("a list"))?;
        Ok(items
            .iter()
            .enumerate()
            .map(|(n, value)| Field::new(value, format!("{}[{n}]", self.at)))
            .collect())
    }

    pub(super) fn text(&self) -> Result<&'a str, TrustError> {
        self.value.as_str().ok_or_else(|| self.bad("a string"))
    }

    pub(super) fn flag(&self) -> Result<bool, TrustError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.bad("true or false"))
    }

    pub(super) fn number(&self) -> Result<u64, TrustError> {
        self.value
            .as_u64()
            .ok_or_else(|| self.bad("an integer from 0 to 2^64-1"))
    }

    /// A version or a threshold: never 0.
    pub(super) fn positive(&self) -> Result<u64, TrustError> {
        match self.number()? {
            0 => Err(self.bad("an integer of at least 1")),
            n => Ok(n),
        }
    }

    pub(super) fn digest(&self) -> Result<Digest, TrustError> {
        self.text()?
            .parse()
            .map_err(|_| self.bad("64 lower-case hexadecimal digits"))
    }

    pub(super) fn sha512(&self) -> Result<Sha512Digest, TrustError> {
        const FORM: &str = "128 lower-case hexadecimal digits";
        let mut raw = [0_u8; 64];
        let text = self.text()?;
        let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut raw) {
            Ok(()) if lower => Ok(Sha512Digest(raw)),
            _ => Err(self.bad(FORM)),
        }
    }

    /// `2030-01-01T00:00:00Z` and nothing looser: no offset, no fraction.
    pub(super) fn time(&self) -> Result<Timestamp, TrustError> {
        const FORM: &str = "a UTC time like 2030-01-01T00:00:00Z";
        let text = self.text()?;
        let shaped = text.len() == 20
            && text
                .bytes()
                .zip(*b"0000-00-00T00:00:00Z")
                .all(|(got, form)| match form {
                    b'0' => got.is_ascii_digit(),
                    other => got == other,
                });
        if !shaped {
            return Err(self.bad(FORM));
        }
        text.parse().map_err(|_| self.bad(FORM))
    }

    pub(super) fn value(&self) -> &'a Value {
        self.value
    }
}
