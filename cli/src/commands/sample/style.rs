//! Ready-made styles: words around a prompt, and words to draw away from.
//!
//! The ten names are those of the official demo; the words are our own.

use crate::exit::Failure;

/// A style.
struct Style {
    name: &'static str,
    /// The prompt's place is `{}`.
    prompt: &'static str,
    negative: &'static str,
}

/// The first one changes nothing.
const STYLES: [Style; 10] = [
    Style { name: "(No style)", prompt: "{}", negative: "" },
    Style {
        name: "Cinematic",
        prompt: "a frame from a feature film of {}, anamorphic lens, soft key light, muted colour grade, fine \
                 film grain, shallow focus, wide composition",
        negative: "drawing, cartoon, flat light, oversaturated, text, watermark, amateur snapshot",
    },
    Style {
        name: "Photographic",
        prompt: "a photograph of {}, 50mm lens, natural light, sharp focus on the subject, true colours, blurred \
                 background, high resolution",
        negative: "drawing, painting, rendering, cartoon, blurry, noisy, deformed",
    },
    Style {
        name: "Anime",
        prompt: "anime key visual of {}, clean line art, cel shading, vivid colours, expressive, painted \
                 background",
        negative: "photograph, realistic skin, 3d rendering, rough sketch, washed out, deformed hands",
    },
    Style {
        name: "Manga",
        prompt: "black and white manga page of {}, inked lines, screentone shading, strong contrast, dynamic \
                 panel",
        negative: "colour, photograph, 3d rendering, soft gradients, blurry lines",
    },
    Style {
        name: "Digital Art",
        prompt: "digital painting of {}, polished illustration, detailed brushwork, luminous colours, balanced \
                 composition",
        negative: "photograph, low resolution, flat, unfinished, jpeg artefacts",
    },
    Style {
        name: "Pixel art",
        prompt: "pixel art of {}, 16-bit game graphics, limited palette, crisp square pixels, no smoothing",
        negative: "smooth gradients, photograph, blurry, anti-aliased, high detail, realistic",
    },
    Style {
        name: "Fantasy art",
        prompt: "epic fantasy painting of {}, magical atmosphere, ornate detail, glowing light, sweeping scenery",
        negative: "modern city, photograph, plain, dull colours, low detail, deformed",
    },
    Style {
        name: "Neonpunk",
        prompt: "neon-lit futuristic scene of {}, magenta and cyan glow, rain-wet reflections, dark city night, \
                 sleek surfaces",
        negative: "daylight, pastel, rustic, black and white, dull, flat light",
    },
    Style {
        name: "3D Model",
        prompt: "rendered 3d model of {}, physically based materials, studio light, ambient occlusion, clean \
                 geometry",
        negative: "drawing, sketch, photograph, flat shading, low polygon count, noisy",
    },
];

/// Lays a style around a prompt; the negative prompt follows the style's words.
pub fn styled(name: &str, prompt: &str, negative: &str) -> Result<(String, String), Failure> {
    let style = STYLES.iter().find(|style| plain(style.name) == plain(name));
    let Some(style) = style else {
        return Err(Failure::request(unknown(name)));
    };
    let negative = match (style.negative, negative) {
        ("", own) => own.to_owned(),
        (words, "") => words.to_owned(),
        (words, own) => format!("{words}, {own}"),
    };
    Ok((style.prompt.replace("{}", prompt), negative))
}

/// A name without case and signs: `pixel_art` is `Pixel art`.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn unknown(name: &str) -> String {
    let score = |style: &&Style| strsim::jaro_winkler(&plain(style.name), &plain(name));
    let nearest = STYLES.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
    let names: Vec<_> = STYLES.iter().map(|style| style.name).collect();
    let hint = match nearest.filter(|style| score(style) > 0.75) {
        Some(style) => format!("did you mean `{}`?", style.name),
        None => format!("expected one of {}", names.join(", ")),
    };
    format!("style: found `{name}`; {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_holds_the_prompt_once() {
        for Style { name, .. } in &STYLES {
            let (prompt, negative) = styled(name, "a {} fox", "bad").unwrap();
            assert_eq!(prompt.matches("a {} fox").count(), 1, "{name}");
            assert!(negative.ends_with("bad"), "{name}");
        }
        assert_eq!(styled("no style", "a", "").unwrap(), ("a".to_owned(), String::new()));
        assert_eq!(styled("PIXEL_ART", "a", "").unwrap(), styled("Pixel art", "a", "").unwrap());
    }
}
