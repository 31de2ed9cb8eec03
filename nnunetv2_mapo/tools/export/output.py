"""The output of an export: nothing is overwritten, and it appears complete or not at all."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.files import hash_file, write_atomically
from nnunetv2_mapo.tools.export.export import ModelExport, write_zip


@dataclass(frozen=True)
class Output:
    """What the export makes.

    Attributes:
        path: Zip file or folder.
    """

    path: Path

    @property
    def is_zip(self) -> bool:
        """Whether it is a zip file."""
        return self.path.suffix.lower() == ".zip"

    @property
    def record(self) -> Path:
        """JSON file beside it that says where everything comes from."""
        return self.path.with_name(f"{self.path.name}.json")

    def check(self) -> None:
        """Refuse to overwrite anything, before anything is computed.

        Raises:
            CommandError: There is something already.
        """
        for path in (self.path, self.record):
            if path.exists() or path.is_symlink():
                message = f"{path} exists. Delete it, or name another OUTPUT."
                raise CommandError(message)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Folder beside the output, so that what is in it can be renamed to it; then deleted."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".export_") as folder:
            yield Path(folder)

    def publish(self, results: Path, records: list[dict[str, Any]], scratch: Path) -> None:
        """Let the output and its record appear.

        Args:
            results: Folder with the exported models.
            records: What is known of each.
            scratch: Folder for a zip file while it is written.

        Raises:
            OSError: It cannot be written.
            WriteError: The record cannot be written.
        """
        product = results
        content: dict[str, Any] = {"models": records, "sha256": None}
        if self.is_zip:
            product = scratch / "models.zip"
            write_zip(results, product)
            content["sha256"] = hash_file(product)
        write_atomically(self.record, to_json(content))
        try:
            product.rename(self.path)
        except OSError:
            self.record.unlink()
            raise

    def explain(self, error: OSError, exports: Sequence[ModelExport]) -> str:
        """What the user can do about an output that cannot be written."""
        files = [
            export.source / f"fold_{fold}" / export.checkpoint
            for export in exports
            for fold in export.folds
        ]
        needed = sum(file.stat().st_size for file in files if file.is_file())
        there = next(folder for folder in self.path.parents if folder.is_dir())
        return (
            f"{self.path} could not be written ({error}). It needs about "
            f"{(1 + self.is_zip) * needed / 1e6:.1f} MB while it is made; "
            f"{shutil.disk_usage(there).free / 1e6:.1f} MB are free there. Nothing is left of it: "
            "make space or name another OUTPUT, and run the command again."
        )


def explain_use(output: Output, exports: Sequence[ModelExport]) -> Iterator[str]:
    """Lines that say where it is, how it is installed and used, and what to mind."""
    files = [output.path] if output.is_zip else output.path.rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    yield f"\nWritten: {output.path} ({size / 1e6:.1f} MB)\nWritten: {output.record}\n\nTo use it:"
    path = shlex.quote(str(output.path))
    if output.is_zip:
        yield f"  nnUNetv2_install_pretrained_model_from_zip {path}"
    else:
        yield f"  export nnUNet_results={path}"
    for export in exports:
        checkpoint = f" -chk {export.checkpoint}" * (export.checkpoint != "checkpoint_final.pth")
        previous = " -prev_stage_predictions FOLDER" * export.is_cascade
        yield (
            f"  nnUNetv2_predict -d {export.dataset} -c {export.configuration} "
            f"-tr {export.plain.name} -p {export.plans} -f {' '.join(map(str, export.folds))}"
            f"{checkpoint}{previous} -i INPUT_FOLDER -o OUTPUT_FOLDER"
        )
    names = ", ".join(export.target for export in exports)
    if output.is_zip:
        yield f"Installing overwrites a model of the same name in that nnUNet_results: {names}"
    for export in exports:
        name = export.plain.name
        if export.plain.is_shipped is None:
            yield (
                f"{name} builds the network of {export.target}. Whether it comes with nnU-Net "
                "could not be checked: the nnU-Net here is an editable installation, which does "
                "not list its files. If not, install it there, or name its folder with "
                "nnUNet_extTrainer."
            )
        elif not export.plain.is_shipped:
            yield (
                f"{name} builds the network of {export.target} and does not come with nnU-Net: "
                "install it there, or name its folder with nnUNet_extTrainer."
            )


def to_json(content: dict[str, Any]) -> bytes:
    """Bytes of a JSON file that people read too."""
    return json.dumps(content, indent=1).encode()
