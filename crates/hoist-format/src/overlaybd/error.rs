//! Why an overlaybd layer can't be read.

/// Why an overlaybd layer can't be read. Each says which of its structures is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverlaybdError {
    /// The tar header around it.
    #[error("the tar header of an overlaybd layer: {0}")]
    Tar(&'static str),
    /// The compressed file.
    #[error("the ZFile of an overlaybd layer: {0}")]
    Zfile(&'static str),
    /// The file of sectors.
    #[error("the LSMT file of an overlaybd layer: {0}")]
    Lsmt(&'static str),
    /// TurboOCI's metadata layer.
    #[error("the metadata of a TurboOCI layer: {0}")]
    Turbo(String),
    /// TurboOCI's index of a gzip layer.
    #[error("gzip.meta of a TurboOCI layer: {0}")]
    GzipMeta(&'static str),
    /// The file system on its device.
    #[error("the file system of an overlaybd image: {0}")]
    Ext4(crate::ext4::DecodeError),
    /// The file system on its device.
    #[error("the file system of a TurboOCI image: {0}")]
    Erofs(crate::erofs::DecodeError),
    /// The table that it was to become.
    #[error("an overlaybd image: {0}")]
    Build(#[from] crate::build::BuildError),
    /// More than hoist takes.
    #[error("an overlaybd image with {0}")]
    TooMuch(&'static str),
}
