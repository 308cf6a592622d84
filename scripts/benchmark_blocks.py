"""Times two DiT-XL/2 blocks with random weights: both engines and diffusers, on the same input; prints a table.

    PYTHON scripts/benchmark_blocks.py --target target/release [--threads 2] [--sides 32 64 128]

PYTHON needs torch and diffusers. Build first: cargo build --release --workspace --examples
A batch of two (guidance), 300 caption tokens, fp32. Every row is a process of its own; the time is the fastest of
three runs after the first.
"""

import argparse
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time


def random_model(folder):
    import torch
    from diffusers import PixArtTransformer2DModel
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(sample_size=64, num_layers=2, interpolation_scale=1, caption_channels=4096,
                                     out_channels=8, use_additional_conditions=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)


def time_diffusers(folder, side, threads):
    import torch
    from diffusers import PixArtTransformer2DModel
    torch.set_num_threads(threads)
    model = PixArtTransformer2DModel.from_pretrained(folder).eval()
    inputs = dict(hidden_states=torch.randn(2, 4, side, side), encoder_hidden_states=torch.randn(2, 300, 4096),
                  encoder_attention_mask=torch.ones(2, 300), timestep=torch.tensor([949.0, 949.0]),
                  added_cond_kwargs={"resolution": None, "aspect_ratio": None})
    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            model(**inputs)
            seconds.append(time.perf_counter() - start)
    print(min(seconds[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def time_engine(target, engine, folder, side, threads):
    shapes = [f"hidden_states=f32:2,4,{side},{side}", "encoder_hidden_states=f32:2,300,4096",
              "encoder_attention_mask=int64:2,300", "timestep=f32:2"]
    command = [target / "examples" / "time_engine", engine, folder / "transformer" / "model.onnx", str(threads), "4"]
    text = subprocess.run([*command, *shapes], check=True, capture_output=True, text=True).stdout
    seconds = float(re.search(r"later runs\s+([\d.]+)", text).group(1))
    return seconds, int(re.search(r"VmHWM:\s+(\d+)", text).group(1)) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 128], help="latent sides")
    parser.add_argument("--diffusers", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.diffusers:
        return time_diffusers(options.diffusers, options.sides[0], options.threads)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        random_model(folder / "model" / "transformer")
        for profile in ("ort", "portable"):
            command = [options.target / "pixart", "export", "transformer", "--source", folder / "model", "--output",
                       folder / profile, "--profile", profile]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print("| picture | diffusers | ONNX Runtime, `ort` | ONNX Runtime, `portable` | tract, `portable` |")
        print("|---|---|---|---|---|")
        for side in options.sides:
            peer = subprocess.run([sys.executable, __file__, "--target", options.target, "--threads",
                                   str(options.threads), "--sides", str(side), "--diffusers",
                                   folder / "model" / "transformer"], check=True, capture_output=True, text=True)
            reference, memory = map(float, peer.stdout.split())
            cells = [f"{reference:.2f} s, {memory:.0f} MB"]
            for engine, profile in (("ort", "ort"), ("ort", "portable"), ("tract", "portable")):
                seconds, memory = time_engine(options.target, engine, folder / profile, side, options.threads)
                cells.append(f"{seconds:.2f} s ({reference / seconds:.2f}×), {memory:.0f} MB")
            print(f"| {8 * side} px | " + " | ".join(cells) + " |", flush=True)


main()
