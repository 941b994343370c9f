//! The errors, one type per operation: where, in which phase, how long, and what the budget looked like.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use crate::address::Address;
use crate::stats::BudgetCounts;
use crate::text::{After, Number, Rounded};

/// What a failed [`get`](crate::ConnResource::get) or [`acquire`](crate::Budget::acquire) was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Waiting for a slot of the budget.
    WaitingForSlot,
    /// Waiting for a connection of an address that has all it may have (`max_conns`).
    WaitingForAddress,
    /// Waiting until fewer dials are under way (`max_dialing`, of the resource or the budget), with slots to spare.
    WaitingToDial,
    /// Dialing.
    Dialing,
    /// Not dialing, since dials of the address have failed, and waiting for the next to be made.
    BackingOff,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::WaitingForSlot => "waiting for a slot",
            Phase::WaitingForAddress => "waiting for the address",
            Phase::WaitingToDial => "waiting to dial",
            Phase::Dialing => "dialing",
            Phase::BackingOff => "backing off",
        })
    }
}

/// The circumstances of a failed [`get`](crate::ConnResource::get).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GetDetails {
    /// The address asked for.
    pub address: Address,
    /// What the call was doing.
    pub phase: Phase,
    /// How long the call had taken, from its first poll.
    pub elapsed: Duration,
    /// The budget at that moment.
    pub counts: BudgetCounts,
    /// Whether a timeout ended the call.
    pub timed_out: bool,
    /// How long until the address is dialled again, if it pauses after failed dials; zero while the dial that probes it
    /// is under way.
    pub retry_in: Option<Duration>,
}

impl GetDetails {
    /// Who was refused at once has not waited.
    fn waited(&self) -> After {
        After(if self.timed_out { self.elapsed } else { Duration::ZERO })
    }

    fn exhaustion(&self) -> String {
        let Self { address, phase, counts, .. } = self;
        let waited = self.waited();
        match phase {
            Phase::WaitingToDial => {
                format!("{address}: as many dials under way as may be{waited} ({counts}); see max_dialing")
            }
            _ => {
                format!("{address}: no free slot{waited} ({counts}); Budget::explain() tells who holds them")
            }
        }
    }

    fn dial_failure(&self, source: &DialError) -> String {
        let Self { address, phase, elapsed, retry_in, .. } = self;
        match (phase, retry_in) {
            (Phase::BackingOff, Some(Duration::ZERO)) => {
                format!("{address}: not dialled after the last dials failed, while one probes it: {source}")
            }
            (Phase::BackingOff, Some(retry_in)) => {
                let retry_in = Rounded((*retry_in).max(Duration::from_millis(1)));
                format!(
                    "{address}: not dialled after the last dials failed, for another {retry_in}: {source}"
                )
            }
            _ => format!("{address}: dial failed{}: {source}", After(*elapsed)),
        }
    }
}

/// Why there is no connection.
///
/// `source()` is the last dial error at the address, where there is one: a get that timed out while its peer
/// refuses connections says so. The text of [`Dial`](Self::Dial) has that of its source in it; those of the others do not.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// The token given to [`Get::cancel`](crate::Get::cancel) fired.
    #[error("{}: cancelled{} while {}", .details.address, After(.details.elapsed), .details.phase)]
    Cancelled {
        /// The circumstances.
        details: Box<GetDetails>,
        /// The last dial error at the address.
        source: Option<DialError>,
    },
    /// No slot, or no leave to dial: not at once ([`Get::immediate`](crate::Get::immediate)), or not in time.
    #[error("{}", .details.exhaustion())]
    Exhausted {
        /// The circumstances.
        details: Box<GetDetails>,
        /// The last dial error at the address.
        source: Option<DialError>,
    },
    /// The address has all the connections it may have (`max_conns`), all in use: at once, or until the timeout.
    #[error("{}: no connection{}: it has all it may have (max_conns)", .details.address, .details.waited())]
    AddressBusy {
        /// The circumstances.
        details: Box<GetDetails>,
        /// The last dial error at the address.
        source: Option<DialError>,
    },
    /// The dial did not end in time.
    #[error("{}: dial timed out, {} after the get began", .details.address, Rounded(.details.elapsed))]
    DialTimeout {
        /// The circumstances.
        details: Box<GetDetails>,
        /// If the dial's own timeout ended it: what it was doing, or what of it had failed before, as far as its dialer
        /// [said](crate::DialContext::begin_step). Else the last dial error at the address.
        source: Option<DialError>,
    },
    /// The dial failed; or there was none, because dials have failed before
    /// ([`Phase::BackingOff`]; [`GetDetails::retry_in`] says for how long).
    #[error("{}", .details.dial_failure(.source))]
    Dial {
        /// The circumstances.
        details: Box<GetDetails>,
        /// What the dialer said.
        source: DialError,
    },
    /// The budget or the resource is closed.
    #[error("{}: closed", .details.address)]
    Closed {
        /// The circumstances.
        details: Box<GetDetails>,
    },
    /// The slot given to [`Get::with_slot`](crate::Get::with_slot) is not of the resource's budget.
    #[error("{}: the slot given to with_slot() belongs to another budget", .details.address)]
    ForeignSlot {
        /// The circumstances.
        details: Box<GetDetails>,
    },
}

