#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pixart_fuzz::models::onnx(data));
