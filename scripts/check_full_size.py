"""Holds one step of a full-size DiT-XL/2 with random weights against diffusers, on every profile and engine.

    PYTHON scripts/check_full_size.py --target target/release --scratch DIR [--pixels 256 512]

PYTHON needs torch, diffusers and safetensors. Build first: cargo build --release --workspace --examples
One step is a batch of two, as guidance makes it, with 300 caption tokens of which the first row uses 40 and the
second 300. Takes 8 GB of disk and of memory. Prints a table and ends with 1 if an error is above the bar.
"""

import argparse
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys

import random_models

BAR = 1e-4
# Profile and engine of each row.
ROWS = [("ort", "ort"), ("portable", "ort"), ("cann", "ort"), ("portable", "tract"), ("cann", "tract")]


def reference(folder, case):
    """Runs in a process of its own: one step by diffusers; writes inputs and output."""
    import torch
    from diffusers import PixArtTransformer2DModel
    from safetensors.torch import save_file
    model = PixArtTransformer2DModel.from_pretrained(folder).eval()
    side = model.config.sample_size
    torch.manual_seed(1)
    mask = torch.ones(2, 300, dtype=torch.int64)
    mask[0, 40:] = 0
    inputs = {"hidden_states": torch.randn(2, 4, side, side), "encoder_hidden_states": torch.randn(2, 300, 4096),
              "encoder_attention_mask": mask, "timestep": torch.tensor([949.0, 949.0])}
    gates = []
    model.adaln_single.linear.register_forward_hook(lambda *arguments: gates.append(arguments[2]))
    with torch.inference_mode():
        output = model(inputs["hidden_states"], inputs["encoder_hidden_states"], inputs["timestep"],
                       added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                       encoder_attention_mask=mask.float(), return_dict=False)[0]
    # A step in which gates or output vanish would prove nothing.
    gates = gates[0].reshape(2, 6, -1) + model.transformer_blocks[0].scale_shift_table
    for row, what in ((2, "attention"), (5, "feed-forward")):
        if (size := gates[:, row].abs().mean()) < 0.1:
            raise SystemExit(f"the gates of {what} are {size:.1e} on average: degenerate weights")
    if not 0.1 < output.std() < 100:
        raise SystemExit(f"the output's standard deviation is {output.std():.1e}: degenerate weights")
    save_file(inputs, case / "inputs.safetensors")
    save_file({"out_hidden_states": output.contiguous()}, case / "expected.safetensors")


def relative_error(actual, expected):
    """max|a − b| / max|b|, infinite where something is not a number."""
    import numpy
    from safetensors.numpy import load_file
    actual, expected = (load_file(path)["out_hidden_states"] for path in (actual, expected))
    if actual.shape != expected.shape or not numpy.isfinite(actual).all():
        return math.inf
    return float(abs(actual - expected).max() / abs(expected).max())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=pathlib.Path)
    parser.add_argument("--scratch", type=pathlib.Path, help="folder to make and delete")
    parser.add_argument("--pixels", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reference", type=pathlib.Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reference:
        return reference(*options.reference)

    options.scratch.mkdir(parents=True)
    worst = 0.0
    try:
        source = options.scratch / "transformer"
        random_models.transformer(source, layers=options.layers)
        print("| picture | profile | engine | largest relative error | seconds for the step |")
        print("|---|---|---|---|---|")
        for profile in dict.fromkeys(profile for profile, _ in ROWS):
            for pixels in options.pixels:
                case = options.scratch / str(pixels)
                side = pixels // 8
                # The weights are those of every size; what differs is the position table.
                config = json.loads((source / "config.json").read_text())
                config |= {"sample_size": side, "interpolation_scale": max(side / 64, 0.5)}
                (source / "config.json").write_text(json.dumps(config))
                if not case.is_dir():
                    case.mkdir()
                    subprocess.run([sys.executable, __file__, "--reference", source, case], check=True)
                output = options.scratch / "onnx"
                subprocess.run([options.target / "pixart", "export", "transformer", "--source", source, "--output",
                                output, "--profile", profile], check=True, capture_output=True)
                for engine in (engine for row, engine in ROWS if row == profile):
                    text = subprocess.run(
                        [options.target / "examples" / "run_engine", engine, output / "transformer" / "model.onnx",
                         str(options.threads), case / "inputs.safetensors", case / "actual.safetensors"],
                        check=True, capture_output=True, text=True).stdout
                    seconds = float(re.search(r"run\s+([\d.]+)", text).group(1))
                    error = relative_error(case / "actual.safetensors", case / "expected.safetensors")
                    worst = max(worst, error)
                    print(f"| {pixels} px | `{profile}` | {text.split(' (')[0]} | {error:.1e} | {seconds:.1f} |",
                          flush=True)
                shutil.rmtree(output)
    finally:
        shutil.rmtree(options.scratch)
    if not worst <= BAR:
        raise SystemExit(f"the largest relative error is {worst:.1e}, allowed {BAR:.0e}")


main()
