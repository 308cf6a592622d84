"""How a bundle starts and what memory it takes, beside the same program with the folder that comes out of it (Linux).

    PYTHON scripts/benchmark_bundle.py --pixart target/release/pixart --scratch NEW-FOLDER [--model DIR | --big] [--runs 15]

Each picture is drawn by a process of its own, in turns, both with the library of ONNX Runtime that the bundle holds. Warm means that
all files are in the page cache; before each cold run they are thrown out of it (no right is needed for that).
--big makes a model of 1.7 GB with random weights: T5-XXL of one layer, DiT-XL/2 of two; it needs torch and diffusers.
Prints medians: seconds of the clock, seconds of the processor, the most memory of the process's own, and of the parts of the
file with the weights that are mapped: how much was resident, and how much of that was copied because it was written to.
"""

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import threading
import time
from pathlib import Path

import random_models

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models/demo"

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--pixart", type=Path, required=True)
parser.add_argument("--scratch", type=Path, required=True)
parser.add_argument("--model", type=Path, default=DEMO)
parser.add_argument("--big", action="store_true")
parser.add_argument("--runs", type=int, default=15)
parser.add_argument("--threads", default="2")
arguments = parser.parse_args()
scratch = arguments.scratch.absolute()
scratch.mkdir(parents=True)
pixart = arguments.pixart.absolute()


def mapped(pid, files):
    """Megabytes of `files` that are mapped into a process: resident, and copied."""
    resident = copied = 0
    ours = False
    try:
        for line in open(f"/proc/{pid}/smaps"):
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                _, _, offset, _, _, *name = line.split(maxsplit=5)
                # The program in front of a bundle is mapped, too.
                name = "".join(name).strip()
                ours = name in files and (name != str(bundle) or int(offset, 16) >= pixart.stat().st_size)
            elif ours and line.startswith("Rss:"):
                resident += int(line.split()[1])
            elif ours and line.startswith("Anonymous:"):
                copied += int(line.split()[1])
    except OSError:
        pass
    return resident * 1024 / 1e6, copied * 1024 / 1e6


def own_memory(pid):
    try:
        found = re.search(r"RssAnon:\s+(\d+)", open(f"/proc/{pid}/status").read())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def run(command, environment, weights, look):
    """Seconds of clock and processor; with `look` the memory instead, since looking takes time."""
    output = scratch / "out"
    shutil.rmtree(output, ignore_errors=True)
    flags = ["--prompt", "a red circle", "--steps", "2", "--no_text_cache", "--engine", "ort", "--threads", arguments.threads,
             "--image_width", "256", "--image_height", "256", "--output_path", output]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen([*command, *flags], env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    most = [0.0, 0.0, 0.0]
    ended = threading.Event()

    def sample():
        while not ended.is_set():
            found = (own_memory(process.pid), *mapped(process.pid, weights))
            most[:] = map(max, most, found)
            time.sleep(0.005)

    if look:
        sampler = threading.Thread(target=sample)
        sampler.start()
    told = process.communicate()[1].decode()
    seconds = time.perf_counter() - start
    if look:
        ended.set()
        sampler.join()
    if process.returncode:
        raise SystemExit(told)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return most if look else (seconds, used)


def forget(paths):
    """Throws files out of the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


model = arguments.model.absolute()
if arguments.big:
    model = scratch / "model"
    random_models.text_encoder(model / "text_encoder", layers=1)
    random_models.transformer(model / "transformer", layers=2)
    for part in ("vae", "tokenizer", "scheduler"):
        shutil.copytree(DEMO / part, model / part)
bundle, folder = scratch / "bundle", scratch / "folder"
quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
subprocess.run([pixart, "bundle", "--model", model, "--output", bundle], **quiet)
subprocess.run([pixart, "bundle", "--extract", folder, bundle], **quiet)
library = next((folder / "engine").glob("*onnxruntime*"))
files = [path for path in folder.rglob("*") if path.is_file()]
ways = {
    "folder": ([pixart, "sample", "--model", folder], {"PIXART_ORT_LIBRARY": str(library)},
               {str(path) for path in files if path.suffix == ".onnx_data"}),
    "bundle": ([bundle], {"PIXART_ORT_LIBRARY": "", "ORT_DYLIB_PATH": ""}, {str(bundle)}),
}
print(f"{bundle.stat().st_size / 1e6:.0f} MB, of them {sum(path.stat().st_size for path in files) / 1e6:.0f} MB of files")
for way in ways.values():
    run(*way, look=False)
for state in ("warm", "cold"):
    times = {name: [] for name in ways}
    for _ in range(arguments.runs):
        for name, way in ways.items():
            if state == "cold":
                forget([pixart, bundle, *files])
            times[name].append(run(*way, look=False))
    for name, found in times.items():
        clock, processor = zip(*found)
        print(f"{state} {name}: {statistics.median(clock):.3f} s (least {min(clock):.3f}), processor "
              f"{statistics.median(processor):.3f} s (least {min(processor):.3f})")
for name, way in ways.items():
    own, resident, copied = run(*way, look=True)
    print(f"memory {name}: own {own:.0f} MB; mapped from the weights' file {resident:.0f} MB, copied of these {copied:.1f} MB")
