//! Validated immutable input from the control plane: one whole `Settings` at a time.

/// The rules of a tunnel under one version (ARCHITECTURE.md, Settings). Version 1 is that of the REST request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Rises with each reload; named by every OPEN.
    pub version: u32,
    /// Canonical JSON (sorted keys, no white space) of the rules, as SETTINGS carries it.
    pub json: Vec<u8>,
}
