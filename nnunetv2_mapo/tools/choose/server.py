"""The page's server: on this machine only, for who has the address with its token."""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nnunetv2_mapo.method.choices import read_answers
from nnunetv2_mapo.support.errors import CommandError, MAPOError
from nnunetv2_mapo.tools.choose.agreement import summarise
from nnunetv2_mapo.tools.choose.folder import ChoicesFolder
from nnunetv2_mapo.tools.choose.images import is_rgb
from nnunetv2_mapo.tools.choose.questions import Key, Question
from nnunetv2_mapo.tools.choose.session import Session, SessionError
from nnunetv2_mapo.tools.choose.views import View, make_view

_ADDRESS = "127.0.0.1"
_MOST_BYTES = 10_000  # of a request
_NUM_VIEWS = 3  # that are kept: the last question's, this one's, the next one's
_PAGE = ("", "page.css", "page.js", "slices.js", "viewer.js")  # nothing else is read for a request
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _LazyView:
    """A view that one thread loads, while others wait for it but not for one another's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._view: View | None = None

    def load(self, folder: ChoicesFolder, question: Question) -> View:
        """The view of a question; always of the same one."""
        with self._lock:
            if self._view is None:
                region = None
                if question.region is not None:
                    region = (question.shown[0], question.shown[1], question.region)
                self._view = make_view(folder.read_image(question.image), region)
            return self._view


class ChooseServer(ThreadingHTTPServer):
    """Serves a session's page.

    Args:
        session: Asks.
        port: Of 127.0.0.1; 0: a free one.

    Raises:
        CommandError: The port is taken.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int) -> None:
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            message = f"Port {port} cannot be had ({error}). Name another one, or none: --port 0."
            raise CommandError(message) from error
        self.session = session
        self.token = secrets.token_urlsafe(24)
        self.is_over = threading.Event()  # set by the page's last button
        self._views: OrderedDict[Key, _LazyView] = OrderedDict()
        self._views_lock = threading.Lock()

    @property
    def port(self) -> int:
        """Of 127.0.0.1."""
        return int(self.server_address[1])

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://{_ADDRESS}:{self.port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Closed tabs end connections in the middle: no traceback of these."""

    def start(self) -> None:
        """Serve in a thread of its own, until `shutdown`."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def view(self, question: Question) -> View:
        """View of a question's image; the last few are kept."""
        with self._views_lock:
            view = self._views.setdefault(question.key, _LazyView())
            self._views.move_to_end(question.key)
            while len(self._views) > _NUM_VIEWS:
                self._views.popitem(last=False)
        return view.load(self.session.folder, question)

    def describe(self, identifier: str) -> dict[str, Any]:
        """A question, for the page."""
        question = self.session.find(identifier)
        view, model = self.view(question), self.session.preparation.model
        spacing = model.configuration_manager.spacing
        names = {value: name for name, value in model.dataset_json["labels"].items()
                 if isinstance(value, int)}  # fmt: skip
        order = model.dataset_json.get("regions_class_order") or []
        regions = [name for name, value in model.dataset_json["labels"].items() if value != 0]
        names |= dict(zip(order, regions, strict=False))
        return {
            "question": identifier,
            "image": question.image,
            "is_region": question.region is not None,
            "num_shown": len(question.shown),
            "shape": list(view.image.shape),
            "channels": model.channel_names,
            "is_rgb": is_rgb(model),
            "aspect": float(spacing[-2] / spacing[-1]),
            "values": view.values,
            "labels": [names.get(value, str(value)) for value in view.values],
            "disputed": view.disputed,
            "box": view.box,
        }


