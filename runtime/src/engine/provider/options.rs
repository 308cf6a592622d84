//! The options of each provider, as ONNX Runtime's documentation and the crate `ort` have them.

use super::option::{BYTES, INDEX, OptionKind, OptionSpec, SWITCH};
use OptionKind::{Choice, Number, Text};

const fn option(name: &'static str, kind: OptionKind, summary: &'static str) -> OptionSpec {
    OptionSpec { name, kind, summary, default: None }
}

const fn set(
    name: &'static str,
    kind: OptionKind,
    summary: &'static str,
    default: &'static str,
) -> OptionSpec {
    OptionSpec { name, kind, summary, default: Some(default) }
}

/// How an arena of device memory grows.
const ARENA: OptionKind = Choice(&["kNextPowerOfTwo", "kSameAsRequested"]);

/// How WebGPU keeps buffers for later.
const BUFFERS: OptionKind = Choice(&["disabled", "lazyRelease", "simple", "bucket"]);

/// OpenVINO alone spells out truth.
const WORDS: OptionKind = OptionKind::Switch { off: "false", on: "true" };

pub(super) const CUDA: &[OptionSpec] = &[
    option("device_id", INDEX, "which GPU"),
    option("gpu_mem_limit", BYTES, "most memory of its arena, in bytes"),
    option("arena_extend_strategy", ARENA, "how its arena grows"),
    option(
        "cudnn_conv_algo_search",
        Choice(&["EXHAUSTIVE", "HEURISTIC", "DEFAULT"]),
        "how a way to compute convolutions is looked for, once for each size",
    ),
    option("cudnn_conv_use_max_workspace", SWITCH, "as much memory for convolutions as they like"),
    option("cudnn_conv1d_pad_to_nc1d", SWITCH, "how one-dimensional convolutions are padded"),
    option("enable_cuda_graph", SWITCH, "record and replay launches; needs fixed sizes"),
    option(
        "enable_skip_layer_norm_strict_mode",
        SWITCH,
        "more exact sums in skip-layer normalisation",
    ),
    set("use_tf32", SWITCH, "matrix products of fp32 in 10 bits: faster, errors near 1e-3", "0"),
    option("prefer_nhwc", SWITCH, "convolutions with channels last"),
    option("sdpa_kernel", Number { least: 0, most: 511 }, "which attention kernels, as a bit mask"),
    option("fuse_conv_bias", SWITCH, "add biases in cuDNN; slower to prepare"),
];

pub(super) const TENSORRT: &[OptionSpec] = &[
    option("device_id", INDEX, "which GPU"),
    option("trt_max_workspace_size", BYTES, "most memory while it compiles, in bytes"),
    option(
        "trt_min_subgraph_size",
        Number { least: 1, most: 1_000_000 },
        "fewest nodes that are worth a part of their own",
    ),
    option(
        "trt_max_partition_iterations",
        Number { least: 1, most: 1_000_000 },
        "how often it tries to divide the graph",
    ),
    option("trt_fp16_enable", SWITCH, "compute in fp16 where it likes to"),
    option("trt_bf16_enable", SWITCH, "compute in bf16 where it likes to"),
    option("trt_int8_enable", SWITCH, "compute in int8 where it likes to"),
    option("trt_engine_cache_enable", SWITCH, "keep compiled engines"),
    option("trt_engine_cache_path", Text, "folder for them"),
    option("trt_engine_cache_prefix", Text, "what their names begin with"),
    option("trt_timing_cache_enable", SWITCH, "keep what was measured while compiling"),
    option("trt_timing_cache_path", Text, "folder for that"),
    option("trt_layer_norm_fp32_fallback", SWITCH, "layer normalisation in fp32"),
    option(
        "trt_builder_optimization_level",
        Number { least: 0, most: 5 },
        "how long it looks for faster ways",
    ),
    option("trt_auxiliary_streams", Number { least: -1, most: 16 }, "streams beside the first"),
    option("trt_context_memory_sharing_enable", SWITCH, "parts share their working memory"),
    option("trt_force_sequential_engine_build", SWITCH, "compile one part after the other"),
    option("trt_profile_min_shapes", Text, "smallest sizes, input:1x2x3,…"),
    option("trt_profile_opt_shapes", Text, "sizes it is made for"),
    option("trt_profile_max_shapes", Text, "largest sizes"),
    option("trt_cuda_graph_enable", SWITCH, "record and replay launches; needs fixed sizes"),
];

