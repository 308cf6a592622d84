"""Draws large pictures with a full-size DiT-XL/2 and the SDXL auto-encoder, random weights; prints a table. Linux.

    PYTHON scripts/benchmark_big.py --pixart target/release/pixart --scratch DIR [--depth 28] [--threads 4]
        [--cases 2K 2K-KV 4K-KV] [--engine ort] [--tiling auto]

PYTHON needs torch and diffusers. Each case is one run of `pixart sample` from exported graphs and a filled text
cache, so that the text encoder (T5 of full width with one block) is not loaded. 2K is two guided steps of the
default solver, which takes no fewer; 4K is one step without guidance (--guided: two guided ones). `--depth` makes
the transformer shallower: seconds per step grow in proportion to it, memory hardly.

Memory is what the process has of its own, without mapped files, while it denoises and while it decodes; resident
memory counts mapped files. DIR is made and deleted; at full depth it takes 12 GB.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys

import process_memory
import random_models

TESTS = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
# Pixels, and whether keys and values are compressed in the second half of the blocks.
CASES = {"1K": (1024, False), "2K": (2048, False), "2K-KV": (2048, True), "4K": (4096, False), "4K-KV": (4096, True)}


def make(part, folder, *arguments):
    """Writes random weights in a process of its own, whose memory then is free again."""
    command = [sys.executable, __file__, "--make", part, folder, *map(str, arguments)]
    subprocess.run(command, check=True, cwd=pathlib.Path(__file__).parent)


def make_transformer(folder, side, depth, compressed):
    import torch
    from safetensors.torch import load_file, save_file
    random_models.transformer(folder, side, side / 64, depth)
    if compressed:
        file = folder / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        for block in range(depth // 2, depth):
            name = f"transformer_blocks.{block}.attn1"
            tensors |= {f"{name}.sr.weight": torch.full((1152, 1, 2, 2), 0.25), f"{name}.sr.bias": torch.zeros(1152),
                        f"{name}.norm.weight": torch.ones(1152), f"{name}.norm.bias": torch.zeros(1152)}
        save_file(tensors, file)


def peak(series, start, end):
    return max((megabytes for time, megabytes in series if start <= time <= end), default=0.0)


def draw(options, model, name):
    pixels, compressed = CASES[name]
    first = options.depth // 2
    flags = ["--kv_compress", "true", "--kv_compress_sampling", "conv", "--kv_compress_scale_factor", 2,
             "--kv_compress_layer", *range(first, options.depth)] if compressed else []
    once = pixels > 2048 and not options.guided
    steps = ["--sampling_method", "lcm", "--sampling_steps", 1] if once else ["--sampling_steps", 2]
    command = [options.pixart, "sample", "--model", model, "--engine", options.engine, "--threads", options.threads,
               "--use_resolution_binning", "false", "--prompt", "a red circle", *flags, *steps]
    # The first run exports, and fills the text cache.
    process_memory.run([*command, "--image_width", 64, "--image_height", 64, "--output_path", options.scratch / "warm"])
    measured = process_memory.run([*command, "--image_width", pixels, "--image_height", pixels, "--vae_tiling",
                                   options.tiling, "--output_path", options.scratch / "big"], interval=0.02)
    seconds = {stage: float(number) for stage, number in re.findall(r"(denoise|decode) ([\d.]+) s", measured.messages)}
    count = 1 if once else 2
    end = measured.series[-1][0]
    # Writing the picture comes after the decoding, and takes little memory.
    middle = end - seconds["decode"]
    tiles = "tiles" if options.tiling == "true" or "in tiles" in measured.messages else \
        "blended tiles" if options.tiling == "blend" else "whole"
    guided = "" if once else " guided"
    print(f"| {name}, {count}{guided} step{'s' * (count > 1)} | {seconds['denoise'] / count:.1f} | "
          f"{peak(measured.series, 0, middle) / 1e3:.2f} GB | {seconds['decode']:.1f}, {tiles} | "
          f"{peak(measured.series, middle, end) / 1e3:.2f} GB | {measured.peak_mb / 1e3:.2f} GB |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixart", type=pathlib.Path)
    parser.add_argument("--scratch", type=pathlib.Path, help="folder to make and delete")
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--engine", default="ort")
    parser.add_argument("--tiling", default="auto", choices=["auto", "true", "false", "blend"])
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["2K", "2K-KV", "4K-KV"])
    parser.add_argument("--make", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        part, folder, *rest = options.make
        if part == "vae":
            return random_models.vae(pathlib.Path(folder))
        return make_transformer(pathlib.Path(folder), *map(int, rest))

    options.scratch, options.pixart = options.scratch.resolve(), options.pixart.resolve()
    options.scratch.mkdir(parents=True)
    os.environ["PIXART_CACHE_DIR"] = str(options.scratch / "cache")
    try:
        model = options.scratch / "model"
        random_models.text_encoder(model / "text_encoder", layers=1)
        for part in ("tokenizer", "scheduler"):
            shutil.copytree(TESTS / "tiny" / part, model / part)
        make("vae", model / "vae")
        print(f"{options.depth} blocks, {options.engine}, {options.threads} threads\n")
        print("| | seconds a step | memory, denoising | seconds to decode | memory, decoding | resident |")
        print("|---|---|---|---|---|---|")
        for name in options.cases:
            pixels, compressed = CASES[name]
            make("transformer", model / "transformer", pixels // 8, options.depth, int(compressed))
            draw(options, model, name)
            shutil.rmtree(model / "transformer")
    finally:
        shutil.rmtree(options.scratch)


main()
