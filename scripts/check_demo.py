"""Draws the held-out captions of the demo model with the pixart binary and has the recipe's detector score them."""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

DEMO = pathlib.Path(__file__).resolve().parent.parent / "models" / "demo"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pixart", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    # The model card says what was measured; this is the bar that the model has to pass on every processor.
    parser.add_argument("--at-least", type=float, default=95, help="percent of pictures with every named object")
    parser.add_argument("flags", nargs="*", help="more flags for pixart sample, after --")
    options = parser.parse_args()

    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    groups = {}
    for entry in json.loads((DEMO / "recipe" / "heldout.json").read_text()):
        groups.setdefault(tuple(entry["scene"]["frame"]), []).append(entry["caption"])

    captions = []
    for (height, width), group in groups.items():
        # pixart numbers its files from the highest number there is, so the groups follow one another.
        config = options.output / "config.yaml"
        config.write_text(json.dumps({
            "model": str(DEMO), "prompt": group, "image_height": height, "image_width": width, "seed": 0,
            "sampling_steps": 20, "guidance_scale": 4.5, "keep_resident": True, "output_path": str(options.output),
        }))
        command = [options.pixart, "sample", "-c", config, *options.flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        captions += group
    (options.output / "captions.json").write_text(json.dumps(captions))

    check = [sys.executable, DEMO / "recipe" / "check.py", "--pictures", options.output]
    sys.exit(subprocess.run([*check, "--at-least", str(options.at_least)]).returncode)


main()