pub(super) const TENSORRT_RTX: &[OptionSpec] = &[
    option("device_id", INDEX, "which GPU"),
    option("enable_cuda_graph", SWITCH, "record and replay launches; needs fixed sizes"),
    option("nv_max_workspace_size", BYTES, "most working memory, in bytes"),
    option("nv_max_shared_mem_size", BYTES, "most shared memory of a block, in bytes"),
    option("nv_profile_min_shapes", Text, "smallest sizes, input:1x2x3,…"),
    option("nv_profile_opt_shapes", Text, "sizes it is made for"),
    option("nv_profile_max_shapes", Text, "largest sizes"),
    option("nv_multi_profile_enable", SWITCH, "several ranges of sizes"),
    option("nv_runtime_cache_path", Text, "folder for compiled kernels"),
];

pub(super) const CANN: &[OptionSpec] = &[
    option("device_id", INDEX, "which accelerator"),
    option("npu_mem_limit", BYTES, "most memory of its arena, in bytes"),
    option("arena_extend_strategy", ARENA, "how its arena grows"),
    option("enable_cann_graph", SWITCH, "compile whole graphs, not single operators"),
    option("dump_graphs", SWITCH, "write the graphs it compiles"),
    set(
        "dump_om_model",
        SWITCH,
        "keep compiled graphs in the working folder; its own default is to do so",
        "0",
    ),
    set(
        "precision_mode",
        Choice(&[
            "force_fp32",
            "force_fp16",
            "allow_fp32_to_fp16",
            "must_keep_origin_dtype",
            "allow_mix_precision",
        ]),
        "what numbers it computes in; its own default is fp16",
        "must_keep_origin_dtype",
    ),
    option(
        "op_select_impl_mode",
        Choice(&["high_precision", "high_performance"]),
        "which of two ways to compute an operator",
    ),
    option("optypelist_for_implmode", Text, "for which operators, with commas"),
];

pub(super) const COREML: &[OptionSpec] = &[
    set(
        "ModelFormat",
        Choice(&["MLProgram", "NeuralNetwork"]),
        "the newer or the older form of a model; its own default is the older",
        "MLProgram",
    ),
    option(
        "MLComputeUnits",
        Choice(&["ALL", "CPUAndNeuralEngine", "CPUAndGPU", "CPUOnly"]),
        "what computes",
    ),
    option("RequireStaticInputShapes", SWITCH, "only parts of the graph with fixed sizes"),
    option("EnableOnSubgraphs", SWITCH, "also inside of Loop, Scan and If"),
    option(
        "SpecializationStrategy",
        Choice(&["Default", "FastPrediction"]),
        "prepare longer, compute faster",
    ),
    option("ProfileComputePlan", SWITCH, "log what computes each operator"),
    option("AllowLowPrecisionAccumulationOnGPU", SWITCH, "sums in fp16 on the GPU"),
    option("ModelCacheDirectory", Text, "folder for compiled models"),
];

pub(super) const OPENVINO: &[OptionSpec] = &[
    option("device_type", Text, "what computes: CPU, GPU, GPU.1, NPU, AUTO:GPU,CPU, …"),
    set(
        "precision",
        Choice(&["ACCURACY", "FP32", "FP16"]),
        "what numbers it computes in; ACCURACY is the model's own. GPUs take FP16 by themselves",
        "ACCURACY",
    ),
    option("num_of_threads", Number { least: 1, most: 1024 }, "threads; --threads is meant too"),
    option("num_streams", Number { least: 1, most: 255 }, "requests at a time"),
    option("cache_dir", Text, "folder for compiled graphs"),
    option("load_config", Text, "JSON file with properties of OpenVINO"),
    option("model_priority", Choice(&["LOW", "MEDIUM", "HIGH", "DEFAULT"]), "against other models"),
    option("enable_opencl_throttling", WORDS, "less load on the processor while the GPU computes"),
    option("enable_qdq_optimizer", WORDS, "simplify quantised graphs for the NPU"),
    option("disable_dynamic_shapes", WORDS, "compile anew for each size"),
    option("reshape_input", Text, "sizes to compile for, input[1,2,3..4]"),
];

