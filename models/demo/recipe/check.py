"""Does the model draw what the caption says? Score pictures of held-out captions with an exact detector.

    check.py --model DIR [--out DIR]     draw the captions of heldout.json with diffusers, then score
    check.py --pictures DIR              score <k>.png drawn by another program; DIR/captions.json is the list
                                         of captions in the order of k (without it: the order of heldout.json)
    check.py --self-test N [--vae DIR]   measure the detector itself on N rendered scenes (through the VAE)

Scoring needs numpy and Pillow only.
"""

import argparse
import json
import pathlib

import numpy as np
from PIL import Image

from scenes import (COLOURS, OUTLINE, PALETTE, SHAPES, SIZES, caption, coverage, is_held_out, radius, render,
                    sample_scene, text_of)

HERE = pathlib.Path(__file__).resolve().parent
NAMES = list(PALETTE)
RGB = np.array([PALETTE[n] for n in NAMES], np.float32)
ALIKE = 0.75     # a blob is a shape when it overlaps the ideal shape at least this much (intersection / union)
SPECK = 40       # blobs of fewer pixels are edge fringes, not objects
OFF_CENTRE = 0.07


# ---------------------------------------------------------------- detector

def blobs(mask):
    """Connected areas (4 neighbours), largest first."""
    label = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        grown = label.copy()
        grown[1:] = np.maximum(grown[1:], label[:-1])
        grown[:-1] = np.maximum(grown[:-1], label[1:])
        grown[:, 1:] = np.maximum(grown[:, 1:], label[:, :-1])
        grown[:, :-1] = np.maximum(grown[:, :-1], label[:, 1:])
        grown[~mask] = 0
        if np.array_equal(grown, label):
            break
        label = grown
    ids, count = np.unique(label[label > 0], return_counts=True)
    return [label == i for i, c in sorted(zip(ids, count), key=lambda x: -x[1]) if c >= SPECK]


def shape_of(blob):
    """Best shape, its overlap, centre and half extent.

    Each ideal shape is stretched to the blob's box, and tried a little larger too, since soft pictures lose thin
    tips; its centre of mass is laid on the blob's. All shapes get the same trials.
    """
    ys, xs = np.nonzero(blob)
    y0, y1, x0, x1 = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    best = (None, 0.0, 0.0)
    for shape in SHAPES:
        lo, hi = OUTLINE[shape].min(0), OUTLINE[shape].max(0)
        rx, ry = (x1 - x0) / (hi[0] - lo[0]), (y1 - y0) / (hi[1] - lo[1])
        if not 0.7 < rx / ry < 1.43:
            continue
        for grow in (1.0, 1.07, 1.14):
            cx, cy = (x0 + x1) / 2 - (lo[0] + hi[0]) / 2 * rx * grow, (y0 + y1) / 2 - (lo[1] + hi[1]) / 2 * ry * grow
            for _ in range(2):  # the second time with the centres of mass aligned
                ideal = np.zeros(blob.shape, bool)
                part, (a, b, c, d) = coverage(shape, cx, cy, rx * grow, ry * grow, *blob.shape)
                ideal[a:b, c:d] = part > 0.5
                alike = (ideal & blob).sum() / (ideal | blob).sum()
                if alike > best[1]:
                    best = (shape, float(alike), float(np.sqrt(rx * ry) * grow))
                if not ideal.any():
                    break
                iy, ix = np.nonzero(ideal)
                cx, cy = cx + xs.mean() - ix.mean(), cy + ys.mean() - iy.mean()
    return {"shape": best[0], "alike": best[1], "r": best[2], "y": (y0 + y1) / 2, "x": (x0 + x1) / 2}


def find(distance, names, colour, rivals):
    """The largest area of a colour.

    Its edge lies half way between the colour and its rivals (background and other named colours), but most of it
    must be nearer to this colour than to any other of the palette.
    """
    if colour == rivals[0]:  # the background cannot be the object
        return None
    wanted = NAMES.index(colour)
    choice = [wanted] + [NAMES.index(r) for r in rivals if r != colour]
    area = distance[..., choice].argmin(-1) == 0
    core = names == wanted
    good = [b for b in blobs(area) if core[b].mean() > 0.6]
    return shape_of(good[0]) if good else None


def look(picture):
    """Distance of every pixel to every palette colour, the nearest one, and the commonest one of the border."""
    d = ((picture[..., None, :].astype(np.float32) - RGB) ** 2).sum(-1)
    names = d.argmin(-1)
    border = np.concatenate([names[:2].ravel(), names[-2:].ravel(), names[:, :2].ravel(), names[:, -2:].ravel()])
    return d, names, NAMES[np.bincount(border).argmax()]


