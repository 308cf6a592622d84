"""Models of the released shapes with random weights, for the benchmarks and checks beside this file."""

import json
import math
import struct

# Numbers made at a time by `text_encoder`.
BLOCK = 1 << 22


def transformer(folder, side=32, interpolation_scale=0.5, layers=28, seed=0):
    """A DiT-XL/2 for latents of `side`, saved by diffusers' own class into `folder`.

    The weights keep activations near 1, and nothing is neutral: gates, biases and the last layer are far from zero,
    so that every part counts in the output.
    """
    import torch
    from diffusers import PixArtTransformer2DModel
    torch.manual_seed(seed)
    model = PixArtTransformer2DModel(sample_size=side, num_layers=layers, interpolation_scale=interpolation_scale,
                                     caption_channels=4096, out_channels=8, use_additional_conditions=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale_shift_table"):
                scale = 0.3
            elif parameter.ndim == 1:
                scale = 0.1
            else:
                scale = 1 / math.sqrt(parameter[0].numel())
            parameter.normal_(0, scale)
    model.save_pretrained(folder)


def vae(folder, seed=0):
    """An auto-encoder of the SDXL VAE's shape, saved by diffusers' own class into `folder`."""
    import torch
    from diffusers import AutoencoderKL
    torch.manual_seed(seed)
    model = AutoencoderKL(block_out_channels=(128, 256, 512, 512), down_block_types=["DownEncoderBlock2D"] * 4,
                          up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2, latent_channels=4,
                          sample_size=512, scaling_factor=0.13025)
    model.save_pretrained(folder)


def text_encoder_tensors(layers):
    """Names and shapes of T5 v1.1 XXL's encoder, in the order of the released files."""
    yield "shared.weight", (32128, 4096)
    for layer in range(layers):
        block = f"encoder.block.{layer}.layer"
        for name in "qkv":
            yield f"{block}.0.SelfAttention.{name}.weight", (4096, 4096)
        yield f"{block}.0.SelfAttention.o.weight", (4096, 4096)
        if layer == 0:
            yield f"{block}.0.SelfAttention.relative_attention_bias.weight", (32, 64)
        yield f"{block}.0.layer_norm.weight", (4096,)
        for name in ("wi_0", "wi_1"):
            yield f"{block}.1.DenseReluDense.{name}.weight", (10240, 4096)
        yield f"{block}.1.DenseReluDense.wo.weight", (4096, 10240)
        yield f"{block}.1.layer_norm.weight", (4096,)
    yield "encoder.final_layer_norm.weight", (4096,)


def text_encoder(folder, layers=24, dtype="F32", seed=0):
    """A T5 v1.1 XXL encoder in two safetensors shards, written number by number; returns the bytes of weights."""
    import numpy
    width = {"F32": 4, "F16": 2, "BF16": 2}[dtype]
    tensors = [(name, shape, width * math.prod(shape)) for name, shape in text_encoder_tensors(layers)]
    total = sum(size for _, _, size in tensors)
    shards, done = ([], []), 0
    for tensor in tensors:
        shards[2 * done >= total].append(tensor)
        done += tensor[2]

    folder.mkdir(parents=True)
    generator = numpy.random.default_rng(seed)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, offset = {}, 0
        for name, shape, size in shard:
            weight_map[name] = file
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        header = json.dumps(header).encode()
        header += b" " * (-len(header) % 8)
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(header)) + header)
            for name, shape, _ in shard:
                scale, middle = (0.1, 1.0) if len(shape) == 1 else (1 / math.sqrt(shape[1]), 0.0)
                left = math.prod(shape)
                while left:
                    count = min(left, BLOCK)
                    numbers = generator.standard_normal(count, dtype=numpy.float32) * scale + middle
                    numbers = numbers.astype("<f4" if dtype != "F16" else "<f2")
                    if dtype == "BF16":
                        numbers = (numbers.view("<u4") >> 16).astype("<u2")
                    out.write(numbers.tobytes())
                    left -= count

    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": 4096, "d_kv": 64, "num_heads": 64,
        "d_ff": 10240, "num_layers": layers, "vocab_size": 32128, "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new", "is_gated_act": True, "tie_word_embeddings": False}))
    return total