pub(super) const WEBGPU: &[OptionSpec] = &[
    option("deviceId", INDEX, "number of Dawn's context, 0 is the one it makes itself"),
    option("preferredLayout", Choice(&["NCHW", "NHWC"]), "channels first or last"),
    option("powerPreference", Choice(&["high-performance", "low-power"]), "which GPU of several"),
    option("dawnBackendType", Choice(&["Vulkan", "D3D12"]), "the interface below"),
    option("enableGraphCapture", SWITCH, "record and replay launches; needs fixed sizes"),
    option("enableInt64", SWITCH, "whole numbers of 64 bits on the GPU"),
    option(
        "validationMode",
        Choice(&["disabled", "wgpuOnly", "basic", "full"]),
        "how much is checked",
    ),
    option("storageBufferCacheMode", BUFFERS, "how buffers of data are kept"),
    option("uniformBufferCacheMode", BUFFERS, "how buffers of settings are kept"),
    option("queryResolveBufferCacheMode", BUFFERS, "how buffers of measurements are kept"),
    option("defaultBufferCacheMode", BUFFERS, "how other buffers are kept"),
    option("forceCpuNodeNames", Text, "nodes to compute on the processor, one a line"),
];

pub(super) const DIRECTML: &[OptionSpec] = &[
    option("device_id", INDEX, "which GPU, as DXGI counts them; sets the two below aside"),
    option(
        "performance_preference",
        Choice(&["default", "high_performance", "minimum_power"]),
        "which GPU of several",
    ),
    option("device_filter", Choice(&["gpu", "npu", "any"]), "what kinds of device count"),
];

pub(super) const MIGRAPHX: &[OptionSpec] = &[
    option("device_id", INDEX, "which GPU"),
    option("migraphx_fp16_enable", SWITCH, "compute in fp16"),
    option("migraphx_fp8_enable", SWITCH, "compute in fp8"),
    option("migraphx_int8_enable", SWITCH, "compute in int8"),
    option("migraphx_exhaustive_tune", SWITCH, "look longer for faster ways"),
    option("migraphx_mem_limit", BYTES, "most memory of its arena, in bytes"),
    option("migraphx_arena_extend_strategy", ARENA, "how its arena grows"),
];

pub(super) const QNN: &[OptionSpec] = &[
    option("backend_path", Text, "library that computes: QnnHtp (NPU), QnnGpu or QnnCpu"),
    option("device_id", INDEX, "which device"),
    option("profiling_level", Choice(&["off", "basic", "detailed"]), "what it measures"),
    option("profiling_file_path", Text, "CSV file for that"),
    option("rpc_control_latency", Number { least: 0, most: 1_000_000 }, "in microseconds"),
    option("vtcm_mb", Number { least: 0, most: 1024 }, "fast memory of the NPU, in MiB"),
    option(
        "htp_performance_mode",
        Choice(&[
            "default",
            "burst",
            "balanced",
            "high_performance",
            "high_power_saver",
            "low_power_saver",
            "low_balanced",
            "power_saver",
            "extreme_power_saver",
            "sustained_high_performance",
        ]),
        "speed against power",
    ),
    option(
        "qnn_context_priority",
        Choice(&["low", "normal", "normal_high", "high"]),
        "of its work",
    ),
    option(
        "htp_graph_finalization_optimization_mode",
        Number { least: 0, most: 3 },
        "how long it looks for faster ways",
    ),
    option("soc_model", Number { least: 0, most: 65_535 }, "number of the chip"),
    option("htp_arch", Number { least: 0, most: 255 }, "generation of the NPU, as 73"),
    option("enable_htp_fp16_precision", SWITCH, "compute fp32 graphs in fp16"),
    option("enable_htp_weight_sharing", SWITCH, "graphs share weights"),
    option("offload_graph_io_quantization", SWITCH, "quantise inputs on the processor"),
];

pub(super) const XNNPACK: &[OptionSpec] =
    &[option("intra_op_num_threads", Number { least: 1, most: 1024 }, "threads of its own")];
