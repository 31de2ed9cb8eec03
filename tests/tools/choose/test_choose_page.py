"""The page in a browser: what a click leaves behind, and errors on every screen."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browser import CHROMIUM, OPTIONS, needs_chromium
from playwright.sync_api import Page, sync_playwright

from nnunetv2_mapo.method.choices import read_answers
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.tools.choose.server import ChooseServer

pytestmark = needs_chromium


@pytest.fixture
def page(server: ChooseServer) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page()
        page.goto(server.address)
        page.wait_for_selector("body[data-screen=start]")
        yield page
        browser.close()


def begin(page: Page, name: str = "Ada") -> None:
    page.fill("#rater", name)
    page.keyboard.press("Enter")


def await_question(page: Page, act: Callable[[], Any]) -> None:
    before = page.get_attribute("body", "data-question")
    act()
    asking = f"body[data-screen=asking]:not([data-question='{before}'])"
    page.wait_for_selector(f"{asking}, body[data-screen=finished]")


@pytest.mark.parametrize("button", ["[data-verdict=equal]", "[data-verdict=skip]", "header .undo"])
def test_enter_sends_the_best_whatever_was_clicked_before(page, server, button):
    await_question(page, lambda: begin(page))
    await_question(page, lambda: page.keyboard.press("e"))
    await_question(page, lambda: page.click(button))
    page.keyboard.press("1")
    await_question(page, lambda: page.keyboard.press("Enter"))
    last = [*read_answers(server.session.folder.path).values()][-1]
    assert (last.verdict, last.best, last.worst) == ("choice", last.shown[0], None)


def test_enter_after_a_click_on_the_best_sends_it(page, server):
    await_question(page, lambda: begin(page))
    page.click(".panel .best >> nth=1")
    await_question(page, lambda: page.keyboard.press("Enter"))
    [answer] = read_answers(server.session.folder.path).values()
    assert answer.best == answer.shown[1]


def test_an_error_is_said_where_a_rater_begins(page):
    begin(page, "   ")
    page.wait_for_selector("#toast.is-shown")
    assert page.inner_text("#toast") == "A name is needed."


def test_waiting_outlives_an_error_and_says_it(page, server, monkeypatch):
    session, calls = server.session, []
    ask = session.ask

    def fail_second_time() -> tuple[str, str]:
        calls.append(0)
        if len(calls) == 1:
            return "", ""
        if len(calls) == 2:
            message = "a damaged image"
            raise InputError(message)
        return ask()

    monkeypatch.setattr(session, "ask", fail_second_time)
    monkeypatch.setattr(type(session.preparation), "is_done", property(lambda _: len(calls) > 2))
    begin(page)
    page.wait_for_selector("body[data-screen=asking]", timeout=10_000)
    assert page.inner_text("#toast") == "a damaged image"
