"""The world of the demo model: scenes of one or two flat shapes, their captions, their pictures.

Everything here is plain numpy and Pillow, so that `check.py` can use it without a training library.
"""

import zlib

import numpy as np
from PIL import Image, ImageDraw

PALETTE = {
    "red": (220, 35, 40),
    "green": (35, 155, 65),
    "blue": (40, 75, 220),
    "yellow": (250, 215, 40),
    "orange": (245, 130, 25),
    "purple": (140, 45, 170),
    "black": (20, 20, 22),
    "white": (246, 246, 244),
    "gray": (128, 130, 132),
}
COLOURS = ["red", "green", "blue", "yellow", "orange", "purple", "black", "white"]
BACKGROUNDS = ["white", "black", "gray", "red", "green", "blue", "yellow"]
SHAPES = ["circle", "square", "triangle", "cross"]
SIZES = ["small", "medium", "large"]
FRAMES = [(128, 128), (96, 160), (160, 96)]  # height, width

# One latent covers 8 x 8 pixels. Centres lie on this grid and every size has one radius, so that a shape has the same
# latents wherever it stands: a small transformer then spends its capacity on what the caption says, not on where
# between two latents an edge falls.
GRID = 8

# Half extents in pixels, of small, medium and large.
RADII = {
    "alone": (16, 24, 40), "alone in a short picture": (16, 24, 32),
    "pair": (16, 22, 28), "pair along 96 px": (14, 17, 20),
    "spots": (14, 18, 24), "spots in a short picture": (14, 16, 20),
}


def radius(kind, size, height, width, axis=""):
    """Half extent in pixels of an object of this size; `axis` only matters for pairs."""
    if kind == "pair":
        row = "pair along 96 px" if (height if axis == "vertical" else width) == 96 else "pair"
    else:
        row = kind if height == width else f"{kind} in a short picture"
    return RADII[row][SIZES.index(size)]


# ---------------------------------------------------------------- shapes

def _outline(shape):
    """Corner points in the box [-1, 1] x [-1, 1], y pointing down."""
    if shape == "circle":
        a = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        return np.stack([np.cos(a), np.sin(a)], 1)
    if shape == "square":
        return 0.9 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    if shape == "triangle":
        return np.array([[0, -0.95], [1.05, 0.85], [-1.05, 0.85]], float)
    if shape == "cross":
        w = 0.34
        return np.array([[-w, -1], [w, -1], [w, -w], [1, -w], [1, w], [w, w],
                         [w, 1], [-w, 1], [-w, w], [-1, w], [-1, -w], [-w, -w]], float)
    raise ValueError(shape)


OUTLINE = {s: _outline(s) for s in SHAPES}


def coverage(shape, cx, cy, rx, ry, height, width, oversample=4):
    """How much of each pixel the shape covers, and the box (y0, y1, x0, x1) it was drawn in."""
    x0, x1 = max(0, int(cx - 1.2 * rx) - 1), min(width, int(cx + 1.2 * rx) + 2)
    y0, y1 = max(0, int(cy - 1.2 * ry) - 1), min(height, int(cy + 1.2 * ry) + 2)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    canvas = Image.new("L", ((x1 - x0) * oversample, (y1 - y0) * oversample))
    points = OUTLINE[shape] * (rx, ry) + (cx - x0, cy - y0)
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in points * oversample - 0.5], fill=255)
    return np.asarray(canvas.reduce(oversample), np.float32) / 255, (y0, y1, x0, x1)


def render(scene):
    """uint8 picture [height, width, 3]."""
    height, width = scene["frame"]
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = PALETTE[scene["background"]]
    for o in scene["objects"]:
        alpha, (y0, y1, x0, x1) = coverage(o["shape"], o["x"], o["y"], o["r"], o["r"], height, width)
        part = picture[y0:y1, x0:x1]
        part += alpha[..., None] * (np.array(PALETTE[o["colour"]], np.float32) - part)
    return (picture + 0.5).astype(np.uint8)


