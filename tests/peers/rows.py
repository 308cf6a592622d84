"""The rows of issue 7's table: each makes its models, lets the contenders take turns, and gives a section's text."""

import argparse
import math
import re
import shutil
import subprocess
import sys

import whole
from contenders import HERE, ROOT, export, ours, peer, ratio, script, take_turns

MISSING = "–"


def number(value, form="{:.2f}"):
    return MISSING if math.isnan(value) else form.format(value)


def table(results, reference, more=None):
    """A line for each contender, and what it is times as fast as the reference."""
    heads = ["", "seconds", f"times as fast as {reference}", "resident", "memory of its own", *(more or {})]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, result in results.items():
        if result.failure:
            lines.append(f"| {name} | failed: {result.failure} |" + " |" * (len(heads) - 2))
            continue
        cells = [name, f"{result.median:.3f}", number(ratio(results, name, reference)),
                 f"{result.peak_mb / 1e3:.2f} GB", f"{result.own_mb / 1e3:.2f} GB"]
        cells += [column.get(name, "") for column in (more or {}).values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figures(results):
    """What the page puts together from several rows."""
    return {name: {"seconds": result.median, "resident_gb": result.peak_mb / 1e3}
            for name, result in results.items() if not result.failure}


def against(ratio, target):
    if math.isnan(ratio):
        return f"not measured (target {target}×)"
    return f"{ratio:.2f}× (target {target}×{'' if ratio >= target else ', missed'})"


def shorter(options, pixels):
    """Fewer runs where each takes long, so that a row takes minutes."""
    options = argparse.Namespace(**vars(options))
    if pixels >= 512:
        options.repeats = 1
    if pixels >= 1024:
        options.rounds = min(2, options.rounds)
    return options


def inputs_of_step(path, side, tokens, length):
    """Two rows as guidance makes them: an empty prompt and one of so many tokens, padded to a length."""
    import numpy
    from safetensors.numpy import save_file
    draw = numpy.random.default_rng(0)
    mask = numpy.zeros((2, length), dtype="int64")
    mask[:, :tokens] = 1
    captions = draw.standard_normal((2, 300, 4096), dtype="float32")[:, :length]
    save_file({"hidden_states": draw.standard_normal((2, 4, side, side), dtype="float32"),
               "encoder_hidden_states": numpy.ascontiguousarray(captions), "encoder_attention_mask": mask,
               "timestep": numpy.full(2, 500, dtype="float32")}, path)


def random_transformer(options, folder, side):
    script("import sys, pathlib, random_models as r; "
           "r.transformer(pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))",
           folder, side, max(side / 64, 0.5), options.layers)


def error(options, graph, inputs, expected):
    """The largest difference of the predicted noise over its largest value, by ONNX Runtime."""
    import numpy
    from safetensors.numpy import load_file
    actual = options.scratch / "actual.safetensors"
    command = [options.target / "examples" / "run_engine", "ort", graph, options.threads, inputs, actual]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    found = load_file(actual)["out_hidden_states"][:, :4]
    right = load_file(expected)["result"][:, :4]
    return f"{float(numpy.abs(found - right).max() / numpy.abs(right).max()):.1e}"


def share(report):
    """Of the machine's matrix products, as `pixart bench` has it."""
    return f"{100 * report['rows'][0]['share_of_peak']:.0f} %" if report else ""


def step(options, pixels):
    """One guided step of DiT-XL/2."""
    options = shorter(options, pixels)
    side, length = pixels // 8, -(-options.tokens // 8) * 8
    source = options.scratch / "transformer"
    random_transformer(options, source, side)
    padded, trimmed = options.scratch / "padded.safetensors", options.scratch / "trimmed.safetensors"
    inputs_of_step(padded, side, options.tokens, 300)
    inputs_of_step(trimmed, side, options.tokens, length)
    fp32 = export(options, "transformer", source, options.scratch / "fp32")
    int8 = export(options, "transformer", source, options.scratch / "int8", "--precision", "int8", "--int8_mode",
                  "dynamic")
    expected = options.scratch / "expected.safetensors"
    contenders = [
        peer(options, "diffusers", "diffusers-step", source, padded, expected),
        ours(options, "pixart", "transformer", fp32, "denoise", pixels),
        ours(options, "pixart, --keep_resident", "transformer", fp32, "denoise", pixels, more=["--keep_resident"]),
        ours(options, "pixart, int8 dynamic", "transformer", int8, "denoise", pixels),
        peer(options, "OpenVINO, same graph", "openvino", fp32 / "model.onnx", trimmed),
    ]
    if pixels <= 512:
        portable = export(options, "transformer", source, options.scratch / "portable", "--profile", "portable")
        contenders.append(ours(options, "pixart, tract", "transformer", portable, "denoise", pixels, engine="tract"))
    results, reports = take_turns(contenders, options.rounds)
    errors = {name: error(options, folder / "model.onnx", trimmed, expected)
              for name, folder in (("pixart", fp32), ("pixart, int8 dynamic", int8))}
    peak = {name: share(report) for name, report in reports.items() if name.startswith("pixart")}
    text = table(results, "diffusers", {"of the matrix-multiply peak": peak, "error of the noise": errors})
    targets = {256: (1.4, 2.5), 512: (1.25, 2.0), 1024: (1.1, 1.5)}.get(pixels)
    if targets:
        text += (f"\n\nfp32 {against(ratio(results, 'pixart', 'diffusers'), targets[0])}, "
                 f"int8 {against(ratio(results, 'pixart, int8 dynamic', 'diffusers'), targets[1])}.")
    if "pixart, tract" in results:
        slower = 1 / ratio(results, "pixart, tract", "pixart")
        text += f" tract takes {number(slower)} times as long as ONNX Runtime (target: at most 1.6)."
    start = reports["pixart"]["rows"][0]["load_seconds"] if reports["pixart"] else math.nan
    text += f" Loading before the first step: {number(start)} s (target for a whole start: below 2 s)."
    if not results["OpenVINO, same graph"].failure:
        slower = [number(ratio(results, name, "OpenVINO, same graph")) for name in ("pixart", "pixart, --keep_resident")]
        text += f" Against OpenVINO on the same graph: {slower[0]}×, with `--keep_resident` {slower[1]}× (target: at least 1)."
    return text, figures(results)


def step_cuda(options):
    """The same on a graphics card in fp16 at the seed's four sizes; pixart needs `pixart engine install cuda`."""
    parts = []
    for pixels, seed in ((256, 18.04), (512, 15.95), (1024, 4.96), (2048, 0.57)):
        side, source = pixels // 8, options.scratch / "transformer"
        random_transformer(options, source, side)
        fp16 = export(options, "transformer", source, options.scratch / "fp16", "--precision", "fp16", "--force")
        padded = options.scratch / "padded.safetensors"
        inputs_of_step(padded, side, options.tokens, 300)
        half = {"device": "cuda", "dtype": "float16"}
        results, _ = take_turns([
            peer(options, "diffusers", "diffusers-step", source, padded, **half),
            peer(options, "diffusers, compiled", "diffusers-step", source, padded, compile=True, **half),
            ours(options, "pixart", "transformer", fp16, "denoise", pixels, device="cuda"),
        ], options.rounds)
        rates = {name: number(1 / result.median) for name, result in results.items()}
        parts.append(f"{pixels} px; the seed published {seed} steps a second.\n\n"
                     + table(results, "diffusers", {"steps a second": rates}))
        shutil.rmtree(source)
    return "\n\n".join(parts)


def text(options):
    """T5-XXL in 8 bits, prompt and negative prompt."""
    import numpy
    from safetensors.numpy import save_file
    source = options.scratch / "text_encoder"
    make = ("import sys, pathlib, random_models as r; r.text_encoder(pathlib.Path(sys.argv[1]), int(sys.argv[2]), "
            "sys.argv[3])")
    script(make, source, options.text_layers, "BF16")
    int8 = export(options, "text_encoder", source, options.scratch / "int8", "--precision", "int8")
    shutil.rmtree(source)
    # Two blocks stand for all: in fp32 they would not fit beside anything else.
    layers = min(2, options.text_layers)
    script(make, source, layers, "F32")
    mask = numpy.zeros((2, 300), dtype="int64")
    mask[0, :1], mask[1, :options.tokens] = 1, 1
    inputs = options.scratch / "text.safetensors"
    save_file({"input_ids": 5 * mask, "attention_mask": mask}, inputs)
    factor = options.text_layers / layers
    name = "transformers" if factor == 1 else f"transformers, {layers} blocks times {factor:.0f}"
    results, reports = take_turns([
        peer(options, name, "transformers-text", source, inputs, factor=factor),
        ours(options, "pixart, int8", "text_encoder", int8, "text"),
    ], options.rounds)
    weights = 4 * (32128 * 4096 + options.text_layers * (4 * 4096 ** 2 + 3 * 4096 * 10240)) / 1e9
    memory = results["pixart, int8"].peak_mb / 1e3
    result = table(results, name, {"of the matrix-multiply peak": {"pixart, int8": share(reports["pixart, int8"])}})
    result += (f"\n\n{against(ratio(results, 'pixart, int8', name), 20)}. The weights alone take transformers "
            f"{weights:.1f} GB in fp32; {number(memory)} GB are {number(100 * memory / weights, '{:.0f}')} % of that "
               "(target: a quarter; below 6 GB). This is the encoder loaded as a whole, as `--keep_resident` has it; what "
               "`pixart sample` takes, which reads it layer by layer, is in the row `memory-512`.")
    measured = figures(results)
    # Where blocks stand for all, at least all weights.
    if name in measured:
        measured[name]["resident_gb"] = max(measured[name]["resident_gb"], weights)
    return result, measured


def decode(options, pixels):
    """The SDXL auto-encoder's decoder."""
    options = shorter(options, pixels)
    import numpy
    from safetensors.numpy import save_file
    source = options.scratch / "vae"
    script("import sys, pathlib, random_models as r; r.vae(pathlib.Path(sys.argv[1]))", source)
    exported = export(options, "vae_decoder", source, options.scratch / "fp32")
    inputs = options.scratch / "latents.safetensors"
    draw = numpy.random.default_rng(0)
    save_file({"latent_sample": draw.standard_normal((1, 4, pixels // 8, pixels // 8), dtype="float32")}, inputs)
    results, reports = take_turns([
        peer(options, "diffusers", "diffusers-decode", source, inputs),
        ours(options, "pixart", "vae_decoder", exported, "decode", pixels),
        ours(options, "pixart, --low_memory", "vae_decoder", exported, "decode", pixels, more=["--low_memory"]),
        peer(options, "OpenVINO, same graph", "openvino", exported / "model.onnx", inputs),
    ], options.rounds)
    peak = {name: share(report) for name, report in reports.items() if name.startswith("pixart")}
    text = table(results, "diffusers", {"of the matrix-multiply peak": peak})
    tiled = "pixart, --low_memory"
    text += (f"\n\n{against(ratio(results, 'pixart', 'diffusers'), 1.2)}; with `--low_memory` {number(ratio(results, tiled, 'diffusers'))}× in "
             f"{number(results[tiled].peak_mb / 1e3)} GB (target: 1.5 GB).")
    return text, figures(results)


def demo(options):
    """The demo model from start to picture, whole processes."""
    command = [sys.executable, HERE / "demo.py", "--pixart", options.pixart, "--runs", max(3, options.rounds),
               "--threads", options.threads, "--peer", sys.executable]
    return output(command)


def export_transformer(options):
    """DiT-XL/2 to ONNX, beside torch.onnx.export."""
    return output([sys.executable, HERE / "export.py", "transformer", "--pixart", options.pixart, "--scratch",
                   options.scratch / "export", "--layers", options.layers, "--runs", options.rounds])


def export_text(options):
    """T5 v1.1 XXL to ONNX, beside copying the file."""
    return output([sys.executable, HERE / "export.py", "text_encoder", "--pixart", options.pixart, "--scratch",
                   options.scratch / "export", "--layers", options.text_layers, "--precisions", "fp32", "fp16", "int8",
                   "int4"])


def accuracy(options):
    """One step against diffusers on every profile and engine."""
    pixels = [256] if options.quick else [256, 512]
    return output([sys.executable, ROOT / "scripts" / "check_full_size.py", "--target", options.target, "--scratch",
                   options.scratch / "accuracy", "--layers", options.layers, "--threads", options.threads, "--pixels",
                   *pixels])


def output(command):
    told = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    if told.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {told.returncode}")
    return re.sub(r"\n{3,}", "\n\n", told.stdout.strip())


# Name, heading, what is done, and whether `--quick` has it. `step-cuda` has to be asked for.
ROWS = {
    "demo": ("The demo model, from start of the program to the written picture", demo, True),
    "step-256": ("One guided step of DiT-XL/2, 256 px", lambda options: step(options, 256), True),
    "step-512": ("One guided step of DiT-XL/2, 512 px", lambda options: step(options, 512), False),
    "step-1024": ("One guided step of DiT-XL/2, 1024 px", lambda options: step(options, 1024), False),
    "step-cuda": ("One guided step of DiT-XL/2 on a graphics card, fp16", step_cuda, False),
    "text": ("T5 v1.1 XXL, a prompt and an empty negative prompt", text, True),
    "decode-256": ("The SDXL auto-encoder's decoder, 256 px", lambda options: decode(options, 256), True),
    "decode-512": ("The SDXL auto-encoder's decoder, 512 px", lambda options: decode(options, 512), False),
    "decode-1024": ("The SDXL auto-encoder's decoder, 1024 px", lambda options: decode(options, 1024), False),
    "memory-512": ("Memory of a picture of 512 px with T5 v1.1 XXL in 8 bits", whole.memory, True),
    "start": ("From the start of the program to the first step of DiT-XL/2, 512 px", whole.start, True),
    "accuracy": ("Full size against diffusers", accuracy, False),
    "export-transformer": ("Export of DiT-XL/2", export_transformer, True),
    "export-text": ("Export of T5 v1.1 XXL", export_text, False),
}
