"""Runs a script with a stock nnU-Net, in effect: no import of this package, no connection.

python offline.py SCRIPT [ARGUMENT ...]
"""

import runpy
import socket
import sys
from collections.abc import Sequence


class RefusePackage:
    """Finder that finds no `nnunetv2_mapo`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name.split(".")[0] == "nnunetv2_mapo":
            message = f"{name} is not installed in this test"
            raise ModuleNotFoundError(message)


def refuse_connection(*_: object) -> None:
    message = "no network in this test"
    raise OSError(message)


if __name__ == "__main__":
    sys.meta_path.insert(0, RefusePackage())  # type: ignore[arg-type]  # refuses, never finds
    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, refuse_connection)
    socket.getaddrinfo = refuse_connection  # type: ignore[assignment]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
