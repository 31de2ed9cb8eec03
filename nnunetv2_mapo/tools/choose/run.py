"""The steps of `choose`: open model and folder, segment in the background, ask, sum up."""

from __future__ import annotations

import webbrowser
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from nnunetv2_mapo.method.choices import read_answers, read_model
from nnunetv2_mapo.support.device import choose_device
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.tools.choose.agreement import summarise
from nnunetv2_mapo.tools.choose.expert import Expert, find_truths
from nnunetv2_mapo.tools.choose.export import export_candidates
from nnunetv2_mapo.tools.choose.folder import (
    ChoicesFolder,
    check_origin,
    describe_model,
    open_folder,
)
from nnunetv2_mapo.tools.choose.images import find_images
from nnunetv2_mapo.tools.choose.preparation import Preparation
from nnunetv2_mapo.tools.choose.questions import Asking
from nnunetv2_mapo.tools.choose.server import ChooseServer
from nnunetv2_mapo.tools.choose.session import Session
from nnunetv2_mapo.tools.models import open_model


def run_choose(arguments: Namespace) -> None:
    """Run the sub-command from its parsed command line.

    Raises:
        CommandError: The model or the images cannot be used.
        ChoicesError: The folder of choices cannot.
    """
    output = arguments.output
    if arguments.summary:
        read_model(output)
        print(summarise(read_answers(output)))
        return
    device = choose_device(arguments.device)
    model = open_model(arguments.model, arguments.fold, arguments.checkpoint, device)
    origin = describe_model(model, arguments.checkpoint)
    if arguments.export:
        check_origin(output, origin)
        number = export_candidates(ChoicesFolder(output), model, arguments.export)
        print(f"Written: {number} candidates to {arguments.export}")
        return
    files = find_images(arguments.input, model)
    truths = {}
    if arguments.truth:
        truths = find_truths(arguments.truth, files, model.dataset_json["file_ending"])
    preparation = Preparation(
        open_folder(output, origin), model, files, arguments.candidates, arguments.seed, device,
        _say,
    )  # fmt: skip
    _serve(preparation, truths, arguments)
    if preparation.failure:
        raise preparation.failure
    if not preparation.ready:
        message = "None of the images can be asked about, see above."
        raise CommandError(message)
    print(f"\n{summarise(read_answers(output))}\nWritten: {output}")


def _serve(preparation: Preparation, truths: Mapping[str, Path], arguments: Namespace) -> None:
    """Segment and ask, an expert or one who knows the ground truth."""
    asking = Asking(arguments.regions, arguments.repeat, arguments.seed)
    with ChooseServer(Session(preparation, asking), arguments.port) as server:
        preparation.start()
        server.start()
        try:
            if not truths:
                _ask(server, preparation, arguments)
                return
            preparation.wait()  # the order, and so the record, is then the same again
            if others := sorted(preparation.ready.keys() - truths.keys()):
                _say(f"Not asked about, for -i lacks them: {', '.join(others)}")
            for name in others:
                del preparation.ready[name]
            expert = Expert(
                server.address, preparation.model, preparation.files, truths,
                error=arguments.error, seed=arguments.seed,
            )  # fmt: skip
            print(f"The simulated expert gave {expert.answer_all()} answers.")
        finally:
            server.shutdown()
            preparation.stop()


def _ask(server: ChooseServer, preparation: Preparation, arguments: Namespace) -> None:
    """Wait until the page says that it is enough, or Ctrl-C."""
    print(
        f"The page is at {server.address}\nIt is for this machine only. Every answer is on the "
        "disk at once: close it, or press Ctrl-C here, and go on with the same command.",
        flush=True,
    )
    if not arguments.no_browser:
        webbrowser.open(server.address)
    try:
        while not server.is_over.wait(0.2):
            if preparation.is_done and not preparation.ready:
                return
    except KeyboardInterrupt:
        print("\nInterrupted: what was answered is kept.")


def _say(text: str) -> None:
    # a file's name may be no UTF-8
    print(text.encode(errors="backslashreplace").decode(), flush=True)
