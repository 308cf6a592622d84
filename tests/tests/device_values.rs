//! Values that stay on a device: they go there and come back as they were, and sessions read them there. On the
//! processor nothing is copied; a device with a memory of its own is named in `PIXART_TEST_DEVICE`.

use ndarray::{Array2, Array3};
use pixart_runtime::{engine::Value, tensor::Tensor};
use pixart_tests::{engines, errors::assert_close, exports::Export, fixtures};

/// Devices whose memory the processor does not read.
const APART: [&str; 5] = ["cuda", "tensorrt", "cann", "directml", "webgpu"];

#[test]
fn values_come_back_as_they_went() {
    let apart = engines::test_device().is_some_and(|device| APART.contains(&device.provider.name));
    let floats: Tensor =
        Array3::from_shape_fn((2, 3, 5), |(a, b, c)| (100 * a + 10 * b + c) as f32).into();
    let integers: Tensor = Array2::from_shape_fn((4, 2), |(a, b)| (10 * a + b) as i64 - 7).into();
    for engine in engines::both() {
        for (tensor, other) in [(&floats, [5, 6]), (&integers, [1, 8])] {
            let case = format!("{} on {}", tensor.dtype(), engine.name());
            let value = engine.to_device(tensor.clone()).expect("room");
            assert_eq!(value.shape(), tensor.shape(), "{case}");
            assert_eq!(value.dtype(), tensor.dtype(), "{case}");
            if apart && engine.name() == "ort" && tensor.dtype() == "f32" {
                assert!(value.elements().is_none(), "{case} lies in the processor's memory");
            }
            assert_eq!(value.to_tensor().expect("a copy"), *tensor, "{case}");
            let reshaped = value.clone().reshaped(&other).to_tensor().expect("a copy");
            assert_eq!(reshaped.shape(), other, "{case}");
            assert_eq!(value.into_tensor().expect("the tensor"), *tensor, "{case}");
        }
    }
}

#[test]
fn sessions_read_values_wherever_they_lie() {
    let export = Export::pipeline(&fixtures::tiny(), engines::profiles()[0]);
    let model = export.path().join("text_encoder/model.onnx");
    let inputs = |value: i64| {
        ["input_ids", "attention_mask"]
            .map(|name| (name, Tensor::from(Array2::<i64>::from_elem((1, 8), value))))
    };
    let ids = inputs(1);
    let [ort, tract] = engines::both();
    let tensors: Vec<_> = ids.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let mut session = ort.load(&model).expect("loads");
    let expected = session.run(&tensors).expect("embeddings").remove(0).1;
    let expected = expected.into_f32("").expect("floats");
    // One input on the device, the other in the processor's memory; results here, there, and on another engine.
    let place = |tensor: &Tensor| ort.to_device(tensor.clone()).expect("room");
    let values = [(ids[0].0, place(&ids[0].1)), (ids[1].0, Value::from(ids[1].1.clone()))];
    let values: Vec<_> = values.iter().map(|(name, value)| (*name, value)).collect();
    for round in 0..2 {
        let found = session.run_to_tensors(&values).expect("embeddings").remove(0).1;
        assert_close(&format!("{round}"), &found.into_f32("").expect("floats"), &expected, 1e-5);
        let held = session.run_values(&values).expect("embeddings").remove(0).1;
        let found = held.to_tensor().expect("a copy").into_f32("").expect("floats");
        assert_close(&format!("held {round}"), &found, &expected, 1e-5);
    }
    let elsewhere = tract.load(&model).expect("loads").run_to_tensors(&values);
    let elsewhere = elsewhere.expect("embeddings").remove(0).1.into_f32("").expect("floats");
    assert_close("on tract", &elsewhere, &expected, 1e-4);
    // The session is gone, its result is not.
    let held = session.run_values(&values).expect("embeddings").remove(0).1;
    drop(session);
    let found = held.to_tensor().expect("a copy").into_f32("").expect("floats");
    assert_close("later", &found, &expected, 1e-5);
}