impl GetError {
    /// The circumstances: address, phase, time taken, the budget's numbers.
    pub fn details(&self) -> &GetDetails {
        match self {
            Self::Cancelled { details, .. }
            | Self::Exhausted { details, .. }
            | Self::AddressBusy { details, .. }
            | Self::DialTimeout { details, .. }
            | Self::Dial { details, .. }
            | Self::Closed { details }
            | Self::ForeignSlot { details } => details,
        }
    }

    /// The address asked for; `(acquire)` if the error was made of an [`AcquireError`].
    pub fn address(&self) -> &Address {
        &self.details().address
    }

    /// What the call was doing.
    pub fn phase(&self) -> Phase {
        self.details().phase
    }

    /// Whether a timeout ended the call.
    pub fn is_timeout(&self) -> bool {
        self.details().timed_out
    }
}

impl From<AcquireError> for GetError {
    fn from(error: AcquireError) -> Self {
        let (AcquireError::Cancelled { details }
        | AcquireError::Exhausted { details }
        | AcquireError::Closed { details }) = &error;
        let details = Box::new(GetDetails {
            address: Address::from("(acquire)"),
            phase: Phase::WaitingForSlot,
            elapsed: details.elapsed,
            counts: details.counts,
            timed_out: details.timed_out,
            retry_in: None,
        });
        match error {
            AcquireError::Cancelled { .. } => Self::Cancelled { details, source: None },
            AcquireError::Exhausted { .. } => Self::Exhausted { details, source: None },
            AcquireError::Closed { .. } => Self::Closed { details },
        }
    }
}

impl From<GetError> for io::Error {
    fn from(error: GetError) -> Self {
        let kind = match &error {
            GetError::Dial { source, .. } => source.io_kind().unwrap_or(io::ErrorKind::Other),
            error if error.is_timeout() => io::ErrorKind::TimedOut,
            GetError::Exhausted { .. } | GetError::AddressBusy { .. } => io::ErrorKind::ResourceBusy,
            GetError::Closed { .. } => io::ErrorKind::NotConnected,
            GetError::ForeignSlot { .. } => io::ErrorKind::InvalidInput,
            // Not `Interrupted`: callers retry that.
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// The circumstances of a failed [`acquire`](crate::Budget::acquire).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AcquireDetails {
    /// How many slots were asked for.
    pub wanted: usize,
    /// How long the call had taken, from its first poll.
    pub elapsed: Duration,
    /// The budget at that moment.
    pub counts: BudgetCounts,
    /// Whether a timeout ended the call.
    pub timed_out: bool,
}

impl AcquireDetails {
    fn exhaustion(&self) -> String {
        let Self { wanted, elapsed, counts, timed_out } = self;
        let wanted = Number(*wanted, "slot");
        match counts.effective_limit {
            limit if wanted.0 > limit => format!("{wanted} asked for, of a budget that has {limit}"),
            _ => {
                let waited = After(if *timed_out { *elapsed } else { Duration::ZERO });
                format!("{wanted} not to be had{waited} ({counts}); Budget::explain() tells who holds them")
            }
        }
    }
}

/// Why there is no slot.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// The token given to [`Acquire::cancel`](crate::Acquire::cancel) fired.
    #[error("waiting for {}: cancelled{}", Number(.details.wanted, "slot"), After(.details.elapsed))]
    Cancelled {
        /// The circumstances.
        details: Box<AcquireDetails>,
    },
    /// Not as many slots: at once, in time, or ever, if more were asked for than the limit is.
    #[error("{}", .details.exhaustion())]
    Exhausted {
        /// The circumstances.
        details: Box<AcquireDetails>,
    },
    /// The budget is closed.
    #[error("the budget is closed")]
    Closed {
        /// The circumstances.
        details: Box<AcquireDetails>,
    },
}

impl AcquireError {
    /// The circumstances: slots wanted, time taken, the budget's numbers.
    pub fn details(&self) -> &AcquireDetails {
        match self {
            Self::Cancelled { details } | Self::Exhausted { details } | Self::Closed { details } => details,
        }
    }

