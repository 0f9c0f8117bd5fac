//! A file as a request body, read as it is sent, with its progress shown on a terminal.

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

const CHUNK_BYTES: usize = 64 * 1024;
/// Below this an upload is over before a line about it can be read.
const SHOWN_FROM_BYTES: u64 = 8 << 20;

/// Exactly `length` bytes of a file.
pub(super) struct FileBody {
    file: File,
    left: u64,
    length: u64,
    name: String,
    is_shown: bool,
    shown_percent: u64,
}

impl FileBody {
    pub(super) fn new(file: File, length: u64, name: &str) -> Self {
        Self {
            file,
            left: length,
            length,
            name: name.to_owned(),
            is_shown: length >= SHOWN_FROM_BYTES && std::io::stderr().is_terminal(),
            shown_percent: 0,
        }
    }

    fn show(&mut self) {
        let done = self.length - self.left;
        let percent = u64::try_from(u128::from(done) * 100 / u128::from(self.length.max(1)));
        let percent = percent.unwrap_or(100);
        if self.is_shown && percent != self.shown_percent {
            self.shown_percent = percent;
            let end = if self.left == 0 { "\n" } else { "" };
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "\ruploading {} {percent:3} %{end}", self.name);
            let _ = err.flush();
        }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    /// Reads from a local file of the operator's machine without a thread of its own: the command
    /// has nothing else to do meanwhile.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let wanted = usize::try_from(self.left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        let mut chunk = vec![0; wanted];
        if let Err(error) = self.file.read_exact(&mut chunk) {
            return Poll::Ready(Some(Err(error)));
        }
        self.left -= wanted as u64;
        self.show();
        Poll::Ready(Some(Ok(Frame::data(chunk.into()))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
