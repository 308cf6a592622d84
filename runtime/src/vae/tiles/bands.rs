//! Values of a whole picture, of which rows can be given back before the others.

use std::{iter::zip, ops::Range};

use ndarray::{Array4, ArrayView3, s};

use super::{statistics::Sums, windows::Window};

/// Rows that come and go together.
const BAND: usize = 16;

/// The rows of a value that are in memory. They come from the top on, and go so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    height: usize,
    /// Bands that are gone.
    gone: usize,
    /// Bands that have come so far.
    come: usize,
}

impl Extent {
    pub fn new(height: usize) -> Self {
        Self { height, gone: 0, come: 0 }
    }

    /// All rows.
    pub fn full(height: usize) -> Self {
        Self { come: height.div_ceil(BAND), ..Self::new(height) }
    }

    /// Takes rows up to `row`; gives the bands that come.
    pub fn take(&mut self, row: usize) -> Range<usize> {
        let before = self.come;
        self.come = before.max(row.div_ceil(BAND));
        before..self.come
    }

    /// Gives rows before `row` back; gives the bands that go.
    pub fn release(&mut self, row: usize) -> Range<usize> {
        let before = self.gone;
        self.gone = before.max(row / BAND);
        before..self.gone
    }

    /// How many rows are in memory.
    pub fn rows(&self) -> usize {
        (self.come * BAND).min(self.height) - (self.gone * BAND).min(self.height)
    }
}

/// A value `[channels, height, width]` as bands of rows.
pub(super) struct Bands {
    channels: usize,
    width: usize,
    extent: Extent,
    /// Each `[channels, BAND, width]`; those that are not in memory are empty.
    bands: Vec<Vec<f32>>,
}

impl Bands {
    /// No rows yet.
    pub fn new(channels: usize, height: usize, width: usize) -> Self {
        let bands = vec![Vec::new(); height.div_ceil(BAND)];
        Self { channels, width, extent: Extent::new(height), bands }
    }

    /// All of a value.
    pub fn of(value: ArrayView3<'_, f32>, sums: &mut [Sums]) -> Self {
        let (channels, height, width) = value.dim();
        let mut bands = Self::new(channels, height, width);
        let whole = |side| Window { taken: 0..side, result: 0..side, skipped: 0 };
        bands.write([&whole(height), &whole(width)], value, sums);
        bands
    }

    /// A part of it.
    ///
    /// # Panics
    /// When its rows are not in memory.
    pub fn read(&self, rows: Range<usize>, columns: Range<usize>) -> Array4<f32> {
        let mut values = Vec::with_capacity(self.channels * rows.len() * columns.len());
        for channel in 0..self.channels {
            for row in rows.clone() {
                let start = (channel * BAND + row % BAND) * self.width;
                let band = &self.bands[row / BAND][start..start + self.width];
                values.extend_from_slice(&band[columns.clone()]);
            }
        }
        let shape = (1, self.channels, rows.len(), columns.len());
        Array4::from_shape_vec(shape, values).expect("as many elements")
    }

    /// Everything. Its bands go one by one, so that it is not in memory twice.
    ///
    /// # Panics
    /// When not all rows are in memory.
    pub fn into_whole(self) -> Array4<f32> {
        let (height, width) = (self.extent.height, self.width);
        let mut whole = Array4::zeros((1, self.channels, height, width));
        for (place, band) in self.bands.into_iter().enumerate() {
            let rows = place * BAND..height.min((place + 1) * BAND);
            let band = ArrayView3::from_shape((self.channels, BAND, width), &band);
            let band = band.expect("a band that is in memory");
            let band = band.slice_move(s![.., ..rows.len(), ..]);
            whole.slice_mut(s![0, .., rows, ..]).assign(&band);
        }
        whole
    }

    /// Puts what is kept of a tile at its place, and adds it to `sums`.
    pub fn write(&mut self, place: [&Window; 2], tile: ArrayView3<'_, f32>, sums: &mut [Sums]) {
        let [rows, columns] = place;
        for band in self.extent.take(rows.result.end) {
            self.bands[band] = vec![0.0; self.channels * BAND * self.width];
        }
        for_rows(place, tile, |channel, row, values| {
            let start = (channel * BAND + row % BAND) * self.width;
            let band = &mut self.bands[row / BAND][start..start + self.width];
            band[columns.result.clone()].copy_from_slice(values);
            sums.iter_mut().for_each(|sums| sums.add(channel, values));
        });
    }

    /// Gives the rows before `row` back.
    pub fn release(&mut self, row: usize) {
        for band in self.extent.release(row) {
            self.bands[band] = Vec::new();
        }
    }
}

/// Tells channel, row and values of what is kept of a tile.
pub(super) fn for_rows(
    [rows, columns]: [&Window; 2],
    tile: ArrayView3<'_, f32>,
    mut tell: impl FnMut(usize, usize, &[f32]),
) {
    let kept = |window: &Window| window.skipped..window.skipped + window.result.len();
    let tile = tile.slice(s![.., kept(rows), kept(columns)]);
    for (channel, plane) in tile.outer_iter().enumerate() {
        for (row, values) in zip(rows.result.clone(), plane.outer_iter()) {
            match values.as_slice() {
                Some(values) => tell(channel, row, values),
                None => tell(channel, row, &values.to_vec()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    fn sample() -> Array3<f32> {
        Array3::from_shape_fn((3, 37, 20), |(c, y, x)| (c * 1000 + y * 20 + x) as f32)
    }

    #[test]
    fn tiles_come_together_and_parts_are_read() {
        let value = sample();
        let mut bands = Bands::new(3, 37, 20);
        for rows in [0..18, 18..37] {
            for columns in [0..7, 7..20] {
                // Tiles with one pixel more around them than is kept.
                let around = |r: &Range<usize>, end: usize| {
                    let taken = r.start.saturating_sub(1)..(r.end + 1).min(end);
                    Window { skipped: r.start - taken.start, taken, result: r.clone() }
                };
                let [rows, columns] = [around(&rows, 37), around(&columns, 20)];
                let tile = value.slice(s![.., rows.taken.clone(), columns.taken.clone()]);
                bands.write([&rows, &columns], tile, &mut []);
            }
        }
        let all = bands.read(0..37, 0..20);
        assert_eq!(all.index_axis_move(ndarray::Axis(0), 0), value);
        assert_eq!(Bands::of(value.view(), &mut []).into_whole(), bands.read(0..37, 0..20));
        bands.release(33);
        let below = bands.read(32..37, 4..9);
        assert_eq!(below.index_axis_move(ndarray::Axis(0), 0), value.slice(s![.., 32..37, 4..9]));
    }

    #[test]
    fn rows_in_memory_are_those_counted() {
        let value = sample();
        let mut bands = Bands::of(value.view(), &mut []);
        let bytes = |bands: &Bands| bands.bands.iter().map(Vec::len).sum::<usize>();
        // The last band is as tall as the others, for its five rows.
        assert_eq!((bands.extent.rows(), bytes(&bands)), (37, 3 * 48 * 20));
        for (row, rows) in [(15, 37usize), (16, 21), (31, 21), (32, 5)] {
            bands.release(row);
            assert_eq!(
                (bands.extent.rows(), bytes(&bands)),
                (rows, 3 * rows.next_multiple_of(16) * 20)
            );
        }
        let mut coming = Extent::new(37);
        assert_eq!((coming.take(10), coming.take(16), coming.take(37)), (0..1, 1..1, 1..3));
    }
}