    /// Whether a timeout ended the call.
    pub fn is_timeout(&self) -> bool {
        self.details().timed_out
    }
}

/// Why a dial failed. Cheap to clone.
///
/// # Examples
///
/// ```
/// use fdpool::DialError;
/// use std::io;
///
/// let refused = DialError::from(io::ErrorKind::ConnectionRefused);
/// assert_eq!(refused.io_kind(), Some(io::ErrorKind::ConnectionRefused));
/// assert!(!refused.is_permanent());
/// assert!(DialError::new("no such tenant").permanent().is_permanent());
/// ```
#[derive(Clone)]
pub struct DialError(Arc<Failure>);

struct Failure {
    source: Arc<dyn Error + Send + Sync>,
    permanent: bool,
}

impl DialError {
    /// A failure that may pass.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::new(Failure { source: source.into().into(), permanent: false }))
    }

    /// The same failure, as one that dialing again will not mend: a wrong name, a refused certificate.
    pub fn permanent(self) -> Self {
        Self(Arc::new(Failure { source: Arc::clone(&self.0.source), permanent: true }))
    }

    /// The error it was made of.
    pub fn get_ref(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0.source
    }

    /// The kind of the first [`io::Error`] among the causes, if there is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        self.io_errors().next().map(io::Error::kind)
    }

    /// Whether dialing again cannot mend it: it was [marked so](Self::permanent), the address is malformed, or it was made
    /// of an [`io::Error`] of kind `InvalidInput` that is not the system's own (`EINVAL`). Every other I/O error may pass.
    pub fn is_permanent(&self) -> bool {
        self.0.permanent
    }

    /// Whether the process (`EMFILE`) or the system (`ENFILE`) had no descriptor left.
    pub(crate) fn is_out_of_descriptors(&self) -> bool {
        self.io_errors().any(is_out_of_descriptors)
    }

    fn io_errors(&self) -> impl Iterator<Item = &io::Error> {
        // What an io::Error wraps is not its source(): that one is skipped to the wrapped error's own.
        fn cause<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            let error = *error;
            match error.downcast_ref::<io::Error>() {
                Some(io) => io.get_ref().map(|wrapped| wrapped as &(dyn Error + 'static)),
                None => error.source(),
            }
        }
        let first: &(dyn Error + 'static) = &*self.0.source;
        let causes = std::iter::successors(Some(first), cause);
        causes.filter_map(|error| error.downcast_ref())
    }
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        let permanent = is_wrong_input(&error);
        let error = Self::new(error);
        if permanent { error.permanent() } else { error }
    }
}

impl From<io::ErrorKind> for DialError {
    fn from(kind: io::ErrorKind) -> Self {
        io::Error::from(kind).into()
    }
}

impl fmt::Debug for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DialError")
            .field("source", &self.0.source)
            .field("permanent", &self.0.permanent)
            .finish()
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.source, f)
    }
}

/// Displays as the error it was made of, and so reports that one's source as its own.
impl Error for DialError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.source()
    }
}

/// Why a budget could not be sized.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct LimitError {
    what: &'static str,
    source: io::Error,
}

impl LimitError {
    pub(crate) fn read(source: io::Error) -> Self {
        Self { what: "read RLIMIT_NOFILE", source }
    }

    pub(crate) fn raise(source: io::Error) -> Self {
        Self { what: "raise the soft RLIMIT_NOFILE", source }
    }

    pub(crate) fn count(source: io::Error) -> Self {
        Self { what: "count the open descriptors (is /proc mounted?)", source }
    }
}

/// The global budget exists already: set it before its first use, and once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the global budget is already set or in use; set it before the first connection, and once")]
pub struct GlobalAlreadySet;

pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE.raw_os_error(), Errno::NFILE.raw_os_error()];
    error.raw_os_error().is_some_and(|code| exhausted.contains(&code))
}

/// What was asked for makes no sense. The system's EINVAL is none of that: it may be of an interface that is not up.
pub(crate) fn is_wrong_input(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput && error.raw_os_error().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_wrong_for_good_only_if_it_is_not_the_system_that_says_so() {
        let ours = io::Error::new(io::ErrorKind::InvalidInput, "no port");
        assert!(DialError::from(ours).is_permanent());
        assert!(DialError::from(io::ErrorKind::InvalidInput).is_permanent());
        let systems = io::Error::from_raw_os_error(Errno::INVAL.raw_os_error());
        assert_eq!(systems.kind(), io::ErrorKind::InvalidInput);
        assert!(!DialError::from(systems).is_permanent());
    }
}
