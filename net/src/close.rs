//! Close codes: why a connection or stream ended, as the ending side states it.

use std::fmt;

use quinn::VarInt;

/// Why a connection was closed. Numbers are never used again: 3, 7 and 9 were codes that nobody sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CloseCode {
    /// All is done.
    Ok,
    /// The programs speak different versions.
    Version,
    /// The join proof did not hold.
    Auth,
    /// A limit was exceeded.
    Limit,
    /// Bytes that are not the protocol.
    Malformed,
    /// The program ends.
    Shutdown,
    /// A bug at the closing side.
    Internal,
    /// A code this version does not know.
    Other(u32),
}

impl CloseCode {
    pub(crate) const fn to_varint(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Ok => 0,
            Self::Version => 1,
            Self::Auth => 2,
            Self::Limit => 4,
            Self::Malformed => 5,
            Self::Shutdown => 6,
            Self::Internal => 8,
            Self::Other(code) => code,
        })
    }

    pub(crate) fn from_varint(code: VarInt) -> Self {
        match code.into_inner() {
            0 => Self::Ok,
            1 => Self::Version,
            2 => Self::Auth,
            4 => Self::Limit,
            5 => Self::Malformed,
            6 => Self::Shutdown,
            8 => Self::Internal,
            other => Self::Other(u32::try_from(other).unwrap_or(u32::MAX)),
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "done",
            Self::Version => "version",
            Self::Auth => "authentication",
            Self::Limit => "limit exceeded",
            Self::Malformed => "malformed",
            Self::Shutdown => "shutting down",
            Self::Internal => "internal error",
            Self::Other(code) => return write!(f, "code {code}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire() {
        for code in 0..12 {
            let code = VarInt::from_u32(code);
            assert_eq!(CloseCode::from_varint(code).to_varint(), code);
        }
        assert_eq!(CloseCode::from_varint(VarInt::MAX), CloseCode::Other(u32::MAX));
    }
}
