"""Write the training scenes as pictures and labels, for `pixart train`: pictures.py --out FOLDER [--count N].

FOLDER gets images/00/00000.png … and labels.json with two captions a scene. Held-out combinations are left out.
With --hollow all shapes have a hole of their own shape, a style that the demo model has never seen; captions say
nothing of it.
"""

import argparse
import json
import pathlib

import numpy as np
from PIL import Image

from scenes import caption, is_held_out, render, sample_scene, text_of


def hollow(scene):
    """The same scene with the background showing through the middle of each object."""
    holes = [o | {"colour": scene["background"], "r": 0.55 * o["r"]} for o in scene["objects"]]
    return scene | {"objects": [*scene["objects"], *holes]}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", type=pathlib.Path, required=True)
    a.add_argument("--count", type=int, default=60000)
    a.add_argument("--seed", type=int, default=1000)
    a.add_argument("--hollow", action="store_true")
    o = a.parse_args()
    rng = np.random.default_rng(o.seed)
    records = []
    while len(records) < o.count:
        scene = sample_scene(rng)
        if is_held_out(scene):
            continue
        name = pathlib.Path(f"{len(records) // 1000:02d}") / f"{len(records):05d}.png"
        path = o.out / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(hollow(scene) if o.hollow else scene)).save(path)
        height, width = scene["frame"]
        records.append({"path": str(name), "prompt": text_of(caption(rng, scene)[0]),
                        "sharegpt4v": text_of(caption(rng, scene)[0]),
                        "height": height, "width": width, "ratio": height / width})
    (o.out / "labels.json").write_text(json.dumps(records, indent=0) + "\n")


if __name__ == "__main__":
    main()
