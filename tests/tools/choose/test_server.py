"""What keeps others out of the page, and what it sends."""

import json
from http.client import HTTPConnection
from typing import Any

import pytest

from nnunetv2_mapo.method.choices import read_answers
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.choose import session
from nnunetv2_mapo.tools.choose.server import ChooseServer

JSON = "application/json"


def request(
    server: ChooseServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
    connection.request(method, path, content, names)
    response = connection.getresponse()
    answer = response.status, response.read(), dict(response.headers)
    connection.close()
    return answer


def get(server: ChooseServer, name: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    return request(server, "GET", f"/{server.token}/{name}", **headers)


def post(server: ChooseServer, name: str, content: Any, **headers: str) -> tuple[int, bytes]:
    headers = {"Origin": f"http://127.0.0.1:{server.port}", "Content_Type": JSON} | headers
    return request(server, "POST", f"/{server.token}/{name}", content, **headers)[:2]


def join(server: ChooseServer) -> None:
    assert post(server, "join", {"client": "page", "rater": "Ada"})[0] == 200


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.port}/{server.token}/"
    assert len(server.token) >= 32


def test_the_page_may_load_nothing_from_elsewhere(server):
    status, content, headers = get(server, "")
    assert status == 200
    assert b"<!DOCTYPE html>" in content
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    for name in ("page.css", "page.js", "viewer.js", "slices.js"):
        assert get(server, name)[0] == 200
        assert b"://" not in get(server, name)[1]
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/x/", "/x/question", "/question?client=page", "//"])
def test_an_address_without_the_token_is_refused(server, path):
    assert request(server, "GET", path)[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1"])
def test_another_host_is_refused(server, host):
    assert get(server, "", Host=host)[0] == 403


def test_localhost_is_this_machine(server):
    assert get(server, "", Host=f"localhost:{server.port}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", ""])
def test_a_post_of_another_origin_is_refused(server, origin):
    join(server)
    status, content = post(server, "undo", {"client": "page"}, Origin=origin)
    assert status == 403
    assert b"origin" in content


def test_a_form_of_another_page_is_refused(server):
    assert post(server, "join", {"client": "x", "rater": "x"}, Content_Type="text/plain")[0] == 415


@pytest.mark.parametrize(
    "name",
    [
        "../server.py",
        "..%2fserver.py",
        "%2e%2e/server.py",
        "/etc/passwd",
        "page.html/../x",
        "nothing",
    ],
)
def test_paths_outside_are_refused(server, name):
    assert get(server, name)[0] == 404


@pytest.mark.parametrize("content", [b"{", b"[]", b"1", b"{}", b"\xff"])
def test_damaged_requests_are_refused(server, content):
    assert post(server, "answer", content)[0] == 400


def test_long_requests_are_refused(server):
    assert post(server, "join", b"x" * 20_000)[0] == 413


def test_candidates_are_blinded(server):
    join(server)
    asked = json.loads(get(server, "question?client=page")[1])
    assert "shown" not in asked
    assert asked["aspect"] == 2  # rows are twice as far apart as columns
    assert asked["labels"] == ["background", "box"]
    place = asked["disputed"].index(max(asked["disputed"]))
    status, content, headers = get(server, f"slice?question={asked['question']}&place={place}")
    assert (status, headers["Content-Encoding"]) == (200, "gzip")
    assert content
    assert get(server, f"slice?question={asked['question']}&place=3")[0] == 404
    assert get(server, "slice?question=other&place=0")[0] == 404
    assert get(server, f"slice?question={asked['question']}&place=x")[0] == 400


def test_answers_reach_the_disk_and_other_pages_do_not_answer(server):
    join(server)
    asked = json.loads(get(server, "question?client=page")[1])
    content = {
        "client": "page", "question": asked["question"], "verdict": "choice", "best": 1,
        "worst": None, "seconds": 2.5,
    }  # fmt: skip
    assert post(server, "answer", {**content, "client": "other"})[0] == 423
    assert not read_answers(server.session.folder.path)
    assert post(server, "answer", content)[0] == 200
    assert len(read_answers(server.session.folder.path)) == 1
    assert post(server, "undo", {"client": "page"})[0] == 200
    assert not read_answers(server.session.folder.path)


def test_an_answer_that_cannot_be_written_is_not_acknowledged(server, monkeypatch):
    def fail(*_: object) -> int:
        message = "No space left on device"
        raise OSError(28, message)

    join(server)
    asked = json.loads(get(server, "question?client=page")[1])
    content = {"client": "page", "question": asked["question"], "verdict": "equal", "seconds": 1}
    monkeypatch.setattr(session, "append_answer", fail)
    status, said = post(server, "answer", content)
    assert status == 500
    assert b"No space left" in said
    monkeypatch.undo()
    assert post(server, "answer", content)[0] == 200
    assert len(read_answers(server.session.folder.path)) == 1


def test_a_port_that_is_taken_is_named(server):
    with pytest.raises(CommandError, match=f"Port {server.port} cannot be had"):
        ChooseServer(server.session, server.port)
