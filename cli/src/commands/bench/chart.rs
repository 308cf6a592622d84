//! The seconds as bars, on a scale of powers of ten: a text takes a thousandth of what a large picture does.

use super::StageName;
use super::report::{Report, digits};
use crate::exit::Failure;
use image::{ImageFormat, Rgb, RgbImage};
use pixart_trainer::log::glyphs;
use std::io::Cursor;

const WIDTH: u32 = 1000;
/// Pixels from one bar to the next, and its height.
const PITCH: u32 = 34;
const BAR: u32 = 22;
/// Pixels left of the bars, right of them, above and below.
const MARGIN: (u32, u32, u32, u32) = (230, 110, 50, 50);
const SCALE: u32 = 2;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const GRID: Rgb<u8> = Rgb([226, 226, 226]);
const INK: Rgb<u8> = Rgb([40, 40, 40]);

fn color(stage: StageName) -> Rgb<u8> {
    match stage {
        StageName::Text => Rgb([120, 160, 90]),
        StageName::Denoise => Rgb([18, 84, 168]),
        StageName::Decode => Rgb([200, 120, 40]),
    }
}

/// A PNG file with a bar for every row that was measured.
pub fn draw(report: &Report) -> Result<Vec<u8>, Failure> {
    let rows = report.rows.iter();
    let bars = rows.filter_map(|row| Some((row.name(), row.stage, row.seconds?.max(1e-9))));
    let picture = bars_of(&bars.collect::<Vec<_>>());
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

fn bars_of(bars: &[(String, StageName, f64)]) -> RgbImage {
    let (left, right, top, bottom) = MARGIN;
    let height = top + PITCH * bars.len() as u32 + bottom;
    let mut picture = RgbImage::from_pixel(WIDTH, height, PAPER);
    let powers = bars.iter().map(|(_, _, seconds)| seconds.log10());
    let (low, high) =
        powers.fold((0.0f64, 0.0f64), |(low, high), p| (low.min(p.floor()), high.max(p.ceil())));
    let high = high.max(low + 1.0);
    let room = f64::from(WIDTH - left - right);
    let column = |power: f64| left + ((power - low) / (high - low) * room).round() as u32;

    for power in low as i32..=high as i32 {
        let (x, text) = (column(power.into()), power_of_ten(power));
        (top..height - bottom).for_each(|y| picture.put_pixel(x, y, GRID));
        let width = glyphs::size(&text, SCALE).0;
        let place = (x.saturating_sub(width / 2), height - bottom + 12);
        glyphs::write(&mut picture, &text, place, SCALE, INK);
    }
    glyphs::write(&mut picture, "seconds", (left, 18), SCALE, INK);
    for (index, (name, stage, seconds)) in bars.iter().enumerate() {
        let y = top + PITCH * index as u32 + (PITCH - BAR) / 2;
        let end = column(seconds.log10()).max(left + 2);
        for (x, y) in (y..y + BAR).flat_map(|y| (left..end).map(move |x| (x, y))) {
            picture.put_pixel(x, y, color(*stage));
        }
        let (width, text_height) = glyphs::size(name, SCALE);
        let row = y + (BAR - text_height) / 2;
        glyphs::write(&mut picture, name, (left.saturating_sub(width + 12), row), SCALE, INK);
        glyphs::write(&mut picture, &digits(*seconds), (end + 8, row), SCALE, INK);
    }
    picture
}

fn power_of_ten(power: i32) -> String {
    match power {
        0.. => format!("{}", 10f64.powi(power)),
        _ => format!("{:.*}", power.unsigned_abs() as usize, 10f64.powi(power)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_ten_times_as_long_is_one_power_longer() {
        let bar = |seconds| (String::new(), StageName::Denoise, seconds);
        let picture = bars_of(&[bar(0.1), bar(1.0), bar(10.0)]);
        let lengths = [0, 1, 2].map(|index| {
            let y = MARGIN.2 + PITCH * index + PITCH / 2;
            (0..WIDTH).filter(|x| *picture.get_pixel(*x, y) == color(StageName::Denoise)).count()
        });
        // The scale has three ends here, 0.1, 1 and 10; the shortest bar is a mark.
        let room = (WIDTH - MARGIN.0 - MARGIN.1) as usize;
        assert_eq!(lengths, [2, room / 2, room]);
        bars_of(&[]);
    }

    #[test]
    fn powers_are_written_out() {
        assert_eq!([-2, 0, 3].map(power_of_ten), ["0.01", "1", "1000"]);
    }
}
