//! Tiles that go through the whole network one by one, and are blended where they overlap.

use ndarray::{Array1, Array2, ArrayD, Axis, s};

use super::{TilingMode, TilingOptions};

/// Runs `each` on overlapping tiles of `input`, f32 `[batch, channels, height, width]`, and blends the
/// results. `scale` is the side of the result against that of the input.
///
/// Every tile has the same size. Where two overlap, the weights go from one to the other along a
/// curve without kinks (3x² − 2x³), so that neither the picture nor its slope jumps.
///
/// # Errors
/// Those of `each`.
///
/// # Panics
/// When `each` gives another size than `scale` says.
pub fn run<E>(
    input: ArrayD<f32>,
    scale: (usize, usize),
    options: &TilingOptions,
    each: &mut dyn FnMut(ArrayD<f32>) -> Result<ArrayD<f32>, E>,
) -> Result<ArrayD<f32>, E> {
    // Pixels of the picture for one of the input.
    let pixels = (scale.0 / scale.1).max(1);
    let mode = TilingMode::Blended;
    let (tile, overlap) = (options.tile(mode) / pixels, options.overlap(mode) / pixels);
    let spans = |axis: usize| spans(input.shape()[axis], tile, overlap, scale.1.max(1));
    let (rows, columns) = (spans(2), spans(3));
    if rows.len() * columns.len() == 1 {
        return each(input);
    }
    let to_output = |side: usize| side * scale.0 / scale.1;
    let (height, width) = (to_output(input.shape()[2]), to_output(input.shape()[3]));
    let mut sum: Option<ArrayD<f32>> = None;
    let mut weights = Array2::<f32>::zeros((height, width));
    for (k, &(top, tall)) in rows.iter().enumerate() {
        for (l, &(left, wide)) in columns.iter().enumerate() {
            let cut = s![.., .., top..top + tall, left..left + wide];
            let made = each(input.slice(cut).to_owned().into_dyn())?;
            let place = [to_output(top), to_output(left), to_output(tall), to_output(wide)];
            let [y, x, tall, wide] = place;
            assert_eq!(made.shape()[2..], [tall, wide], "the result of a tile");
            let down = ramp(&rows, k, to_output);
            let across = ramp(&columns, l, to_output);
            let weight = &down.insert_axis(Axis(1)) * &across;
            let sum = sum.get_or_insert_with(|| {
                ArrayD::zeros(vec![made.shape()[0], made.shape()[1], height, width])
            });
            let area = s![.., .., y..y + tall, x..x + wide];
            sum.slice_mut(area).scaled_add(1.0, &(&made * &weight));
            weights.slice_mut(s![y..y + tall, x..x + wide]).scaled_add(1.0, &weight);
        }
    }
    let mut sum = sum.expect("at least one tile");
    sum /= &weights;
    Ok(sum)
}

/// Start and length of the tiles along a side; starts are multiples of `step`.
fn spans(side: usize, tile: usize, overlap: usize, step: usize) -> Vec<(usize, usize)> {
    if side <= tile {
        return vec![(0, side)];
    }
    let count = (side - overlap).div_ceil(tile - overlap);
    (0..count).map(|k| ((side - tile) * k / (count - 1) / step * step, tile)).collect()
}

/// The weights along one side of a tile.
fn ramp(spans: &[(usize, usize)], k: usize, to_output: impl Fn(usize) -> usize) -> Array1<f32> {
    let (start, length) = spans[k];
    let shared_before = k.checked_sub(1).map(|k| spans[k].0 + spans[k].1 - start);
    let shared_after = spans.get(k + 1).map(|next| start + length - next.0);
    let length = to_output(length);
    Array1::from_shape_fn(length, |i| {
        let part = |shared: Option<usize>, distance: usize| match shared.map(&to_output) {
            Some(shared) if shared > 0 => ((distance as f32 + 0.5) / shared as f32).min(1.0),
            _ => 1.0,
        };
        let x = part(shared_before, i).min(part(shared_after, length - 1 - i));
        x * x * (3.0 - 2.0 * x)
    })
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

    use super::*;

    fn options(tile_size: usize, overlap: usize) -> TilingOptions {
        TilingOptions {
            tile_size: Some(tile_size),
            overlap: Some(overlap),
            ..TilingOptions::default()
        }
    }

    /// A network that knows the picture only where it is: each pixel becomes 8 × 8 of itself.
    fn enlarge(x: ArrayD<f32>) -> Result<ArrayD<f32>, ()> {
        let s = x.shape();
        let shape = (s[0], s[1], 8 * s[2], 8 * s[3]);
        Ok(Array4::from_shape_fn(shape, |(b, c, i, j)| x[[b, c, i / 8, j / 8]]).into_dyn())
    }

    #[test]
    fn tiles_of_a_local_network_make_the_whole() {
        let x = Array4::from_shape_fn((2, 3, 21, 34), |(b, c, i, j)| {
            (b * 1000 + c * 100) as f32 + (i * 7 + j) as f32 / 10.0
        });
        let x = x.into_dyn();
        let whole = enlarge(x.clone()).expect("enlarged");
        for (tile, overlap) in [(64, 16), (64, 0), (128, 64), (512, 128)] {
            let mut count = 0;
            let tiled = run(x.clone(), (8, 1), &options(tile, overlap), &mut |tile_of_x| {
                assert!(tile_of_x.shape()[2..].iter().all(|side| side * 8 <= tile));
                count += 1;
                enlarge(tile_of_x)
            });
            let tiled = tiled.expect("enlarged");
            let error = (&tiled - &whole).mapv(f32::abs).into_iter().fold(0.0, f32::max);
            assert!(error < 1e-3, "{tile} {overlap}: {error}");
            assert_eq!(count > 1, tile < 272, "{tile} {overlap}: {count} tiles");
        }
    }

    #[test]
    fn the_other_direction_cuts_at_whole_latents() {
        let x = Array4::from_shape_fn((1, 3, 200, 136), |(_, c, i, j)| (c + i / 8 + j / 8) as f32);
        let reduce = |x: ArrayD<f32>| Ok::<_, ()>(x.slice(s![.., .., ..;8, ..;8]).to_owned());
        let reduce = |x| reduce(x).map(|x| x.into_dyn());
        let whole = reduce(x.clone().into_dyn()).expect("reduced");
        let tiled = run(x.into_dyn(), (1, 8), &options(64, 16), &mut { reduce }).expect("reduced");
        let error = (&tiled - &whole).mapv(f32::abs).into_iter().fold(0.0, f32::max);
        assert!(error < 1e-4, "{error}");
    }

    #[test]
    fn a_difference_between_tiles_is_spread_over_the_overlap() {
        let x = ArrayD::zeros(vec![1, 1, 8, 14]);
        let mut tiles = 0.0;
        let tiled = run(x, (8, 1), &options(64, 16), &mut |tile| {
            tiles += 1.0;
            enlarge(tile + tiles)
        });
        let tiled = tiled.expect("enlarged");
        let row = tiled.slice(s![0, 0, 5, ..]);
        assert_eq!((row[0], row[111]), (1.0, 2.0));
        let steepest = row.windows(2).into_iter().map(|w| w[1] - w[0]).fold(0.0, f32::max);
        assert!(steepest < 0.1, "{steepest}");
    }
}
