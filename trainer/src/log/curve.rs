//! The curve of the loss as a picture.

use image::{Rgb, RgbImage};

use super::glyphs;

const SIZE: (u32, u32) = (1000, 560);
/// Pixels around the plot: left, top, right, bottom.
const MARGIN: (u32, u32, u32, u32) = (110, 46, 30, 70);
const SCALE: u32 = 2;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const GRID: Rgb<u8> = Rgb([226, 226, 226]);
const INK: Rgb<u8> = Rgb([40, 40, 40]);
const EACH: Rgb<u8> = Rgb([178, 205, 236]);
const SMOOTH: Rgb<u8> = Rgb([18, 84, 168]);

/// Draws `losses`, at least one of them, in the order of their steps: each one pale, and over them a
/// moving average of the last hundredth of the run. A few outliers may lie above the upper edge.
pub(super) fn draw(losses: &[(u64, f64)]) -> RgbImage {
    let smooth = smoothed(losses);
    let mut sorted: Vec<f64> = losses.iter().map(|(_, loss)| *loss).collect();
    sorted.sort_by(f64::total_cmp);
    let part = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
    let (low, high) = (sorted[0], part(0.995).max(largest(&smooth)));
    let (first, last) = (losses[0].0 as f64, losses[losses.len() - 1].0 as f64);
    let plot = Plot { x: Axis::new(first, last, 8, 1.0), y: Axis::new(low, high, 6, 0.0) };

    let mut picture = RgbImage::from_pixel(SIZE.0, SIZE.1, PAPER);
    plot.axes(&mut picture);
    plot.curve(&mut picture, losses, EACH, 1);
    plot.curve(&mut picture, &smooth, SMOOTH, 3);
    picture
}

fn largest(losses: &[(u64, f64)]) -> f64 {
    losses.iter().map(|(_, loss)| *loss).fold(f64::MIN, f64::max)
}

/// An exponential moving average, corrected for its start.
fn smoothed(losses: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let keep = 1.0 - 1.0 / (losses.len() as f64 / 100.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let average = losses.iter().map(|(step, loss)| {
        sum = keep * sum + loss;
        weight = keep * weight + 1.0;
        (*step, sum / weight)
    });
    average.collect()
}

/// A range with round numbers in it.
struct Axis {
    low: f64,
    high: f64,
    spacing: f64,
}

impl Axis {
    /// About `count` numbers, at least `finest` apart.
    fn new(low: f64, high: f64, count: u32, finest: f64) -> Self {
        // One value alone gets some room around it.
        let room = if high > low { 0.0 } else { (low.abs() / 10.0).max(0.5) };
        let (low, high) = (low - room, high + room);
        let rough = (high - low) / f64::from(count);
        let power = 10f64.powf(rough.log10().floor());
        let spacing = [1.0, 2.0, 5.0, 10.0].map(|k| k * power).into_iter();
        let spacing = spacing.into_iter().find(|&s| s >= rough).unwrap_or(10.0 * power).max(finest);
        Self { low, high, spacing }
    }

    /// Where a value lies, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        let digits = (-self.spacing.log10().floor()).max(0.0) as usize;
        let range =
            (self.low / self.spacing).ceil() as i64..=(self.high / self.spacing).floor() as i64;
        let spacing = self.spacing;
        range.map(move |k| {
            let value = k as f64 * spacing;
            let text = match digits > 5 {
                true => format!("{value:.1e}"),
                false => format!("{value:.digits$}"),
            };
            (value, text)
        })
    }
}

struct Plot {
    x: Axis,
    y: Axis,
}

impl Plot {
    fn column(&self, step: f64) -> u32 {
        let width = f64::from(SIZE.0 - MARGIN.0 - MARGIN.2);
        MARGIN.0 + (self.x.place(step) * width).round() as u32
    }

    fn row(&self, loss: f64) -> u32 {
        let height = f64::from(SIZE.1 - MARGIN.1 - MARGIN.3);
        MARGIN.1 + ((1.0 - self.y.place(loss)) * height).round() as u32
    }

