//! Fields of protocol buffers, as they lie in a message
//! (<https://protobuf.dev/programming-guides/encoding/>).

/// A message that is cut off or was never one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    /// The bytes end within a field.
    #[error("the message ends in the middle of a field")]
    Cut,
    /// A number of more than 64 bits.
    #[error("a number of more than 64 bits")]
    Number,
    /// A kind of field that protocol buffers of version 3 have not.
    #[error("a field of wire type {0}")]
    Kind(u64),
    /// A field of this number has another type.
    #[error("field {0} has another type than expected")]
    Type(u64),
    /// A text that is no UTF-8.
    #[error("field {0} is no UTF-8")]
    Text(u64),
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held<'a> {
    /// A number of variable length.
    Number(u64),
    /// Eight bytes.
    Fixed64([u8; 8]),
    /// Text, bytes, a message, or numbers one behind the other.
    Bytes(&'a [u8]),
    /// Four bytes.
    Fixed32([u8; 4]),
}

/// One field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    /// Its number.
    pub(crate) number: u64,
    /// What it holds.
    pub(crate) held: Held<'a>,
}

impl<'a> Field<'a> {
    pub(crate) fn bytes(&self) -> Result<&'a [u8], WireError> {
        match self.held {
            Held::Bytes(bytes) => Ok(bytes),
            _ => Err(WireError::Type(self.number)),
        }
    }

    pub(crate) fn text(&self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Text(self.number))
    }
}

/// The fields of a message, in order; ends after the first error.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn field(&mut self) -> Result<Field<'a>, WireError> {
        let tag = number(&mut self.0)?;
        let held = match tag & 7 {
            0 => Held::Number(number(&mut self.0)?),
            1 => Held::Fixed64(fixed(&mut self.0)?),
            2 => {
                let length = number(&mut self.0)?;
                let length = usize::try_from(length).map_err(|_| WireError::Cut)?;
                Held::Bytes(take(&mut self.0, length)?)
            }
            5 => Held::Fixed32(fixed(&mut self.0)?),
            kind => return Err(WireError::Kind(kind)),
        };
        let number = tag >> 3;
        Ok(Field { number, held })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Result<&'a [u8], WireError> {
    let (taken, rest) = from.split_at_checked(length).ok_or(WireError::Cut)?;
    *from = rest;
    Ok(taken)
}

fn fixed<const N: usize>(from: &mut &[u8]) -> Result<[u8; N], WireError> {
    let (taken, rest) = from.split_first_chunk().ok_or(WireError::Cut)?;
    *from = rest;
    Ok(*taken)
}

/// A number of variable length: seven bits a byte, the lowest first.
pub(crate) fn number(from: &mut &[u8]) -> Result<u64, WireError> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first().ok_or(WireError::Cut)?;
        *from = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(WireError::Number);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(WireError::Number)
}

/// A message being written. What has the value that an absent field means is left out.
#[derive(Debug, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn put(&mut self, mut number: u64) {
        while number > 0x7f {
            self.0.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
            number >>= 7;
        }
        self.0.push(u8::try_from(number).unwrap_or(0));
    }

    /// Adds a number, which may be a truth value.
    pub(crate) fn number(&mut self, field: u64, number: impl Into<u64>) {
        let number = number.into();
        if number != 0 {
            self.put(field << 3);
            self.put(number);
        }
    }

    /// Adds a text.
    pub(crate) fn text(&mut self, field: u64, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    /// Adds bytes, also none: an element of a list counts.
    pub(crate) fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.head(field, bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// Adds bytes that are written in place.
    pub(crate) fn bytes_of(&mut self, field: u64, length: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.head(field, length);
        write(&mut self.0);
    }

    fn head(&mut self, field: u64, length: usize) {
        self.put(field << 3 | 2);
        self.put(u64::try_from(length).unwrap_or(u64::MAX));
    }

    /// Adds a message within the message.
    pub(crate) fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }

    /// Adds numbers, one behind the other.
    pub(crate) fn numbers(&mut self, field: u64, numbers: impl Iterator<Item = u64>) {
        let mut packed = Self::default();
        numbers.for_each(|n| packed.put(n));
        if packed.len() > 0 {
            self.message(field, &packed);
        }
    }

    /// Adds fields that are written already.
    pub(crate) fn fields(&mut self, fields: &[u8]) {
        self.0.extend_from_slice(fields);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_the_encoding_guide() {
        let mut message = Message::default();
        message.number(1, 150_u64);
        message.text(2, "testing");
        message.numbers(6, [3, 270, 86942].into_iter());
        let bytes = message.into_bytes();
        let want = [
            &[0x08, 0x96, 0x01, 0x12, 0x07][..],
            b"testing",
            &[0x32, 0x06, 0x03, 0x8e, 0x02, 0x9e, 0xa7, 0x05],
        ];
        assert_eq!(bytes, want.concat());
        let fields: Vec<_> = Fields::of(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(fields[0].held, Held::Number(150));
        assert_eq!(fields[1].text(), Ok("testing"));
        assert_eq!(fields[2].number, 6);
    }

    #[test]
    fn what_is_no_message_is_told() {
        let first = |bytes: &[u8]| Fields::of(bytes).next().unwrap().unwrap_err();
        assert_eq!(first(&[0x08]), WireError::Cut);
        assert_eq!(first(&[0x12, 5, 1]), WireError::Cut);
        assert_eq!(first(&[0x09, 1, 2, 3]), WireError::Cut);
        assert_eq!(first(&[0x0b]), WireError::Kind(3));
        assert_eq!(first(&[0x08, 0xff, 0xff]), WireError::Cut);
        let long = [&[0x08][..], &[0xff; 9], &[0x02]].concat();
        assert_eq!(first(&long), WireError::Number);
        let huge = [&[0x12][..], &[0xff; 9], &[0x01]].concat();
        assert_eq!(first(&huge), WireError::Cut);
        assert_eq!(Fields::of(&[0x0b, 0x0b]).count(), 1, "ends after an error");
        let field = Fields::of(&[0x12, 1, 0xff]).next().unwrap().unwrap();
        assert_eq!(field.text(), Err(WireError::Text(2)));
    }

    proptest! {
        #[test]
        fn numbers_read_as_written(n in any::<u64>()) {
            let mut message = Message::default();
            message.put(n);
            let bytes = message.into_bytes();
            prop_assert_eq!(number(&mut &bytes[..]), Ok(n));
        }

        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let fields = Fields::of(&bytes).count();
            prop_assert!(fields <= bytes.len());
        }
    }
}
