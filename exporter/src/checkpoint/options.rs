//! What a caller can ask for when a checkpoint is opened.

/// Which files of a folder, and which part of a file, a checkpoint is read from. The default is
/// what upstream reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// The variant of the files in a folder, as in `model.fp16.safetensors`. `None` takes the plain
    /// files, and a variant only where there is exactly one and no plain file.
    pub variant: Option<String>,
    /// The part of a PyTorch file to read.
    pub weights_key: WeightsKey,
}

/// Where in a PyTorch file the weights are.
///
/// A training checkpoint is a dictionary that holds the weights under a key, often twice (trained,
/// and averaged over the training), beside the state of the optimizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WeightsKey {
    /// Under the first of `state_dict`, `ema`, `model` and `state_dict_ema` that holds a
    /// dictionary; without any of these, the file's own dictionary. Upstream knows the first two.
    #[default]
    Auto,
    /// In the file's own dictionary.
    Bare,
    /// Under this key, and nowhere else.
    Named(String),
}

impl WeightsKey {
    /// Reads what a user types: `auto`, `none` (no key) or a key.
    pub fn parse(text: &str) -> Self {
        match text {
            "auto" => Self::Auto,
            "none" => Self::Bare,
            key => Self::Named(key.to_owned()),
        }
    }
}