class _Handler(BaseHTTPRequestHandler):
    """One request; see `docs/how-to/choices.md` for what keeps others out."""

    server: ChooseServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "nnunetv2-mapo", ""
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet
    timeout = 60

    def log_message(self, *_: Any) -> None:
        """Nothing: the address holds the token."""

    def do_GET(self) -> None:
        """Page, state, question, slice."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Whatever changes something."""
        self._answer(self._post)

    def _answer(self, handle: Callable[[str, dict[str, Any]], None]) -> None:
        try:
            handle(*self._check())
        except SessionError as error:
            self._send_json({"error": str(error)}, error.status)
        except MAPOError as error:
            self._send_json({"error": str(error)}, 500)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            self._send_json({"error": f"bad request: {error!r}"}, 400)
        except ConnectionError:  # the page was closed
            raise
        except (OSError, RuntimeError) as error:  # a full disk, a file that was taken away
            self._send_json({"error": f"Not done: {error}"}, 500)

    def _check(self) -> tuple[str, dict[str, Any]]:
        """Name and content of a request that may be answered.

        Raises:
            SessionError: It may not.
        """
        content = self._read_content()
        hosts = [f"{name}:{self.server.port}" for name in (_ADDRESS, "localhost")]
        host = self.headers.get("Host", "")
        if host not in hosts:  # a name that was bent to this machine (DNS rebinding)
            raise SessionError(403, "Forbidden: another host.")
        if self.command == "POST":
            if self.headers.get("Origin") != f"http://{host}":
                raise SessionError(403, "Forbidden: another origin.")
            if self.headers.get("Content-Type") != "application/json":
                raise SessionError(415, "JSON is needed.")
        url = urlsplit(self.path)
        token, name = (*url.path.split("/", 2)[1:], "")[:2]
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise SessionError(403, "Forbidden: the address lacks the token that was printed.")
        query: dict[str, Any] = {key: values[0] for key, values in parse_qs(url.query).items()}
        if content:
            query |= json.loads(content)
        return name, query

    def _read_content(self) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        if not 0 <= size <= _MOST_BYTES:
            self.close_connection = True
            raise SessionError(413, "Too long.")
        return self.rfile.read(size)

    def _get(self, name: str, query: dict[str, Any]) -> None:
        session = self.server.session
        if name in _PAGE:
            name = name or "page.html"
            content = (files("nnunetv2_mapo.tools.choose") / "page" / name).read_bytes()
            self._send(content, f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8")
        elif name == "start":
            self._send_json({"rater": session.last_rater})
        elif name == "state":
            session.check(query["client"])
            self._send_json(session.describe())
        elif name == "summary":
            self._send_json({"text": summarise(read_answers(session.folder.path))})
        elif name == "question":
            session.check(query["client"])
            current, upcoming = session.ask()
            asked = self.server.describe(current) if current else {"question": ""}
            self._send_json({**asked, "upcoming": upcoming, "state": session.describe()})
        elif name == "upcoming":
            self._send_json(self.server.describe(query["question"]))
        elif name == "slice":
            question = session.find(query["question"])
            view, place = self.server.view(question), int(query["place"])
            if not 0 <= place < view.image.shape[1]:
                raise SessionError(404, "There is no such slice.")
            content = view.slice(place, question.shown)
            self._send(content, "application/octet-stream", compressed=True)
        else:
            raise SessionError(404, "There is nothing here.")

    def _post(self, name: str, query: dict[str, Any]) -> None:
        session, client = self.server.session, str(query["client"])
        if name == "join":
            session.join(client, str(query["rater"]), take_over=bool(query.get("take_over")))
        elif name == "leave":
            session.leave(client)
        else:
            session.check(client)
        if name == "answer":
            session.answer(
                str(query["question"]), str(query["verdict"]), query.get("best"),
                query.get("worst"), float(query["seconds"]),
            )  # fmt: skip
        elif name == "undo":
            session.undo()
        elif name == "finish":
            self.server.is_over.set()
        elif name not in ("join", "leave"):
            raise SessionError(404, "There is nothing here.")
        self._send_json({})

    def _send_json(self, content: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(content).encode(), "application/json", status)

    def _send(
        self, content: bytes, kind: str, status: int = 200, *, compressed: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if compressed:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
