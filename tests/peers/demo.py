"""Measures the demo model: start to picture, peak memory, size of the binary; prints a Markdown table.

    tests/peers/demo.py --pixart target/release/pixart [--runs 5] [--threads 2] [--peer PYTHON]

With --peer, a Python that has torch and diffusers, diffusers draws the same prompt from the same model, its runs
between ours. Every number is a whole process, from start to the written picture; medians of the runs.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

DEMO = pathlib.Path(__file__).resolve().parents[2] / "models" / "demo"
PROMPT = "a large red circle above a small blue square on a white background"
PEER = """
import sys, torch
from diffusers import PixArtSigmaPipeline
model, prompt, threads, output = sys.argv[1:]
torch.set_num_threads(int(threads))
pipe = PixArtSigmaPipeline.from_pretrained(model, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
noise = torch.Generator("cpu").manual_seed(42)
picture = pipe(prompt, clean_caption=False, height=128, width=128, use_resolution_binning=False, generator=noise)
picture.images[0].save(output)
"""


def run(command, environment):
    """Seconds and peak resident megabytes of one process."""
    start = time.perf_counter()
    child = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE)
    complaint = child.stderr.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        sys.exit(f"{command[0]} failed: {complaint}")
    return seconds, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixart", type=pathlib.Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", help="a Python with torch and diffusers")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        ours = [str(options.pixart), "sample", "--model", str(DEMO), "--prompt", PROMPT, "--threads",
                str(options.threads), "--output_path", str(folder / "pictures")]
        rows = {}
        for name in ("tract", "ort"):
            cold = {"PIXART_CACHE_DIR": str(folder / f"cold-{name}")}
            rows[f"pixart, {name}, first run (exports the model)"] = [run([*ours, "--engine", name], cold)]
            rows[f"pixart, {name}"] = []
        peer = "diffusers (PyTorch)" if options.peer else None
        if peer:
            rows[peer] = []
        for _ in range(options.runs):
            for name in ("tract", "ort"):
                warm = {"PIXART_CACHE_DIR": str(folder / f"cold-{name}")}
                rows[f"pixart, {name}"].append(run([*ours, "--engine", name], warm))
            if peer:
                script = [options.peer, "-c", PEER, str(DEMO), PROMPT, str(options.threads), str(folder / "peer.png")]
                rows[peer].append(run(script, {"HF_HUB_OFFLINE": "1"}))

        print(f"{options.runs} runs, {options.threads} threads, binary {options.pixart.stat().st_size / 1e6:.1f} MB\n")
        print("| | seconds | peak memory |")
        print("|---|---|---|")
        for name, values in rows.items():
            seconds, memory = (statistics.median(column) for column in zip(*values))
            print(f"| {name} | {seconds:.2f} | {memory:.0f} MB |")


main()
