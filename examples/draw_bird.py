"""`python -m examples.draw_bird PNG` draws a bird on a branch, a picture to be moved that is under nobody's licence.

README.md's moving picture and docs/pictures/bird.html are what `python -m train explain` says of it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image, ImageDraw

SIDE = 640
SKY_ABOVE, SKY_BELOW = (160, 190, 220), (190, 205, 215)
BROWN, DARK, GREY = (170, 80, 50), (90, 60, 50), (90, 90, 100)


@dataclass(frozen=True)
class Config:
    """Draw a bird on a branch."""

    output: Annotated[Path, tyro.conf.Positional]
    """The PNG file to write."""


def draw() -> Image.Image:
    """The picture, 640 pixels a side."""
    down = np.linspace(0, 1, SIDE)[:, None, None]
    sky = np.array(SKY_ABOVE) * (1 - down) + np.array(SKY_BELOW) * down
    picture = Image.fromarray(np.broadcast_to(sky, (SIDE, SIDE, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    pen.line((0, 480, 640, 440), fill=(90, 70, 50), width=30)  # branch
    pen.ellipse((190, 230, 460, 430), fill=BROWN)  # body
    pen.ellipse((390, 150, 520, 280), fill=GREY)  # head
    pen.polygon([(510, 200), (580, 220), (510, 235)], fill=(230, 170, 50))  # beak
    pen.ellipse((450, 190, 475, 215), fill=(10, 10, 10))  # eye
    pen.polygon([(220, 340), (60, 410), (90, 450), (250, 400)], fill=DARK)  # tail
    for leg in (310, 350):
        pen.line((leg, 420, leg, 470), fill=(60, 50, 40), width=10)
    return picture


def run(config: Config) -> int:
    """Writes the picture."""
    config.output.parent.mkdir(parents=True, exist_ok=True)
    draw().save(config.output, "PNG")
    print(config.output)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(run(tyro.cli(Config, prog="python -m examples.draw_bird")))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
