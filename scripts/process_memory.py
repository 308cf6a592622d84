"""Runs a program and watches its time and memory, for the benchmarks beside this file (Linux)."""

import dataclasses
import re
import subprocess
import tempfile
import threading
import time


@dataclasses.dataclass
class Measured:
    """What a program took. Megabytes are 10^6 bytes."""
    seconds: float
    # The most memory of its own at any sample: heap and stacks, without mapped files.
    anonymous_mb: float
    # The most resident memory, mapped files included, as the system kept count.
    peak_mb: float
    output: str
    # What it told on standard error.
    messages: str
    # Seconds since the start and megabytes of memory of its own, at every sample.
    series: list


def status(pid):
    """Numbers of /proc/PID/status in megabytes, or nothing when the process has gone."""
    try:
        text = open(f"/proc/{pid}/status").read()
    except OSError:
        return {}
    return {name: int(kilobytes) * 1024 / 1e6 for name, kilobytes in re.findall(r"(\w+):\s+(\d+) kB", text)}


def run(command, interval=0.005):
    """Runs `command` to its end and samples its memory; ends the script with its messages if it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as messages:
        start = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=messages)
        anonymous = peak = 0.0
        series = []
        ended = threading.Event()

        def sample():
            nonlocal anonymous, peak
            while not ended.is_set():
                now = status(process.pid)
                anonymous = max(anonymous, now.get("RssAnon", 0.0))
                peak = max(peak, now.get("VmHWM", 0.0))
                series.append((time.perf_counter() - start, now.get("RssAnon", 0.0)))
                time.sleep(interval)

        sampler = threading.Thread(target=sample)
        sampler.start()
        code = process.wait()
        seconds = time.perf_counter() - start
        ended.set()
        sampler.join()
        output.seek(0)
        messages.seek(0)
        told = messages.read().decode()
        if code:
            raise SystemExit(f"{' '.join(map(str, command))} ended with {code}:\n{told[-3000:]}")
        return Measured(seconds, anonymous, peak, output.read().decode(), told, series)
