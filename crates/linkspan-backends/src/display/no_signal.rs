//! Why a screen has no picture, in the words that its viewers see.

use std::fmt;

use linkspan_display::{Kind, Loss, Reason, Refusal};

use super::source::SourceError;

/// Why there is no picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSignal {
    /// The guest shows nothing on this screen.
    Nothing,
    /// All is gone.
    Lost(Loss),
    /// The picture is one that is not shown.
    Refused(Reason),
    /// The source failed.
    Failed(String),
}

impl fmt::Display for NoSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("the guest shows nothing on this screen"),
            Self::Lost(loss) => loss.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl From<Refusal> for NoSignal {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Reason::new(&refusal.to_string()))
    }
}

impl From<&SourceError> for NoSignal {
    fn from(error: &SourceError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl NoSignal {
    /// The same, if it is not the picture itself that is meant.
    pub(super) fn of(self, kind: Kind) -> Self {
        match self {
            Self::Refused(why) => Self::Refused(Reason::new(&format!("{kind}: {why}"))),
            Self::Failed(why) => Self::Failed(format!("{kind}: {why}")),
            why => why,
        }
    }
}
