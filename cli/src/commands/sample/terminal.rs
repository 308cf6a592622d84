//! Pictures on a terminal: by its picture protocol where the environment names one, else as half-blocks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::imageops::{self, FilterType};
use image::{ImageFormat, RgbImage};
use std::fmt::Write;
use std::io::Cursor;

/// The widest and tallest preview, in characters. A character is about twice as tall as wide.
const COLUMNS: u32 = 48;
const ROWS: u32 = 20;

/// How a terminal shows pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// kitty's graphics protocol.
    Kitty,
    /// iTerm2's inline images.
    Iterm,
    /// The character ▀ in two colours of 24 bits.
    Blocks,
    /// The same in the 216 colours of the xterm palette.
    BlocksOf216,
}

/// A place on the terminal that one picture after the other is drawn in.
#[derive(Debug)]
pub struct Terminal {
    protocol: Protocol,
    /// Lines of the picture that is there.
    lines: u32,
}

impl Terminal {
    /// Finds out what the terminal can do, from variables alone: asking it could leave its answer among
    /// what the user types.
    pub fn detect(variable: impl Fn(&str) -> Option<String>) -> Self {
        let is = |name: &str, values: &[&str]| {
            variable(name).is_some_and(|value| values.contains(&value.as_str()))
        };
        let term = variable("TERM").unwrap_or_default();
        // Multiplexers pass no pictures on, while the variables of the terminal around them are still set.
        let inside = variable("TMUX").is_some() || variable("STY").is_some();
        let inside = inside || term.starts_with("screen") || term.starts_with("tmux");
        let kitty = term == "xterm-kitty" || term == "xterm-ghostty";
        let kitty = kitty || is("TERM_PROGRAM", &["ghostty", "WezTerm"]);
        let iterm = is("TERM_PROGRAM", &["iTerm.app"]) || is("LC_TERMINAL", &["iTerm2"]);
        let protocol = match (inside, is("COLORTERM", &["truecolor", "24bit"])) {
            (false, _) if kitty => Protocol::Kitty,
            (false, _) if iterm => Protocol::Iterm,
            (_, true) => Protocol::Blocks,
            (_, false) => Protocol::BlocksOf216,
        };
        Self { protocol, lines: 0 }
    }

    /// What to send to draw a picture where the last one is. The cursor stands below it, before and
    /// after.
    pub fn draw(&mut self, image: &RgbImage) -> Vec<u8> {
        let (columns, lines) = cells(image);
        let mut text = String::new();
        if self.lines > 0 {
            // To where the last one begins, and everything below goes.
            write!(text, "\x1b[{}F\x1b[J", self.lines).expect("a text takes all");
        }
        self.lines = lines;
        match self.protocol {
            Protocol::Blocks => blocks(&mut text, image, (columns, lines), direct),
            Protocol::BlocksOf216 => blocks(&mut text, image, (columns, lines), of_216),
            Protocol::Kitty | Protocol::Iterm => {
                // Room first, so that the picture does not scroll; then back to its first line.
                text.push_str(&"\n".repeat(lines as usize));
                write!(text, "\x1b[{lines}F\x1b7").expect("a text takes all");
                let png = png(image);
                if self.protocol == Protocol::Kitty {
                    kitty(&mut text, &png, (columns, lines));
                } else {
                    iterm(&mut text, &png, (columns, lines));
                }
                write!(text, "\x1b8\x1b[{lines}E").expect("a text takes all");
            }
        }
        text.into_bytes()
    }
}

/// Columns and lines that a picture fills.
fn cells(image: &RgbImage) -> (u32, u32) {
    let (width, height) = (f64::from(image.width()), f64::from(image.height()));
    let scale = (f64::from(COLUMNS) / width).min(f64::from(2 * ROWS) / height);
    let size = |side: f64| (side * scale).round().max(1.0) as u32;
    (size(width), size(height).div_ceil(2))
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut png = Vec::new();
    image.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).expect("memory takes all");
    png
}

/// In pieces of at most 4096 characters; the same number replaces the picture before, and nothing is
/// answered.
fn kitty(text: &mut String, png: &[u8], (columns, lines): (u32, u32)) {
    let data = STANDARD.encode(png);
    let mut pieces = data.as_bytes().chunks(4096).peekable();
    let mut first = true;
    while let Some(piece) = pieces.next() {
        let more = u8::from(pieces.peek().is_some());
        text.push_str("\x1b_G");
        if first {
            write!(text, "a=T,f=100,i=76,p=1,q=2,C=1,c={columns},r={lines},")
                .expect("a text takes all");
            first = false;
        }
        let piece = std::str::from_utf8(piece).expect("base64");
        write!(text, "m={more};{piece}\x1b\\").expect("a text takes all");
    }
}

fn iterm(text: &mut String, png: &[u8], (columns, lines): (u32, u32)) {
    let (size, data) = (png.len(), STANDARD.encode(png));
    write!(
        text,
        "\x1b]1337;File=inline=1;size={size};width={columns};height={lines};\
         preserveAspectRatio=1:{data}\x07"
    )
    .expect("a text takes all");
}