    fn axes(&self, picture: &mut RgbImage) {
        let (left, right) = (MARGIN.0, SIZE.0 - MARGIN.2);
        let (top, bottom) = (MARGIN.1, SIZE.1 - MARGIN.3);
        let write = |picture: &mut RgbImage, text: &str, x, y| {
            glyphs::write(picture, text, (x, y), SCALE, INK);
        };
        for (value, text) in self.y.ticks() {
            let (row, (width, height)) = (self.row(value), glyphs::size(&text, SCALE));
            (left..=right).for_each(|x| picture.put_pixel(x, row, GRID));
            write(picture, &text, left.saturating_sub(width + 10), row.saturating_sub(height / 2));
        }
        for (value, text) in self.x.ticks() {
            let (column, (width, _)) = (self.column(value), glyphs::size(&text, SCALE));
            (top..=bottom).for_each(|y| picture.put_pixel(column, y, GRID));
            let start = column.saturating_sub(width / 2).min(SIZE.0 - width.min(SIZE.0));
            write(picture, &text, start, bottom + 12);
        }
        (left..=right).for_each(|x| picture.put_pixel(x, bottom, INK));
        (top..=bottom).for_each(|y| picture.put_pixel(left, y, INK));
        write(picture, "loss", left, top - 30);
        let width = glyphs::size("step", SCALE).0;
        write(picture, "step", right - width, bottom + 40);
    }

    /// Lines from point to point, `width` pixels thick.
    fn curve(&self, picture: &mut RgbImage, points: &[(u64, f64)], color: Rgb<u8>, width: u32) {
        let place = |&(step, loss): &(u64, f64)| {
            (f64::from(self.column(step as f64)), f64::from(self.row(loss)))
        };
        let mut dot = |x: f64, y: f64| {
            let half = f64::from(width / 2);
            for (dx, dy) in (0..width * width).map(|k| (k % width, k / width)) {
                let (x, y) = (x - half + f64::from(dx), y - half + f64::from(dy));
                picture.put_pixel(x.round() as u32, y.round() as u32, color);
            }
        };
        if let [only] = points {
            let (x, y) = place(only);
            dot(x, y);
        }
        for pair in points.windows(2) {
            let ((x0, y0), (x1, y1)) = (place(&pair[0]), place(&pair[1]));
            let count = (x1 - x0).abs().max((y1 - y0).abs()).max(1.0);
            for k in 0..=count as u32 {
                let share = f64::from(k) / count;
                dot(x0 + share * (x1 - x0), y0 + share * (y1 - y0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(low: f64, high: f64, count: u32, finest: f64) -> Vec<String> {
        Axis::new(low, high, count, finest).ticks().map(|(_, text)| text).collect()
    }

    #[test]
    fn numbers_beside_the_axes_are_round() {
        assert_eq!(ticks(0.07, 1.02, 6, 0.0), ["0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(ticks(1.0, 20_000.0, 8, 1.0), ["5000", "10000", "15000", "20000"]);
        assert_eq!(ticks(1.0, 3.0, 8, 1.0), ["1", "2", "3"]);
        assert_eq!(ticks(0.1231, 0.1239, 6, 0.0)[0], "0.1232");
        // One value alone.
        assert_eq!(ticks(0.0, 0.0, 6, 0.0).len(), 5);
        assert!(ticks(1e-9, 2e-9, 6, 0.0)[0].contains('e'));
    }

    #[test]
    fn the_curve_goes_through_its_points() {
        let losses: Vec<(u64, f64)> = (1..=200).map(|k| (k, 1.0 / k as f64)).collect();
        let picture = draw(&losses);
        let colored = |(x, y): (u32, u32)| *picture.get_pixel(x, y) == SMOOTH;
        // High on the left, low on the right.
        let (left, right) = (MARGIN.0, SIZE.0 - MARGIN.2);
        let (top, bottom) = (MARGIN.1, SIZE.1 - MARGIN.3);
        assert!((top..top + 5).any(|y| colored((left, y))));
        assert!((bottom - 5..=bottom).any(|y| colored((right - 1, y))));
        assert!(!(top..bottom - 20).any(|y| colored((right - 1, y))));
        draw(&losses[..1]);
        draw(&[(1, 0.0), (2, 0.0)]);
        draw(&[(5, 1e300), (9, -1e300)]);
    }

    #[test]
    fn the_average_follows_the_losses() {
        let constant: Vec<(u64, f64)> = (1..=5000).map(|k| (k, 2.0)).collect();
        assert!(smoothed(&constant).iter().all(|(_, loss)| (loss - 2.0).abs() < 1e-9));
        let step: Vec<(u64, f64)> = (1..=1000).map(|k| (k, f64::from(u8::from(k > 500)))).collect();
        let average = smoothed(&step);
        assert!(average[505].1 < 0.6 && average[560].1 > 0.99);
    }
}
