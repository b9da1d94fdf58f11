//! What tokens are for.

/// What a token is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TokenKind {
    /// Text.
    Normal,
    /// Stands for what no token covers.
    Unknown,
    /// Steers the model, is no text: `<|im_end|>`.
    Control,
    /// Text that is never split.
    UserDefined,
    /// Never used.
    Unused,
    /// One byte, written `<0xE2>`.
    Byte,
}
