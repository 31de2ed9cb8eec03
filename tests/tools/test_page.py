from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from jinja2 import DictLoader, UndefinedError
from matplotlib.figure import Figure
from PIL import Image

from nnunetv2_mapo.tools import page
from nnunetv2_mapo.tools.page import figure_to_svg, image_to_uri, write_page


@pytest.fixture
def templates(monkeypatch: pytest.MonkeyPatch) -> None:
    child = (
        '{% extends "page.html" %}{% from "parts.html" import plot, table %}'
        "{% block title %}{{ name }}{% endblock %}"
        '{% block body %}{{ table(["a"], [[name]]) }}{{ plot(svg, "caption") }}{% endblock %}'
    )
    loader = page._TEMPLATES.loader
    assert loader is not None
    parts = {
        name: loader.get_source(page._TEMPLATES, name)[0] for name in ("page.html", "parts.html")
    }
    monkeypatch.setattr(page._TEMPLATES, "loader", DictLoader({**parts, "child.html": child}))


def plot(title: str) -> Figure:
    figure = Figure(figsize=(4, 3))
    figure.subplots().set_title(title)
    return figure


@pytest.mark.usefixtures("templates")
def test_page_escapes_text_but_not_figures(tmp_path: Path) -> None:
    write_page(tmp_path / "p.html", "child.html", name="<i>", svg=figure_to_svg(plot("1 < 2")))
    written = (tmp_path / "p.html").read_text()
    assert written.startswith("<!DOCTYPE html>")
    assert ">&lt;i&gt;</td>" in written
    assert "<title>&lt;i&gt;</title>" in written
    assert "<svg" in written
    assert "1 &lt; 2" in written


@pytest.mark.usefixtures("templates")
def test_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_page(tmp_path / "p.html", "child.html", name="x", svg=figure_to_svg(plot("y")))
    sources = re.findall(r'(?:src|href)="([^"]*)"', (tmp_path / "p.html").read_text())
    assert [source for source in sources if not source.startswith(("#", "data:"))] == []


@pytest.mark.usefixtures("templates")
def test_a_name_that_the_template_lacks_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError, match="svg"):
        write_page(tmp_path / "p.html", "child.html", name="x")
    assert list(tmp_path.iterdir()) == []


def test_black_of_a_figure_becomes_the_colour_of_the_page() -> None:
    svg = figure_to_svg(plot("y"))
    assert "currentColor" in svg
    assert "#000000" not in svg


def test_the_same_figure_gives_the_same_text() -> None:
    assert figure_to_svg(plot("y")) == figure_to_svg(plot("y"))


def test_image_survives_unchanged() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    uri = image_to_uri(pixels)
    kind, content = uri.split(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(
        np.array(Image.open(io.BytesIO(base64.b64decode(content)))), pixels
    )