def semantic_map(scene):
    """Per 8 px cell: colour index (into PALETTE) and shape index (0 = background), uint8 [2, h/8, w/8]."""
    height, width = scene["frame"]
    names = list(PALETTE)
    out = np.zeros((2, height // 8, width // 8), np.uint8)
    out[0] = names.index(scene["background"])
    for o in scene["objects"]:
        alpha, (y0, y1, x0, x1) = coverage(o["shape"], o["x"], o["y"], o["r"], o["r"], height, width, 2)
        full = np.zeros((height, width), np.float32)
        full[y0:y1, x0:x1] = alpha
        inside = full.reshape(height // 8, 8, width // 8, 8).mean((1, 3)) > 0.4
        out[0][inside] = names.index(o["colour"])
        out[1][inside] = 1 + SHAPES.index(o["shape"])
    return out


# ---------------------------------------------------------------- sampling

def _pick(rng, items, weights=None):
    if weights is None:
        return items[int(rng.integers(len(items)))]
    return items[int(rng.choice(len(items), p=np.array(weights) / np.sum(weights)))]


def _object(rng, background, taken=()):
    colour = _pick(rng, [c for c in COLOURS if c != background and c not in taken])
    return {"shape": _pick(rng, SHAPES), "colour": colour, "size": _pick(rng, SIZES, [0.3, 0.4, 0.3])}


def _reach(r):
    """Least distance between the centre of a shape and the border of the picture."""
    return 1.05 * r + 2


def _inside(centre, r, length):
    """The grid point nearest to `centre` at which the shape lies inside the picture."""
    least = GRID * int(np.ceil(_reach(r) / GRID))
    return int(np.clip(GRID * round(centre / GRID), least, length - least))


def _cell_centre(rng, k, r, length, jitter):
    """Centre along one axis of an object in the k-th of three cells."""
    centre = length // 2 + (k - 1) * GRID * round(0.3 * length / GRID)
    if jitter and length >= 128:
        centre += GRID * _pick(rng, [-1, 0, 1], [0.15, 0.7, 0.15])
    return _inside(centre, r, length)


def sample_scene(rng, frame=None):
    """One random scene. `kind` is alone, pair (a relation) or spots (two objects, each in a named cell)."""
    frame = frame or _pick(rng, FRAMES, [0.72, 0.14, 0.14])
    height, width = frame
    background = _pick(rng, BACKGROUNDS, [2.0, 1, 1, 1, 1, 1, 1])
    kind = _pick(rng, ["alone", "pair", "spots"], [0.42, 0.46, 0.12])

    if kind == "alone":
        o = _object(rng, background)
        cell = (1, 1) if rng.random() < 0.34 else (int(rng.integers(3)), int(rng.integers(3)))
        r = radius(kind, o["size"], height, width)
        free = o["size"] != "large"  # a large object that moves inwards would leave its cell
        o.update(r=r, cell=list(cell), y=_cell_centre(rng, cell[0], r, height, free),
                 x=_cell_centre(rng, cell[1], r, width, free))
        return {"frame": list(frame), "background": background, "kind": kind, "objects": [o]}

    a = _object(rng, background)
    # Nearly always two colours: the same colour twice is learnt from a few examples only.
    b = _object(rng, background, taken=(a["colour"],))
    if rng.random() < 0.08:
        b["colour"] = a["colour"]
        b["shape"] = _pick(rng, [s for s in SHAPES if s != a["shape"]])

    if kind == "pair":
        axis = _pick(rng, ["vertical", "horizontal"])  # a is above, or left of, b
        length, across = (height, width) if axis == "vertical" else (width, height)
        ra, rb = (radius(kind, o["size"], height, width, axis) for o in (a, b))
        # All places with a gap between the two and outer margins that are much alike.
        places = [(p, q) for p in range(0, length, GRID) for q in range(p, length, GRID)
                  if p >= _reach(ra) and q <= length - _reach(rb) and q - p >= 1.05 * (ra + rb) + 5
                  and abs((p - ra) - (length - q - rb)) <= 16]
        for o, r, p in zip((a, b), (ra, rb), _pick(rng, places)):
            q = _inside(across / 2 + GRID * _pick(rng, [-1, 0, 1], [0.15, 0.7, 0.15]), r, across)
            o.update(r=r, y=p if axis == "vertical" else q, x=q if axis == "vertical" else p)
        return {"frame": list(frame), "background": background, "kind": kind, "axis": axis, "objects": [a, b]}

    for _ in range(100):
        for o in (a, b):
            cell = (int(rng.integers(3)), int(rng.integers(3)))
            r = radius(kind, o["size"], height, width)
            o.update(r=r, cell=list(cell), y=_cell_centre(rng, cell[0], r, height, False),
                     x=_cell_centre(rng, cell[1], r, width, False))
        gap = np.hypot(a["x"] - b["x"], a["y"] - b["y"]) - 1.25 * (a["r"] + b["r"])
        if a["cell"] != b["cell"] and gap > 0:
            return {"frame": list(frame), "background": background, "kind": kind, "objects": [a, b]}
    return sample_scene(rng, frame)


def is_held_out(scene):
    """A tenth of all combinations of background, shapes, colours and places is never trained on."""
    parts = [scene["background"], scene["kind"], scene.get("axis", "")]
    for o in scene["objects"]:
        parts += [o["shape"], o["colour"], str(o.get("cell", ""))]
    if parts == ["white", "pair", "vertical", "circle", "red", "", "square", "blue", ""]:
        return True  # the sentence of the project README
    return zlib.crc32("|".join(parts).encode()) % 10 == 0


# ---------------------------------------------------------------- captions

SAY_SHAPE = {
    "circle": (["circle", "disc", "ball"], [10, 1, 1]),
    "square": (["square", "box"], [10, 1]),
    "triangle": (["triangle"], [1]),
    "cross": (["cross", "plus sign"], [8, 1]),
}
SAY_COLOUR = {c: ([c], [1]) for c in PALETTE}
SAY_COLOUR["gray"] = (["gray", "grey"], [1, 1])
SAY_COLOUR["purple"] = (["purple", "violet"], [6, 1])
SAY_SIZE = {
    "small": (["small", "tiny", "little"], [6, 2, 1]),
    "medium": (["", "medium", "medium-sized"], [12, 1, 1]),
    "large": (["large", "big", "huge"], [6, 4, 1]),
}
ROW, COLUMN = ["top", "middle", "bottom"], ["left", "middle", "right"]
PREFIX = ["a photo of", "a picture of", "a drawing of", "an image of", "an illustration of", "a painting of",
          "picture of", "photo of", "draw", "there is", "a simple drawing of", "a nice picture of", "show me",
          "a flat illustration of", "an icon of"]
SUFFIX = ["simple", "flat design", "minimalist", "high quality", "clean", "vector art", "please", "4k", "beautiful"]


def _words(text, tag):
    return [(w, tag) for w in text.split()]


def _noun(rng, o, tag, article=None, drop_colour=False):
    size = _pick(rng, *SAY_SIZE[o["size"]])
    colour = "" if drop_colour else _pick(rng, *SAY_COLOUR[o["colour"]])
    shape = _pick(rng, *SAY_SHAPE[o["shape"]])
    if article is None:
        article = _pick(rng, ["a", "", "the", "one"], [12, 3, 1, 0.5])
    if colour and rng.random() < 0.03:
        body = f"{size} {shape} in {colour}"
    elif colour and size and rng.random() < 0.06:
        body = f"{colour} {size} {shape}"
    else:
        body = f"{size} {colour} {shape}"
    body = " ".join(body.split())
    if article == "a" and body[0] in "aeiou":
        article = "an"
    return _words(f"{article} {body}", tag)


def _where(rng, cell):
    row, column = cell
    if (row, column) == (1, 1):
        return _pick(rng, ["in the center", "in the centre", "in the middle", "at the center"])
    if column == 1:
        side = ROW[row]
        return _pick(rng, [f"at the {side}", f"near the {side}", f"at the {side} of the picture", f"on the {side}"],
                     [5, 1, 1, 1])
    if row == 1:
        side = COLUMN[column]
        return _pick(rng, [f"on the {side}", f"on the {side} side", f"at the {side}", f"to the {side}"], [5, 2, 1, 1])
    up = _pick(rng, ["top", "upper"], [3, 1]) if row == 0 else _pick(rng, ["bottom", "lower"], [3, 1])
    corner = f"{up} {COLUMN[column]}"
    return _pick(rng, [f"in the {corner} corner", f"in the {corner}", f"at the {corner}", f"{corner} corner"], [5, 2, 2, 1])


def _behind(rng, background):
    c = _pick(rng, *SAY_COLOUR[background])
    return _pick(rng, [f"on a {c} background", f"against a {c} background", f"with a {c} background",
                       f"on {c}", f", {c} background", f"over a {c} background", f"on the {c} background",
                       f"on {c} background"], [8, 3, 2, 1.5, 3, 1, 0.5, 1])


def _pair_words(rng, scene):
    a, b = scene["objects"]
    first, second = ("above", "below") if scene["axis"] == "vertical" else ("left", "right")
    style = _pick(rng, ["relation", "it", "sides", "and"], [10, 1.5, 1.5, 2.0])
    swap = rng.random() < 0.5
    (o, ot), (p, pt) = ((b, 1), (a, 0)) if swap else ((a, 0), (b, 1))
    side = second if swap else first
    say = {
        "above": ["above", "on top of", "higher than"],
        "below": ["below", "under", "beneath", "underneath"],
        "left": ["to the left of", "left of", "on the left of"],
        "right": ["to the right of", "right of", "on the right of"],
    }[side]
    weights = {"above": [8, 1, 0.5], "below": [6, 3, 1, 1], "left": [6, 2, 1], "right": [6, 2, 1]}[side]
    if style == "relation":
        link = _pick(rng, say, weights)
        if rng.random() < 0.05:
            link = "is " + link
        return _noun(rng, o, ot) + _words(link, -1) + _noun(rng, p, pt), True
    if style == "it":
        link = {"above": "above it", "below": _pick(rng, ["below it", "under it"]),
                "left": "to the left of it", "right": "to the right of it"}[side]
        return _noun(rng, p, pt) + _words("with", -1) + _noun(rng, o, ot) + _words(link, ot), True
    if style == "sides":
        place = {"above": ["at the top", "on the top"], "below": ["at the bottom", "on the bottom"],
                 "left": ["on the left", "at the left"], "right": ["on the right", "at the right"]}
        other = {"above": "below", "below": "above", "left": "right", "right": "left"}[side]
        return (_noun(rng, o, ot) + _words(_pick(rng, place[side]), ot) + _words(_pick(rng, ["and", ","]), -1)
                + _noun(rng, p, pt) + _words(_pick(rng, place[other]), pt)), True
    link = _pick(rng, ["and", "next to", "beside"]) if scene["axis"] == "horizontal" else "and"
    return _noun(rng, o, ot) + _words(link, -1) + _noun(rng, p, pt), False


def caption(rng, scene):
    """Words with tags (index of the object the word speaks about, or -1) and what the caption leaves open.

    Returns (words, said): said = {"background": bool, "place": bool, "colour": bool}.
    """
    objects = scene["objects"]
    say_background = rng.random() < 0.78
    say_place, drop_colour = True, False
    place_first = False
    if scene["kind"] == "pair":
        words, say_place = _pair_words(rng, scene)
    elif scene["kind"] == "alone":
        o = objects[0]
        drop_colour = rng.random() < 0.03
        say_place = o["cell"] != [1, 1] or rng.random() < 0.3
        words = _noun(rng, o, 0, drop_colour=drop_colour)
        if say_place:
            where = _words(_where(rng, o["cell"]), 0)
            if rng.random() < 0.08:
                place_first = True
                where[-1] = (where[-1][0] + ",", 0)
                words = where + words
            elif say_background and rng.random() < 0.3:
                behind = _words(_behind(rng, scene["background"]), -1)
                words = words + behind + where
                say_background = "done"
            else:
                words = words + where
    else:
        order = [0, 1] if rng.random() < 0.5 else [1, 0]
        words = []
        for n, k in enumerate(order):
            if n:
                words += _words(_pick(rng, ["and", ","], [3, 1]), -1)
            words += _noun(rng, objects[k], k) + _words(_where(rng, objects[k]["cell"]), k)
    if say_background is True:
        if not place_first and rng.random() < 0.06:
            c = _pick(rng, *SAY_COLOUR[scene["background"]])
            words = _words(_pick(rng, [f"a {c} background with", f"{c} background,"]), -1) + words
        else:
            words = words + _words(_behind(rng, scene["background"]), -1)
    if rng.random() < 0.3 and not place_first:
        words = _words(_pick(rng, PREFIX), -1) + words
    if rng.random() < 0.06:
        words = words + _words(", " + _pick(rng, SUFFIX), -1)
    # A comma belongs to the word before it.
    joined = []
    for w, tag in words:
        if w == "," and joined:
            joined[-1] = (joined[-1][0] + ",", joined[-1][1])
        else:
            joined.append((w, tag))
    style = rng.random()
    if style < 0.12:
        joined[-1] = (joined[-1][0] + ".", joined[-1][1])
    return joined, {"background": bool(say_background), "place": bool(say_place), "colour": not drop_colour}


def text_of(words):
    return " ".join(w for w, _ in words)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    for _ in range(12):
        s = sample_scene(rng)
        print(s["frame"], text_of(caption(rng, s)[0]))
