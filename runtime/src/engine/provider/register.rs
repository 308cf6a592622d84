//! Providers that a build of ONNX Runtime has in it, with their options.

use ort::ep::{
    self, ArbitrarilyConfigurableExecutionProvider as Configurable, ArenaExtendStrategy,
    ExecutionProvider, ExecutionProviderDispatch,
    directml::{DeviceFilter, PerformancePreference},
};

use super::{PROVIDERS, Provider};

/// Option names and values, checked and in the provider's spelling.
pub(super) type Settings = [(String, String)];

/// What a session registers; `None` for what is no provider of its own: the processor, and tract.
pub(super) fn dispatch(
    provider: &Provider,
    settings: &Settings,
) -> Option<ExecutionProviderDispatch> {
    let dispatch = match provider.name {
        "cuda" => configured(ep::CUDA::default(), settings).build(),
        "tensorrt" => configured(ep::TensorRT::default(), settings).build(),
        "tensorrt-rtx" => configured(ep::NVRTX::default(), settings).build(),
        "cann" => configured(ep::CANN::default(), settings).build(),
        "coreml" => configured(ep::CoreML::default(), settings).build(),
        "openvino" => configured(ep::OpenVINO::default(), settings).build(),
        "webgpu" => configured(ep::WebGPU::default(), settings).build(),
        "qnn" => configured(ep::QNN::default(), settings).build(),
        "xnnpack" => configured(ep::XNNPACK::default(), settings).build(),
        "directml" => direct_ml(settings).build(),
        "migraphx" => mi_graph_x(settings).build(),
        _ => return None,
    };
    // Its own default is to go on without the provider.
    Some(dispatch.error_on_failure())
}

/// Whether the ONNX Runtime at work was built with a provider.
pub(super) fn is_built_in(provider: &Provider) -> bool {
    let answer = match provider.name {
        "cpu" => Ok(true),
        "cuda" => ep::CUDA::is_available(),
        "tensorrt" => ep::TensorRT::is_available(),
        "tensorrt-rtx" => ep::NVRTX::is_available(),
        "cann" => ep::CANN::is_available(),
        "coreml" => ep::CoreML::is_available(),
        "openvino" => ep::OpenVINO::is_available(),
        "webgpu" => ep::WebGPU::is_available(),
        "qnn" => ep::QNN::is_available(),
        "xnnpack" => ep::XNNPACK::is_available(),
        "directml" => ep::DirectML::is_available(),
        "migraphx" => ep::MIGraphX::is_available(),
        _ => Ok(false),
    };
    answer.unwrap_or(false)
}

/// The names of all providers that it was built with.
pub(super) fn built_in() -> Vec<&'static str> {
    PROVIDERS
        .iter()
        .filter(|provider| is_built_in(provider))
        .map(|provider| provider.name)
        .collect()
}

fn configured<P: Configurable>(mut provider: P, settings: &Settings) -> P {
    for (name, value) in settings {
        provider.options_mut().set(name.as_str(), value.as_str());
    }
    provider
}

/// DirectML has no list of options but three settings.
fn direct_ml(settings: &Settings) -> ep::DirectML {
    settings.iter().fold(ep::DirectML::default(), |provider, (name, value)| {
        match (name.as_str(), value.as_str()) {
            ("device_id", number) => provider.with_device_id(number.parse().unwrap_or(0)),
            ("performance_preference", "high_performance") => {
                provider.with_performance_preference(PerformancePreference::HighPerformance)
            }
            ("performance_preference", "minimum_power") => {
                provider.with_performance_preference(PerformancePreference::MinimumPower)
            }
            ("device_filter", "npu") => provider.with_device_filter(DeviceFilter::Npu),
            ("device_filter", "any") => provider.with_device_filter(DeviceFilter::Any),
            // What is left is what it does by itself.
            _ => provider,
        }
    })
}

/// Nor has MIGraphX.
fn mi_graph_x(settings: &Settings) -> ep::MIGraphX {
    settings.iter().fold(ep::MIGraphX::default(), |provider, (name, value)| {
        let on = value == "1";
        match name.as_str() {
            "device_id" => provider.with_device_id(value.parse().unwrap_or(0)),
            "migraphx_fp16_enable" => provider.with_fp16(on),
            "migraphx_fp8_enable" => provider.with_fp8(on),
            "migraphx_int8_enable" => provider.with_int8(on),
            "migraphx_exhaustive_tune" => provider.with_exhaustive_tune(on),
            "migraphx_mem_limit" => provider.with_mem_limit(value.parse().unwrap_or(usize::MAX)),
            "migraphx_arena_extend_strategy" if value == "kSameAsRequested" => {
                provider.with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
            }
            _ => provider,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_of_onnx_runtime_can_be_registered() {
        for provider in PROVIDERS {
            let dispatch = dispatch(provider, &[]);
            let name = dispatch.as_ref().map(ExecutionProviderDispatch::name);
            match provider.name {
                "cpu" | "tract" => assert!(name.is_none(), "{}", provider.name),
                _ => assert_eq!(name, provider.ort_name, "{}", provider.name),
            }
        }
    }
}
