use super::*;
use ndarray::{Array2, array};

/// A caption whose states are its number and the token's.
fn caption(number: f32, tokens: usize, rows: usize) -> CaptionStates {
    let states = Array2::from_shape_fn((rows, 2), |(i, c)| number + i as f32 + 0.5 * c as f32);
    CaptionStates { states, tokens }
}

#[test]
fn captions_are_as_long_as_the_longest_and_dropped_ones_keep_their_mask() {
    let null = caption(100.0, 1, 20);
    let captions = [(caption(10.0, 3, 3), false), (caption(20.0, 9, 9), true)];
    let (states, mask) = put_together(&captions, &null, 20);
    assert_eq!((states.dim(), mask.dim()), ((2, 16, 2), (2, 16)));
    for i in 0..16 {
        assert_eq!(mask[[0, i]], i64::from(i < 3));
        assert_eq!(mask[[1, i]], i64::from(i < 9));
        let own = if i < 3 { [10.0 + i as f32, 10.5 + i as f32] } else { [0.0; 2] };
        let of_null = if i < 9 { [100.0 + i as f32, 100.5 + i as f32] } else { [0.0; 2] };
        assert_eq!(states.slice(s![.., i, ..]), array![own, of_null], "{i}");
    }
}

#[test]
fn no_caption_is_padded_beyond_the_greatest_length() {
    let null = caption(0.0, 1, 11);
    let (states, _) = put_together(&[(caption(1.0, 9, 9), false)], &null, 11);
    assert_eq!(states.dim(), (1, 11, 2));
    let (states, _) = put_together(&[(null.clone(), false)], &null, 11);
    assert_eq!(states.dim(), (1, 8, 2));
}

#[test]
fn variances_are_cut_off_as_in_diffusers() {
    // One number of two, then of their variances.
    let moments = array![[[[1.0f32]], [[2.0]], [[-31.0]], [[25.0]]]];
    let (mean, log_variance) = halves(&moments);
    assert_eq!(mean, array![[[[1.0]], [[2.0]]]]);
    assert_eq!(log_variance, array![[[[-30.0]], [[20.0]]]]);
}
