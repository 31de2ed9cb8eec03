"""Opens a page of ours in headless Chromium and says what is wrong with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
# Chromium looks for updates and hosts of its own; a page of ours needs none.
OPTIONS = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


@contextmanager
def opened(path: Path, size: str = "desktop", scheme: str = "light") -> Iterator[Page]:
    """The page at `SIZES[size]`; at the end no error was reported and nothing else was loaded."""
    problems: list[str] = []
    width, height = SIZES[size]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(f"request: {request.url[:80]}"))
        page.goto(path.as_uri())
        yield page
        browser.close()
    loaded = [problem for problem in problems if not problem.startswith("request: data:")]
    assert loaded == [f"request: {path.as_uri()[:80]}"]


def find_faults(page: Page) -> list[str]:
    """What does not fit into the page's width, and images that are not there."""
    faults: list[str] = page.evaluate(
        """() => {
          const faults = [];
          const width = document.documentElement.clientWidth;
          if (document.documentElement.scrollWidth > width) faults.push("page is too wide");
          for (const box of document.querySelectorAll("body *"))
            if (
              box.scrollWidth > box.clientWidth + 1 &&
              getComputedStyle(box).overflowX !== "visible"
            )
              faults.push("to be scrolled sideways: " + box.tagName + " " + box.className);
          for (const image of document.images)
            if (!image.complete || image.naturalWidth === 0) faults.push("no image: " + image.alt);
          for (const text of document.querySelectorAll("svg text")) {
            const words = text.textContent.trim();
            if (words && text.getBoundingClientRect().height < 6) faults.push("tiny: " + words);
          }
          return faults;
        }"""
    )
    return faults
