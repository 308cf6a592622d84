"""Rows that run `pixart sample` from its start to the picture: what it has in memory, and how soon the first step is done."""

import re
import shutil
import statistics

from contenders import ROOT, export, process_memory, script

# About 20 tokens of the small tokenizer.
PROMPT = "a red circle on a blue square, seen from above"
TINY = ROOT / "tests" / "fixtures" / "tiny"


def make(options, text_layers, precisions):
    """A model folder with T5-XXL in 8 bits and the SDXL decoder, and XL/2 in several precisions; sources go at once."""
    scratch = options.scratch
    model = scratch / "model"
    source = scratch / "source"
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(TINY / part, model / part)
    script("import sys, pathlib, random_models as r; r.text_encoder(pathlib.Path(sys.argv[1]), int(sys.argv[2]), 'BF16')",
           source, text_layers)
    export(options, "text_encoder", source, model, "--precision", "int8")
    shutil.rmtree(source)
    script("import sys, pathlib, random_models as r; r.vae(pathlib.Path(sys.argv[1]))", source)
    export(options, "vae_decoder", source, model)
    shutil.rmtree(source)
    script("import sys, pathlib, random_models as r; r.transformer(pathlib.Path(sys.argv[1]), 64, 1.0, int(sys.argv[2]))",
           source, options.layers)
    for precision in precisions:
        export(options, "transformer", source, scratch / precision, "--precision", precision)
    shutil.rmtree(source)
    return model


def sample(options, model, precision, steps, *flags):
    """One run, and the seconds of its stages."""
    command = [options.pixart, "sample", "--model", model, "--checkpoint", options.scratch / precision / "transformer",
               "--engine", "ort", "--threads", options.threads, "--prompt", PROMPT, "--image_width", 512,
               "--image_height", 512, "--sampling_steps", steps, "--output_path", options.scratch / "pictures", *flags]
    measured = process_memory.run(command, interval=0.01)
    stages = re.findall(r"(text|denoise|decode) ([\d.]+) s", measured.messages)
    return measured, {stage: float(seconds) for stage, seconds in stages}


def memory(options):
    """Peak memory of a picture of 512 px with T5-XXL in 8 bits; it does not depend on the number of steps."""
    precisions = ("fp32", "int8")
    model = make(options, options.text_layers, precisions)
    lines = ["Two guided steps, each run a process of its own, files in the system's cache.\n",
             "| | resident | memory of its own | text | seconds a step | decode | the whole run |", "|---|---|---|---|---|---|---|"]
    figures = {}
    for precision in precisions:
        for name, flags in ((f"XL/2 in {precision}", []), (f"XL/2 in {precision}, `--low_memory`", ["--low_memory"])):
            runs = [sample(options, model, precision, 2, "--no_text_cache", *flags)
                    for _ in range(max(1, min(2, options.rounds)))]
            peak = max(measured.peak_mb for measured, _ in runs) / 1e3
            own = max(measured.anonymous_mb for measured, _ in runs) / 1e3
            seconds = statistics.median(measured.seconds for measured, _ in runs)
            stage = {name: statistics.median(stages[name] for _, stages in runs) for name in ("text", "denoise", "decode")}
            lines.append(f"| {name} | {peak:.2f} GB | {own:.2f} GB | {stage['text']:.2f} s | {stage['denoise'] / 2:.2f} s | "
                         f"{stage['decode']:.2f} s | {seconds:.1f} s |")
            figures[name] = {"seconds": seconds, "text_seconds": stage["text"], "resident_gb": peak}
    lines.append("\nSeconds a step have the loading in them. Targets: resident below 6 GB, with `--low_memory` below 2 GB.")
    return "\n".join(lines), figures


def start(options):
    """From the start of the program to the end of the first step, less the step; the caption is cached."""
    precisions = ("fp32", "int8")
    # It is read once, for the cache.
    model = make(options, 1, precisions)
    cache = ["--text_cache_dir", options.scratch / "text"]
    lines = ["A run of 2 and one of 6 steps tell what a step takes; the start is the run of 2 steps without these, decoding "
             "and writing, with all files in the system's cache.\n",
             "| | start | of which loading the transformer | a step |", "|---|---|---|---|"]
    figures = {}
    for precision in precisions:
        sample(options, model, precision, 2, *cache)
        starts, loads, steps = [], [], []
        for _ in range(max(1, options.rounds)):
            short, few = sample(options, model, precision, 2, *cache)
            _, more = sample(options, model, precision, 6, *cache)
            step = (more["denoise"] - few["denoise"]) / 4
            steps.append(step)
            loads.append(few["denoise"] - 2 * step)
            starts.append(short.seconds - few["decode"] - 2 * step)
        name = f"XL/2 in {precision}"
        lines.append(f"| {name} | {statistics.median(starts):.2f} s | {statistics.median(loads):.2f} s | "
                     f"{statistics.median(steps):.2f} s |")
        figures[name] = {"seconds": statistics.median(starts)}
    lines.append("\nTarget: below 2 s.")
    return "\n".join(lines), figures
