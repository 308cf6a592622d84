"""Draws the picture grid of the README with the demo model: scripts/python scripts/demo_grid.py PIXART OUTPUT.png"""

import pathlib
import subprocess
import sys
import tempfile
import textwrap

from PIL import Image, ImageDraw, ImageFont

DEMO = pathlib.Path(__file__).resolve().parent.parent / "models" / "demo"
PROMPTS = [
    "a large red circle above a small blue square on a white background",
    "a green triangle on a black background",
    "a small yellow circle in the top left corner on a blue background",
    "a large purple cross on a white background",
    "a black square to the left of an orange triangle on a yellow background",
    "a large white square on a red background",
    "a small orange circle below a large blue triangle, gray background",
    "a big green circle and a small black square on a white background",
]
COLUMNS, SIDE, TEXT, GAP = 4, 192, 46, 12


def main():
    pixart, output = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        command = [pixart, "sample", "--model", DEMO, "--output_path", folder, "--prompt", *PROMPTS]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        pictures = [Image.open(f"{folder}/{k}.png").copy() for k in range(len(PROMPTS))]

    rows = -(-len(PROMPTS) // COLUMNS)
    grid = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + TEXT + GAP) + GAP), "#e8e8e8")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(11)
    for k, (prompt, picture) in enumerate(zip(PROMPTS, pictures)):
        x = GAP + k % COLUMNS * (SIDE + GAP)
        y = GAP + k // COLUMNS * (SIDE + TEXT + GAP)
        grid.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, y))
        draw.multiline_text((x, y + SIDE + 4), "\n".join(textwrap.wrap(prompt, 34)), "#202020", font, spacing=2)
    grid.save(output, optimize=True)


main()
