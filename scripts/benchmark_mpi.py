"""What several processes bring on this machine: training, caching and sampling with 1, 2 and 4; prints tables.

    python3 scripts/benchmark_mpi.py [--target target/release] [--processes 1 2 4] [--steps 30] [--cases train …]

The programs are built before, with MPI (docs/mpi.md): cargo build --release --workspace --bins --examples --features
pixart-cli/mpi. All processes share the processors of the machine, so nothing gets faster than the machine is: what is
seen is what sharing costs, and what one process alone leaves unused. The same work each time: a step has 64 pictures of
the demo model, or of the tiny one of the tests, whatever the number of processes; the median of the steps after the
fifth counts. Sampling and caching count from start to end, loading included.
"""

import argparse
import json
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo"
TINY = ROOT / "tests" / "fixtures" / "tiny"
CASES = ["exchange", "train", "tiny", "shard", "cache", "sample"]
PICTURES = 512
PROMPTS = 32


def picture(path, side, seed):
    """A PNG of some colours."""
    rows = b"".join(
        b"\0" + bytes((x * (seed % 7 + 1) + y * (seed % 5 + 2) + 60 * c + seed) % 256 for x in range(side) for c in range(3))
        for y in range(side)
    )

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


class Bench:
    def __init__(self, options, folder):
        self.target, self.steps, self.folder = options.target.resolve(), options.steps, folder
        images = folder / "images"
        images.mkdir()
        labels = []
        for k in range(PICTURES):
            picture(images / f"{k}.png", 128, k)
            labels.append({"path": f"{k}.png", "prompt": f"a picture with the number {k}"})
        (folder / "labels.json").write_text(json.dumps(labels))
        colours = ["red", "blue", "green", "yellow"]
        prompts = [f"a {colours[k % 4]} circle on a {colours[(k // 4 + 1) % 4]} background" for k in range(PROMPTS)]
        (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")

    def run(self, processes, *told):
        """Seconds, and what was told, of a command in so many processes."""
        command = [str(self.target / "pixart"), *map(str, told)]
        if processes > 1:
            command += ["--use_parallel", "True"]
        return self.start(processes, command)

    def start(self, processes, command):
        if processes > 1:
            # Else each process of Open MPI is bound to one core.
            launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(processes)]
            if os.geteuid() == 0:
                launcher.insert(1, "--allow-run-as-root")
            command = launcher + command
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        return time.perf_counter() - begin, done.stdout + done.stderr

    def cache(self, model, processes, kept, side):
        """Seconds to encode all pictures and captions."""
        return self.run(
            processes, "train", "cache", "--json_path", "labels.json", "--image_dir", "images", "--sample_size", side // 8,
            "--text_encoder_root", model / "text_encoder", "--tokenizer_root", model / "tokenizer",
            "--vae_root", model / "vae", "--cache_dir", kept,
        )[0]  # fmt: skip

    def train(self, model, processes, side, *more):
        """Median seconds of a step, and megabytes that a process sends in it."""
        output = tempfile.mkdtemp(dir=self.folder)
        _, told = self.run(
            processes, "train", "--json_path", "labels.json", "--image_dir", "images", "--sample_size", side // 8,
            "--checkpoint", model / "transformer", "--change_sample_size", "True", "--cache_dir", f"kept-{model.name}",
            "--batch_size", 64 // processes, "--optim", "adamw", "--max_train_steps", self.steps,
            "--output_path", output, *more,
        )  # fmt: skip
        seconds = [float(text) for text in re.findall(r"([\d.]+) s/step, [\d.]+ images/s", told)]
        sent = re.search(r"([\d.]+) MB sent a step", told)
        return statistics.median(seconds[5:]), float(sent[1]) if sent else 0.0

    def sample(self, processes, output):
        return self.run(
            processes, "sample", "--model", DEMO, "--prompt_path", "prompts.txt", "--output_path", output, "--no_text_cache",
        )[0]  # fmt: skip


def table(title, head, rows):
    print(f"\n{title}\n")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=ROOT / "target" / "release")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    options = parser.parse_args()
    if options.steps < 8:
        parser.error("steps: expected 8 or more, of which the first five do not count")
    with tempfile.TemporaryDirectory(prefix="pixart-benchmark-") as folder:
        bench = Bench(options, Path(folder))
        measure(bench, options)


def speed_up(times):
    return [(n, f"{seconds:.3f} s", f"{times[0][1] / seconds:.2f}", *more) for n, seconds, *more in times]


def measure(bench, options):
    print(f"{len(os.sched_getaffinity(0))} processors, {options.steps} steps")
    counts = options.processes
    if "exchange" in options.cases:
        program = bench.target / "examples" / "exchange"
        for n in counts:
            if n > 1:
                print(bench.start(n, [str(program), "megabytes=500", "times=3"])[1].strip(), flush=True)
    for case, model, side in [("train", DEMO, 128), ("tiny", TINY, 64)]:
        if case not in options.cases and not (case == "train" and "shard" in options.cases):
            continue
        # Where exports are not there yet, they are not measured.
        bench.cache(model, 1, f"kept-{model.name}", side)
        if case in options.cases:
            times = []
            for n in counts:
                seconds, sent = bench.train(model, n, side)
                times.append((n, seconds, f"{sent:.2f} MB"))
            head = ["processes", "a step", "speed-up", "given to be sent"]
            table(f"training, {model.name}, 64 pictures of {side} px a step", head, speed_up(times))
    if "shard" in options.cases:
        times = []
        for n in [n for n in counts if n > 1]:
            seconds, sent = bench.train(DEMO, n, 128, "--shard_optimizer", "True")
            times.append((n, f"{seconds:.3f} s", f"{sent:.2f} MB"))
        table("training, demo, --shard_optimizer True", ["processes", "a step", "given to be sent"], times)
    if "cache" in options.cases:
        times = [(n, bench.cache(DEMO, n, f"by-{n}", 128)) for n in counts]
        table(f"caching, demo, {PICTURES} pictures and captions", ["processes", "all", "speed-up"], speed_up(times))
    if "sample" in options.cases:
        bench.sample(1, "exported")
        times = [(n, bench.sample(n, f"by-{n}-pictures")) for n in counts]
        table(f"sampling, demo, {PROMPTS} prompts, 20 steps", ["processes", "all", "speed-up"], speed_up(times))


if __name__ == "__main__":
    main()
