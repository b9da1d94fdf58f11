//! What one request may cost, in bytes and in time.

use std::time::Duration;

/// Most bytes of a body; long contexts need more than axum's 2 MiB.
pub(crate) const BODY_BYTES: usize = 8 << 20;
/// Time for a whole body to arrive.
pub(crate) const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// What one request may take of memory: a body of eight megabytes can be made to take gigabytes.
pub(crate) const MOST_BYTES: usize = 512 << 20;
