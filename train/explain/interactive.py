"""`explain.html`: a photo to be moved by hand, and what networks say of it wherever it lies.

One file that needs no server and no network: `interactive.html` is its body, `interactive.css` its look beside that of
all reports, `interactive.js` its behaviour. The numbers are those of explain.json.
"""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from train.explain.pictures import COLOURS, OTHER
from train.explain.shift_views import Photo
from train.page.style import STYLE

_HERE = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class Explained:
    """A photo and what networks say of it.

    Attributes:
        photo: the photo as it is moved under the networks' crop.
        record: `train.explain.record.describe` of it.
    """

    photo: Photo
    record: dict[str, Any]


def interactive_page(title: str, explained: Sequence[Explained], *, milliseconds: int) -> str:
    """The page as one HTML document.

    Args:
        title: its heading.
        explained: one or more photos; the page begins with the first.
        milliseconds: how long the diagonal, when it is played, stays at each shift.
    """
    style = STYLE + (_HERE / "interactive.css").read_text(encoding="utf-8")
    script = (_HERE / "interactive.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content = {
        "colours": COLOURS,
        "other": OTHER,
        "milliseconds": milliseconds,
        "photos": [_photo(each) for each in explained],
    }
    # Whatever a file or a class is called, it cannot end the element that holds the data.
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return Template((_HERE / "interactive.html").read_text(encoding="utf-8")).substitute(
        # Nothing is fetched, and no script runs but the page's own.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=html.escape(title),
        style=style,
        data=data,
        script=script,
    )


def _photo(each: Explained) -> dict[str, Any]:
    buffer = io.BytesIO()
    # Without loss: the page shows the very pixels that the networks get.
    Image.fromarray(each.photo.pixels).save(buffer, "PNG", optimize=True)
    return {
        "source": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "crop": each.photo.crop,
        "last": each.photo.last,
        # The keys of `classes` in their order, which objects of JavaScript do not keep.
        "shown": [int(index) for index in each.record["classes"]],
        **each.record,
    }
