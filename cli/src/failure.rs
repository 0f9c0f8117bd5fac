//! How a command ends: exit status and one clear line.

use crate::api::ApiError;
use std::fmt;
use std::process::ExitCode;

/// Exit statuses, as `--help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Refused or failed; the line on standard error says why.
    Failed,
    /// The watched rollout was stopped by errors or by its gate.
    RolloutStopped,
    /// Metadata expire soon.
    ExpiresSoon,
    /// Metadata have expired.
    Expired,
    /// The watched rollout is paused.
    RolloutPaused,
    /// The watched rollout was aborted by an operator.
    RolloutAborted,
    /// The command line or a file named on it makes no sense.
    Usage,
    /// The fleet server does not answer.
    Unreachable,
}

impl Exit {
    /// The number the process exits with.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::RolloutStopped | Self::ExpiresSoon => 2,
            Self::RolloutPaused | Self::Expired => 3,
            Self::RolloutAborted => 4,
            Self::Usage => 64,
            Self::Unreachable => 69,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.status())
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the process exits with.
    pub exit: Exit,
    /// What is wrong and what to do, without a final newline.
    pub message: String,
}

impl Failure {
    /// Refused or failed.
    #[must_use]
    pub fn new(message: impl fmt::Display) -> Self {
        Self {
            exit: Exit::Failed,
            message: message.to_string(),
        }
    }

    /// The command line makes no sense.
    #[must_use]
    pub fn usage(message: impl fmt::Display) -> Self {
        Self {
            exit: Exit::Usage,
            message: message.to_string(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let exit = match &error {
            ApiError::Unreachable { .. } | ApiError::TimedOut { .. } => Exit::Unreachable,
            ApiError::Setup(_) => Exit::Usage,
            _ => Exit::Failed,
        };
        Self {
            exit,
            message: error.to_string(),
        }
    }
}

macro_rules! plain_failures {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(error)
            }
        }
    )*};
}

plain_failures!(
    crate::keys::KeysError,
    crate::keys::passphrase::PassphraseError,
    crate::pack::PackError,
    crate::capture::KeyError,
    crate::sign::SignError,
    crate::files::FileError,
    dunlin_protocol::trust::TrustError,
);

impl From<crate::context::ContextError> for Failure {
    fn from(error: crate::context::ContextError) -> Self {
        Self::usage(error)
    }
}