def judge(picture, scene):
    """What of the scene is in the picture. Every answer is True or False."""
    distance, names, background = look(picture)
    height, width = names.shape
    found, right = [], []
    for o in scene["objects"]:
        best = find(distance, names, o["colour"], [background] + [p["colour"] for p in scene["objects"]])
        found.append(best)
        right.append(bool(best and best["shape"] == o["shape"] and best["alike"] >= ALIKE))
    out = {"objects": all(right), "background": background == scene["background"]}

    def in_cell(f, cell):
        place = [f["y"] / height - 0.5, f["x"] / width - 0.5]
        return all((p < -OFF_CENTRE, abs(p) <= OFF_CENTRE, p > OFF_CENTRE)[c] for p, c in zip(place, cell))

    if not all(found):
        out["place"] = False
    elif scene["kind"] == "pair":
        a, b = found
        dy, dx = b["y"] - a["y"], b["x"] - a["x"]
        out["place"] = bool(dy > abs(dx) if scene["axis"] == "vertical" else dx > abs(dy))
    else:
        out["place"] = all(in_cell(f, o["cell"]) for f, o in zip(found, scene["objects"]))

    nominal = {s: radius(scene["kind"], s, height, width, scene.get("axis", "")) for s in SIZES}
    size = lambda f: min(SIZES, key=lambda s: abs(np.log(max(f["r"], 1) / nominal[s])))
    out["size"] = all(f and size(f) == o["size"] for f, o in zip(found, scene["objects"]))
    # Nothing else: blobs of other colours than the named ones.
    named = [NAMES.index(o["colour"]) for o in scene["objects"]] + [NAMES.index(background)]
    out["nothing_else"] = not blobs(~np.isin(names, named) & _thick(~np.isin(names, named)))
    return out


def _thick(mask):
    """Pixels whose eight neighbours are in the mask too: drops the fringes of anti-aliased edges."""
    p = np.pad(mask, 1)
    inner = mask.copy()
    for dy in range(3):
        for dx in range(3):
            inner &= p[dy:dy + mask.shape[0], dx:dx + mask.shape[1]]
    return inner


def report(judged, kinds=None):
    keys = ["objects", "background", "place", "size", "nothing_else"]
    lines = []
    groups = [("all", judged)]
    if kinds:
        groups += [(k, [j for j, n in zip(judged, kinds) if n == k]) for k in sorted(set(kinds))]
    for name, group in groups:
        part = "  ".join(f"{k} {100 * np.mean([j[k] for j in group]):5.1f} %" for k in keys)
        everything = 100 * np.mean([j["objects"] and j["background"] and j["place"] for j in group])
        lines.append(f"{name:>6} ({len(group):3d})  {part}  objects+background+place {everything:5.1f} %")
    return "\n".join(lines)


# ---------------------------------------------------------------- held-out captions

def make_held_out(count=200, seed=77):
    """Captions whose combination was never trained on; each says its background and its place."""
    rng = np.random.default_rng(seed)
    out = [{"caption": "a large red circle above a small blue square on a white background", "scene": {
        "frame": [128, 128], "background": "white", "kind": "pair", "axis": "vertical",
        "objects": [{"shape": "circle", "colour": "red", "size": "large"},
                    {"shape": "square", "colour": "blue", "size": "small"}]}}]
    known = {out[0]["caption"]}
    while len(out) < count:
        scene = sample_scene(rng)
        if not is_held_out(scene) or len({o["colour"] for o in scene["objects"]}) < len(scene["objects"]):
            continue
        words, said = caption(rng, scene)
        centred = scene["kind"] == "alone" and scene["objects"][0]["cell"] == [1, 1]
        text = text_of(words)
        if not (said["background"] and said["colour"] and (said["place"] or centred)) or text in known:
            continue
        known.add(text)
        for o in scene["objects"]:
            for k in ("x", "y", "r"):
                del o[k]
        out.append({"caption": text, "scene": scene})
    return out


# ---------------------------------------------------------------- drawing with diffusers

def draw(model, items, out, seed, steps, guidance, mask, part=(0, 1), batch=20):
    import torch
    from diffusers import PixArtSigmaPipeline
    pipe = PixArtSigmaPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    out.mkdir(parents=True, exist_ok=True)
    frames = sorted({tuple(i["scene"]["frame"]) for i in items})
    for frame in frames:
        chosen = [k for k, i in enumerate(items) if tuple(i["scene"]["frame"]) == frame and k % part[1] == part[0]]
        for n in range(0, len(chosen), batch):
            group = chosen[n:n + batch]
            noise = [torch.Generator().manual_seed(seed + k) for k in group]
            # 64 tokens instead of 300: the rest is padding, which the masks hide anyway.
            p, pm, q, qm = pipe.encode_prompt([items[k]["caption"] for k in group], True, negative_prompt="",
                                              max_sequence_length=64)
            if mask == "caption":  # as the original code does: the empty caption under the caption's mask
                qm = pm
            pictures = pipe(prompt=None, negative_prompt=None, prompt_embeds=p, prompt_attention_mask=pm,
                            negative_prompt_embeds=q, negative_prompt_attention_mask=qm, height=frame[0],
                            width=frame[1], num_inference_steps=steps, guidance_scale=guidance, generator=noise,
                            use_resolution_binning=False, output_type="pil").images
            for k, picture in zip(group, pictures):
                picture.save(out / f"{k}.png")
    (out / "captions.json").write_text(json.dumps([i["caption"] for i in items], indent=1) + "\n")