/// Two pixels a character: the upper in the colour of the text, the lower in that behind it.
fn blocks(
    text: &mut String,
    image: &RgbImage,
    (columns, lines): (u32, u32),
    colour: fn([u8; 3]) -> String,
) {
    let image = imageops::resize(image, columns, 2 * lines, FilterType::CatmullRom);
    for line in 0..lines {
        for column in 0..columns {
            let pixel = |y| colour(image.get_pixel(column, y).0);
            let (upper, lower) = (pixel(2 * line), pixel(2 * line + 1));
            write!(text, "\x1b[38;{upper};48;{lower}m▀").expect("a text takes all");
        }
        text.push_str("\x1b[0m\n");
    }
}

fn direct([r, g, b]: [u8; 3]) -> String {
    format!("2;{r};{g};{b}")
}

/// The nearest of the palette's 6 × 6 × 6 colours, whose levels are 0, 95, 135, 175, 215, 255.
fn of_216(rgb: [u8; 3]) -> String {
    let [r, g, b] = rgb.map(|level| match u32::from(level) {
        0..48 => 0,
        48..115 => 1,
        level => (level - 35) / 40,
    });
    format!("5;{}", 16 + 36 * r + 6 * g + b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn protocol(variables: &[(&str, &str)]) -> Protocol {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name);
        Terminal::detect(|name| find(name).map(|(_, value)| (*value).to_owned())).protocol
    }

    #[test]
    fn protocols_are_told_by_variables() {
        assert_eq!(protocol(&[("TERM", "xterm-kitty")]), Protocol::Kitty);
        assert_eq!(protocol(&[("TERM_PROGRAM", "WezTerm")]), Protocol::Kitty);
        assert_eq!(protocol(&[("TERM_PROGRAM", "iTerm.app")]), Protocol::Iterm);
        assert_eq!(protocol(&[("LC_TERMINAL", "iTerm2")]), Protocol::Iterm);
        assert_eq!(protocol(&[("COLORTERM", "truecolor")]), Protocol::Blocks);
        assert_eq!(protocol(&[("TERM", "xterm-256color")]), Protocol::BlocksOf216);
        let inside = [("TMUX", "x"), ("LC_TERMINAL", "iTerm2"), ("COLORTERM", "24bit")];
        assert_eq!(protocol(&inside), Protocol::Blocks);
        assert_eq!(
            protocol(&[("TERM", "screen"), ("TERM_PROGRAM", "ghostty")]),
            Protocol::BlocksOf216
        );
    }

    fn image() -> RgbImage {
        RgbImage::from_fn(16, 32, |x, y| Rgb([16 * x as u8, 8 * y as u8, 255]))
    }

    fn drawn(protocol: Protocol) -> (String, String) {
        let mut terminal = Terminal { protocol, lines: 0 };
        let mut draw = || String::from_utf8(terminal.draw(&image())).unwrap();
        (draw(), draw())
    }

    #[test]
    fn blocks_fill_their_lines_and_are_drawn_over() {
        for protocol in [Protocol::Blocks, Protocol::BlocksOf216] {
            let (first, second) = drawn(protocol);
            assert_eq!(first.matches('▀').count(), 20 * 20, "as tall as allowed, half as wide");
            assert_eq!(first.lines().count(), 20);
            assert_eq!(second, format!("\x1b[20F\x1b[J{first}"));
        }
        assert!(drawn(Protocol::Blocks).0.contains("\x1b[38;2;0;0;255;48;2;0;"));
        assert_eq!(of_216([0, 0, 0]), "5;16");
        assert_eq!(of_216([255, 255, 255]), "5;231");
        assert_eq!(of_216([95, 135, 40]), format!("5;{}", 16 + 36 + 12));
    }

    /// The picture within a protocol's message.
    fn decoded(base64: &str) -> RgbImage {
        let png = STANDARD.decode(base64).unwrap();
        image::load_from_memory_with_format(&png, ImageFormat::Png).unwrap().into_rgb8()
    }

    #[test]
    fn protocols_carry_the_picture() {
        let (first, second) = drawn(Protocol::Iterm);
        let (head, rest) = first.split_once("preserveAspectRatio=1:").unwrap();
        assert!(
            head.starts_with(&"\n".repeat(20)) && head.contains("width=20;height=20"),
            "{head}"
        );
        assert_eq!(decoded(rest.split_once('\x07').unwrap().0), image());
        assert!(first.ends_with("\x1b8\x1b[20E") && second.starts_with("\x1b[20F\x1b[J"));

        let mut text = String::new();
        let noise = RgbImage::from_fn(64, 64, |x, y| {
            Rgb([0, 1, 2].map(|k| ((x * x * 7 + y * y * 13 + x * y * (k + 3)) % 251) as u8))
        });
        kitty(&mut text, &png(&noise), (32, 16));
        let pieces: Vec<&str> = text.split("\x1b\\").filter(|piece| !piece.is_empty()).collect();
        assert!(pieces.len() > 1 && pieces[0].contains("c=32,r=16,m=1;"), "{}", pieces.len());
        assert!(pieces.last().unwrap().starts_with("\x1b_Gm=0;"));
        let data: String = pieces.iter().map(|piece| piece.split_once(';').unwrap().1).collect();
        assert!(pieces.iter().all(|piece| piece.split_once(';').unwrap().1.len() <= 4096));
        assert_eq!(decoded(&data), noise);
    }
}
