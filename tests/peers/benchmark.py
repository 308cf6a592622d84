"""Measures pixart beside what a user would run instead, and writes docs/benchmarks.md. Linux.

    scripts/benchmark [--only ROW ...] [--threads 2] [--quick]

The Python of scripts/benchmark needs the packages of tests/peers/requirements.txt. Every contender is a process of its
own, and they take turns, round by round; what is told is the median of the rounds, and ratios are medians of the rounds'
ratios. Models have random weights in the released shapes; they are made under --scratch and removed after each row: up
to 16 GB, `export-text` 38 GB.

What was measured is kept in docs/benchmarks.json, so that a row can be measured alone; the page is made from all of it.
With --quick everything is small, and the page goes to --output instead (target/benchmarks-quick.md): to see that it works.
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

import rows
from contenders import ROOT

DOCS = ROOT / "docs"

INTRO = """# Benchmarks

Made by `scripts/benchmark` from what it measured (`docs/benchmarks.json`); do not edit. Ratios compare runs that took
turns; absolute times depend on the machine. {targets}

How the numbers come about: [performance.md](performance.md). Big pictures: [big-pictures.md](big-pictures.md). Training
steps beside PyTorch: [training.md](training.md).
"""

TARGETS = "A prompt has about 20 tokens; peers pad it to 300, as their pipelines do, and pixart to 24."


def machine():
    """Processor and versions, in words."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", text)
    parts = [name.group(1) if name else platform.processor(), f"{os.cpu_count()} cores"]
    for package in ("torch", "diffusers", "transformers", "openvino"):
        try:
            module = __import__("importlib.metadata").metadata.version(package)
            parts.append(f"{package} {module.split('+')[0].split('-')[0]}")
        except Exception:
            continue
    return ", ".join(parts)


def whole_picture(known):
    """A picture of 512 px, put together from three rows."""
    parts = [known.get(row, {}).get("figures") for row in ("text", "step-512", "decode-512")]
    if not all(parts):
        return None
    text, step, decode = parts

    def whole(name_text, name_step, name_decode, what="seconds"):
        values = [figures.get(name, {}).get(what) for figures, name in
                  ((text, name_text), (step, name_step), (decode, name_decode))]
        if None in values:
            return math.nan
        return values[0] + 20 * values[1] + values[2] if what == "seconds" else max(values)

    peer = next((name for name in text if name.startswith("transformers")), None)
    if peer is None:
        return None
    runs = known.get("memory-512", {}).get("figures")
    if not runs:
        return None
    lines = ["Put together, not measured as a whole: text encoding, 20 times the median step, and decoding. T5 is in 8 "
             "bits here and in fp32 there. pixart reads T5 layer by layer, so loading it is in its time, and its memory "
             "is that of a run; diffusers' loading is left out, and its memory is that of the largest stage, at least the weights.\n",
             "| | seconds | times as fast as diffusers | resident |", "|---|---|---|---|"]
    theirs, memory = whole(peer, "diffusers", "diffusers"), whole(peer, "diffusers", "diffusers", "resident_gb")
    lines.append(f"| diffusers | {theirs:.1f} | 1.00 | {memory:.2f} GB |")
    for name, run in (("pixart", "XL/2 in fp32"), ("pixart, int8 dynamic", "XL/2 in int8")):
        seconds = whole("pixart, int8", name, "pixart") - text["pixart, int8"]["seconds"] + runs[run]["text_seconds"]
        lines.append(f"| {name} | {seconds:.1f} | {theirs / seconds:.2f} | {runs[run]['resident_gb']:.2f} GB |")
    lines.append("\nTargets: 1.6× in fp32, 2.5× in int8, at most a third of the memory.")
    return "\n".join(lines)


def page(known):
    parts = [INTRO.format(targets=TARGETS)]
    sections = list(rows.ROWS.items())
    for name, (heading, _, _) in sections:
        entry = known.get(name)
        if not entry:
            continue
        parts.append(f"## {heading}\n\n{entry['text'].strip()}\n\n{entry['how']}\n\n"
                     f"```\nscripts/benchmark --only {name}\n```\n")
        if name == "decode-512" and (text := whole_picture(known)):
            parts.append(f"## A whole picture of 512 px, 20 steps\n\n{text}\n")
    return "\n".join(parts)


def write(path, text):
    """In one step."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    temporary.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=list(rows.ROWS), help=", ".join(rows.ROWS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="each contender runs once in every round")
    parser.add_argument("--repeats", type=int, default=2, help="runs that count in a process")
    parser.add_argument("--layers", type=int, default=28, help="blocks of the transformer")
    parser.add_argument("--text_layers", type=int, default=24, help="blocks of T5")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--target", type=pathlib.Path, help="where cargo has built [default: target/release]")
    parser.add_argument("--scratch", type=pathlib.Path, help="where models are made [default: the system's folder]")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=pathlib.Path, help="page of --quick")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the page from what is known")
    options = parser.parse_args()
    build = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    options.target = (options.target or build / "release").resolve()
    options.pixart = options.target / "pixart"
    data, target = DOCS / "benchmarks.json", DOCS / "benchmarks.md"
    if options.quick:
        options.rounds, options.repeats, options.layers, options.text_layers = 1, 1, 2, 1
        target = (options.output or build / "benchmarks-quick.md").resolve()
        data = target.with_suffix(".json")
    known = json.loads(data.read_text()) if data.is_file() else {}
    if options.render:
        return write(target, page(known))
    wanted = options.only or [name for name, (_, _, quick) in rows.ROWS.items()
                              if quick or not options.quick and name != "step-cuda"]
    base = options.scratch
    failed = []
    for name in wanted:
        heading, measure, _ = rows.ROWS[name]
        print(f"{name}: {heading}", file=sys.stderr, flush=True)
        options.scratch = pathlib.Path(tempfile.mkdtemp(prefix="pixart-peers-", dir=base))
        start = time.perf_counter()
        try:
            measured = measure(options)
        except (SystemExit, subprocess.CalledProcessError, KeyError, OSError) as failure:
            print(f"{name} failed: {failure}", file=sys.stderr)
            failed.append(name)
            continue
        finally:
            shutil.rmtree(options.scratch)
        text, figures = measured if isinstance(measured, tuple) else (measured, {})
        minutes = (time.perf_counter() - start) / 60
        how = (f"{datetime.date.today()}, {machine()}, {options.threads} threads, at most {options.rounds} rounds, "
               f"minutes: {minutes:.0f}.")
        # Others may have been measured meanwhile.
        if (options.layers, options.text_layers) != (28, 24):
            how += f" Not full size: {options.layers} blocks of XL/2, {options.text_layers} of T5."
        known = json.loads(data.read_text()) if data.is_file() else {}
        known[name] = {"text": text, "figures": figures, "how": how}
        write(data, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
        write(target, page(known))
    print(target)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