def self_test(count, vae_path, seed=5):
    rng = np.random.default_rng(seed)
    vae = None
    if vae_path:
        import torch
        from diffusers import AutoencoderKL
        vae = AutoencoderKL.from_pretrained(vae_path).eval()
    judged, kinds, fooled = [], [], 0
    while len(judged) < count:
        scene = sample_scene(rng)
        if len({o["colour"] for o in scene["objects"]}) < len(scene["objects"]):
            continue
        picture = render(scene)
        if vae is not None:
            with torch.no_grad():
                x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
                y = vae.decode(vae.encode(x).latent_dist.mode()).sample[0].clamp(-1, 1)
            picture = ((y + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        judged.append(judge(picture, scene))
        kinds.append(scene["kind"])
        # The same picture against a wrong scene: one shape or one colour is another.
        wrong = json.loads(json.dumps(scene))
        o, what = wrong["objects"][-1], ("shape", "colour")[len(judged) % 2]
        others = SHAPES if what == "shape" else [c for c in COLOURS if c not in [p["colour"] for p in scene["objects"]]]
        others = [x for x in others if x != o[what]]
        o[what] = others[int(rng.integers(len(others)))]
        fooled += judge(picture, wrong)["objects"]
    return report(judged, kinds) + f"\nobjects accepted although shape or colour is another: {fooled} of {count}"


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", type=pathlib.Path, default=HERE.parent)
    a.add_argument("--pictures", type=pathlib.Path)
    a.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo-check"))
    a.add_argument("--held-out", type=pathlib.Path, default=HERE / "heldout.json")
    a.add_argument("--make-held-out", action="store_true", help="write heldout.json anew")
    a.add_argument("--self-test", type=int)
    a.add_argument("--vae", type=pathlib.Path)
    a.add_argument("--count", type=int, help="only the first so many captions")
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--steps", type=int, default=20)
    a.add_argument("--guidance", type=float, default=4.5)
    a.add_argument("--mask", choices=["own", "caption"], default="own", help="mask of the unconditional half")
    a.add_argument("--threads", type=int)
    a.add_argument("--part", default="0/1", help="i/n: draw every n-th picture from the i-th and do not score, "
                                                 "so that several processes can share the work")
    a.add_argument("--details", action="store_true", help="list what went wrong")
    a.add_argument("--at-least", type=float, help="fail if the objects are right in a smaller percentage")
    o = a.parse_args()
    if o.threads:
        import torch
        torch.set_num_threads(o.threads)
    if o.make_held_out:
        o.held_out.write_text("[\n" + ",\n".join(json.dumps(i) for i in make_held_out()) + "\n]\n")
        return
    if o.self_test:
        print(self_test(o.self_test, o.vae))
        return
    items = json.loads(o.held_out.read_text())[:o.count]
    folder = o.pictures
    if folder is None:
        folder = o.out
        part = tuple(map(int, o.part.split("/")))
        draw(o.model, items, folder, o.seed, o.steps, o.guidance, o.mask, part)
        if part[1] > 1:
            return
    elif (folder / "captions.json").exists():
        known = {i["caption"]: i for i in items}
        listed = json.loads((folder / "captions.json").read_text())
        items = [known[c if isinstance(c, str) else c["caption"]] for c in listed][:o.count]
    judged = []
    for k, item in enumerate(items):
        picture = np.asarray(Image.open(folder / f"{k}.png").convert("RGB"))
        judged.append(judge(picture, item["scene"]))
        if o.details and not all(judged[-1][q] for q in ("objects", "background", "place")):
            wrong = [q for q in ("objects", "background", "place") if not judged[-1][q]]
            print(f"{k}: {item['caption']} -> wrong: {', '.join(wrong)}")
    print(report(judged, [i["scene"]["kind"] for i in items]))
    score = 100 * np.mean([j["objects"] for j in judged])
    if o.at_least is not None and score < o.at_least:
        raise SystemExit(f"the objects are right in {score:.1f} % of the pictures, expected at least {o.at_least:g} %")


if __name__ == "__main__":
    main()
