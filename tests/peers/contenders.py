"""Who is measured, and how: every run is a process of its own, and all take turns."""

import dataclasses
import json
import math
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import process_memory  # noqa: E402


@dataclasses.dataclass
class Contender:
    name: str
    """A command that prints JSON, and what takes the seconds of its runs out of it."""
    command: list
    seconds: callable
    """Times a run of the whole; where a part of a network was measured in the whole's place."""
    factor: float = 1.0


@dataclasses.dataclass
class Result:
    seconds: list
    peak_mb: float
    own_mb: float
    """Why there are none."""
    failure: str = ""

    @property
    def median(self):
        return statistics.median(self.seconds) if self.seconds else math.nan


def ours(options, name, component, folder, stage, pixels=None, engine="ort", device="cpu", more=()):
    """`pixart bench` of one exported part."""
    flag = {"transformer": "--checkpoint", "text_encoder": "--text_encoder_root", "vae_decoder": "--vae_root"}[component]
    command = [options.pixart, "bench", flag, folder, "--stages", stage, "--device", device, "--threads",
               options.threads, "--tokens", options.tokens, "--warmup", 1, "--repeats", options.repeats, "--json", "-"]
    command += ["--sizes", pixels] if pixels else []
    command += ["--engine", engine] if device == "cpu" else []
    command += more
    return Contender(name, command, our_seconds)


def our_seconds(report):
    row = report["rows"][0]
    if row["skipped"]:
        raise ValueError(row["skipped"])
    return row["runs"]


def peer(options, name, kind, model, inputs, output=None, factor=1.0, **more):
    """A run of worker.py."""
    spec = {"model": str(model), "inputs": str(inputs), "threads": options.threads, "warmup": 1,
            "repeats": options.repeats, "output": str(output) if output else None, **more}
    command = [sys.executable, HERE / "worker.py", kind, json.dumps(spec)]
    return Contender(name, command, lambda report: report["seconds"], factor)


def run(contender):
    """Seconds and memory of one process."""
    try:
        measured = process_memory.run(contender.command, interval=0.02)
        text = measured.output.strip()
        # Ours is one document, a peer's is the last line.
        report = json.loads(text if text.startswith("{\n") else text.splitlines()[-1])
        seconds = [contender.factor * value for value in contender.seconds(report)]
        return Result([statistics.median(seconds)], measured.peak_mb, measured.anonymous_mb), report
    except (SystemExit, ValueError, IndexError) as failure:
        reason = str(failure).strip().splitlines()[-1:] or ["failed"]
        return Result([], math.nan, math.nan, reason[0][-160:]), None


def take_turns(contenders, rounds, tell=lambda line: print(line, file=sys.stderr, flush=True)):
    """Every contender once in each round; one that fails is left out from then on."""
    results, reports = {}, {}
    for number in range(rounds):
        for contender in contenders:
            if results.get(contender.name) and results[contender.name].failure:
                continue
            result, report = run(contender)
            tell(f"  round {number + 1}, {contender.name}: " + (result.failure or f"{result.median:.3f} s"))
            if contender.name in results and not result.failure:
                known = results[contender.name]
                known.seconds += result.seconds
                known.peak_mb, known.own_mb = max(known.peak_mb, result.peak_mb), max(known.own_mb, result.own_mb)
            else:
                results[contender.name] = result
            reports[contender.name] = report
    return results, reports


def ratio(results, name, reference):
    """How many times as fast as the reference: the median over the rounds that both took part in."""
    pairs = list(zip(results[reference].seconds, results[name].seconds))
    return statistics.median(theirs / ours for theirs, ours in pairs) if pairs else math.nan


def script(code, *arguments):
    """Runs a line of Python that uses the scripts, in a process of its own, whose memory then is free again."""
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, cwd=ROOT / "scripts")


def export(options, component, source, target, *flags):
    """An export without the comparison that follows; gives the part's folder."""
    command = [options.pixart, "export", component, "--source", source, "--output", target, "--no_verify", *flags]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return target / component
