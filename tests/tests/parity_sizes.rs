//! The sizes that pictures are drawn at against the published tables.

use std::collections::BTreeMap;

use pixart_runtime::size::{Size, SizePlan};
use pixart_tests::fixtures;

/// Name → label of the ratio → height and width.
type Tables = BTreeMap<String, BTreeMap<String, (u32, u32)>>;

/// Latent side of a model and the table for it, diffusers' and mindone's where they have one.
const MODELS: [(u32, &str); 6] = [
    (32, "ASPECT_RATIO_256_BIN"),
    (64, "ASPECT_RATIO_512_BIN"),
    (128, "ASPECT_RATIO_1024_BIN"),
    (256, "ASPECT_RATIO_2048_BIN"),
    (360, "ASPECT_RATIO_2880"),
    (512, "ASPECT_RATIO_2880_TEST"),
];

/// As the references search: the first of the nearest, labels ascending.
fn nearest(table: &[(f64, (u32, u32))], ratio: f64) -> Size {
    let mut best = table[0];
    for &(label, size) in table {
        if (label - ratio).abs() < (best.0 - ratio).abs() {
            best = (label, size);
        }
    }
    Size { height: best.1.0, width: best.1.1 }
}

#[test]
fn twenty_thousand_sizes_fall_into_the_published_bins() {
    let tables: Tables = fixtures::json("aspect_ratios.json");
    for (sample_size, name) in MODELS {
        let mut table: Vec<(f64, (u32, u32))> = tables[name]
            .iter()
            .map(|(label, size)| (label.parse().expect("a number"), *size))
            .collect();
        table.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut state = 1u32;
        let mut side = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            1 + (state >> 8) % 16_384
        };
        let mut used = std::collections::BTreeSet::new();
        for _ in 0..20_000 {
            let (width, height) = (side(), side());
            let plan = SizePlan::new(Some(width), Some(height), sample_size, true).expect("a size");
            let expected = nearest(&table, f64::from(height) / f64::from(width));
            assert_eq!(plan.generated, expected, "{width}x{height} for {name}");
            assert_eq!(plan.requested, Size { width, height });
            used.insert((expected.height, expected.width));
        }
        assert_eq!(used.len(), table.len(), "sizes of {name} that no request gets");
    }
}

#[test]
fn without_bins_any_multiple_of_sixteen_is_drawn_as_it_is() {
    for side in (16..=16_384).step_by(16) {
        let plan = SizePlan::new(Some(side), Some(16_400 - side), 512, false).expect("a size");
        assert_eq!(plan.generated, plan.requested);
    }
}
