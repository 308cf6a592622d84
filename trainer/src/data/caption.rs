//! Which caption a picture is trained with.

use super::random::Stream;
use serde::{Deserialize, Serialize};

/// The captions of a picture: either may be missing, an empty one counts as missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captions {
    /// The original caption, `prompt` in the seed's files.
    pub prompt: Option<String>,
    /// The long caption a model wrote, `sharegpt4v` in the seed's files.
    pub sharegpt4v: Option<String>,
}

/// How captions are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptionOptions {
    /// Probability of `prompt` where a picture has both captions, 0 to 1.
    pub real_prompt_ratio: f64,
    /// Probability that the caption's embedding is replaced by the null caption's, 0 to 1.
    pub class_dropout_prob: f64,
}

impl Default for CaptionOptions {
    /// The seed's: 0.5 and 0.1.
    fn default() -> Self {
        Self { real_prompt_ratio: 0.5, class_dropout_prob: 0.1 }
    }
}

/// One of the two captions of a picture, by the field of the seed's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CaptionKind {
    /// The original one.
    Prompt,
    /// The long one.
    Sharegpt4v,
}

/// The caption of one picture in one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caption {
    /// The text.
    pub text: String,
    /// Which of the two it is.
    pub kind: CaptionKind,
    /// Whether its embedding is to be replaced by the null caption's. The attention mask stays the text's, as
    /// upstream (facts 5.3).
    pub dropped: bool,
}

impl Captions {
    /// The captions with what is empty taken out and white space around them removed.
    pub fn new(prompt: Option<String>, sharegpt4v: Option<String>) -> Self {
        let kept = |text: Option<String>| {
            let text = text?;
            let trimmed = text.trim();
            (!trimmed.is_empty()).then(|| trimmed.to_owned())
        };
        Self { prompt: kept(prompt), sharegpt4v: kept(sharegpt4v) }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.prompt.is_none() && self.sharegpt4v.is_none()
    }

    /// Those there are, `prompt` first.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.prompt.iter().chain(&self.sharegpt4v).map(String::as_str)
    }

    /// The caption of the picture with this number in this epoch of a run; the same whenever asked.
    /// A picture without captions gets the empty one.
    pub fn choose(
        &self,
        options: CaptionOptions,
        seed: u64,
        epoch: u64,
        picture: usize,
    ) -> Caption {
        let mut stream = Stream::new(seed, &[PURPOSE, epoch, picture as u64]);
        let real = stream.unit() < options.real_prompt_ratio;
        let dropped = stream.unit() < options.class_dropout_prob;
        let wanted = if real { CaptionKind::Prompt } else { CaptionKind::Sharegpt4v };
        let kind = self.or_other(wanted);
        Caption { text: self.get(kind).cloned().unwrap_or_default(), kind, dropped }
    }

    /// Those that [`choose`](Self::choose) can give with a probability that is not 0.
    pub fn possible(&self, options: CaptionOptions) -> Vec<CaptionKind> {
        let ratio = options.real_prompt_ratio;
        let wanted = [(CaptionKind::Prompt, ratio > 0.0), (CaptionKind::Sharegpt4v, ratio < 1.0)];
        let wanted = wanted.into_iter().filter(|(_, is_wanted)| *is_wanted);
        let mut kinds: Vec<_> = wanted.map(|(kind, _)| self.or_other(kind)).collect();
        kinds.dedup();
        kinds
    }

    /// The one of this kind.
    pub(super) fn get(&self, kind: CaptionKind) -> Option<&String> {
        match kind {
            CaptionKind::Prompt => self.prompt.as_ref(),
            CaptionKind::Sharegpt4v => self.sharegpt4v.as_ref(),
        }
    }

    /// This one, unless there is only the other.
    fn or_other(&self, kind: CaptionKind) -> CaptionKind {
        let other = match kind {
            CaptionKind::Prompt => CaptionKind::Sharegpt4v,
            CaptionKind::Sharegpt4v => CaptionKind::Prompt,
        };
        if self.get(kind).is_none() && self.get(other).is_some() { other } else { kind }
    }
}

/// Tells these choices from those of other parts of a run.
const PURPOSE: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> Captions {
        Captions::new(Some(" short ".into()), Some("long".into()))
    }

    #[test]
    fn captions_come_in_the_ratio_asked_for() {
        let options = CaptionOptions { real_prompt_ratio: 0.3, class_dropout_prob: 0.1 };
        let chosen: Vec<_> = (0..10_000).map(|k| both().choose(options, 1, 0, k)).collect();
        let short = chosen.iter().filter(|caption| caption.text == "short").count();
        let dropped = chosen.iter().filter(|caption| caption.dropped).count();
        // Deviations are 46 and 30.
        assert!((2800..3200).contains(&short), "{short}");
        assert!((880..1120).contains(&dropped), "{dropped}");
        // The two choices do not depend on each other.
        let together =
            chosen.iter().filter(|caption| caption.dropped && caption.text == "short").count();
        assert!((240..360).contains(&together), "{together}");
    }

    #[test]
    fn the_limits_are_exact() {
        for (ratio, text) in [(0.0, "long"), (1.0, "short")] {
            let options =
                CaptionOptions { real_prompt_ratio: ratio, class_dropout_prob: 1.0 - ratio };
            for k in 0..1000 {
                let caption = both().choose(options, 9, 3, k);
                assert_eq!((caption.text.as_str(), caption.dropped), (text, ratio == 0.0));
            }
        }
    }

    #[test]
    fn what_can_be_chosen_is_known() {
        use CaptionKind::{Prompt, Sharegpt4v};
        let only = Captions::new(Some("short".into()), None);
        for (ratio, of_both) in
            [(0.0, &[Sharegpt4v][..]), (0.5, &[Prompt, Sharegpt4v]), (1.0, &[Prompt])]
        {
            let options = CaptionOptions { real_prompt_ratio: ratio, class_dropout_prob: 0.0 };
            assert_eq!(both().possible(options), of_both, "{ratio}");
            assert_eq!(only.possible(options), [Prompt], "{ratio}");
            let chosen = (0..100).map(|k| both().choose(options, 1, 0, k));
            assert!(chosen.into_iter().all(|caption| of_both.contains(&caption.kind)));
        }
    }

    #[test]
    fn epochs_differ_and_repeat() {
        let options = CaptionOptions { real_prompt_ratio: 0.5, class_dropout_prob: 0.0 };
        let epoch =
            |epoch| -> Vec<_> { (0..64).map(|k| both().choose(options, 7, epoch, k)).collect() };
        assert_eq!(epoch(0), epoch(0));
        assert_ne!(epoch(0), epoch(1));
    }

    #[test]
    fn one_caption_serves_for_both() {
        let options = CaptionOptions { real_prompt_ratio: 1.0, class_dropout_prob: 0.0 };
        let only = Captions::new(Some("  \n".into()), Some("long".into()));
        let chosen = only.choose(options, 0, 0, 0);
        assert_eq!((chosen.text.as_str(), chosen.kind), ("long", CaptionKind::Sharegpt4v));
        assert!(Captions::new(Some(String::new()), None).is_empty());
    }
}
