"""HTML pages in one file: they need no network, and suit a phone, a desktop, the dark and paper."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from nnunetv2_mapo.support.files import write_atomically
from nnunetv2_mapo.support.pictures import own_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# An undefined name in a template is an error, and every text is escaped.
_TEMPLATES = Environment(
    loader=PackageLoader("nnunetv2_mapo.tools", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(path: Path, template: str, **content: Any) -> None:
    """Fill a template that extends `page.html`; the page appears complete or not at all.

    Raises:
        WriteError: The disk is full, or the folder cannot be written to.
    """
    write_atomically(path, render_part(template, **content).encode())


def render_part(template: str, **content: Any) -> Markup:
    """Fill a template in `templates/`; text in its content is escaped, `Markup` is not."""
    return Markup(_TEMPLATES.get_template(template).render(**content))  # escaped there


@own_style()
def figure_to_svg(figure: Figure) -> Markup:
    """Figure as SVG to stand in a page; text and axes, black in it, take the page's colour."""
    import matplotlib as mpl

    svg = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mapo"}):
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    inline = svg.getvalue()[svg.getvalue().index("<svg") :]
    inline = re.sub(r"<metadata>.*?</metadata>", "", inline, flags=re.DOTALL)
    # The page's style sheet colours text, whose black matplotlib leaves out.
    inline = re.sub(r"#000000\b", "currentColor", inline)
    return Markup(inline)  # matplotlib escapes the text it writes


def image_to_uri(pixels: NDArray[np.uint8]) -> str:
    """Image, shape `(y, x, 3)`, as the `src` of an `img` element."""
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


_TEMPLATES.filters.update(svg=figure_to_svg, png=image_to_uri)
