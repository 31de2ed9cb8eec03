"""Logits by nnU-Net alone: run by its path, it hides this package and computes in that process.

    python stock_logits.py JOBS.json

Imports nothing of this package, and nnU-Net only once this package is hidden.
"""

from __future__ import annotations

import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HIDDEN = "nnunetv2_mapo"
_IMPORTS_HIDDEN = re.compile(rf"^\s*(?:from|import)\s+{HIDDEN}\b".encode(), re.MULTILINE)


class _Refuse(MetaPathFinder):
    """Answers for this package as Python does for one that is not installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] == HIDDEN:
            message = f"No module named {fullname!r}"
            raise ModuleNotFoundError(message, name=fullname)


def hide_package() -> None:
    """Make this process one in which this package is not installed.

    It cannot be imported any more, and trainer modules that import it are not there for nnU-Net's
    search: those of `trainer_configs`, wherever they are, and a user's own variants.
    """
    here = Path(__file__).resolve().parent
    # Python puts a script's folder first: our modules would stand in front of others of their name.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
    sys.meta_path.insert(0, _Refuse())
    iter_modules = pkgutil.iter_modules

    def iter_others(path: Any = None, prefix: str = "") -> Iterator[pkgutil.ModuleInfo]:
        return (each for each in iter_modules(path, prefix) if not _imports_hidden(each, prefix))

    pkgutil.iter_modules = iter_others


def _imports_hidden(module: pkgutil.ModuleInfo, prefix: str) -> bool:
    folder = getattr(module.module_finder, "path", None)
    if folder is None:  # not a folder but a zip file or the like
        return False
    name = module.name.removeprefix(prefix)
    file = Path(folder, name, "__init__.py") if module.ispkg else Path(folder, f"{name}.py")
    return file.is_file() and _IMPORTS_HIDDEN.search(file.read_bytes()) is not None


def make_predictor(device: str) -> Any:
    """nnU-Net's predictor without what only averages: mirroring, Gaussian, overlap."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    return nnUNetPredictor(
        tile_step_size=1,
        use_gaussian=False,
        use_mirroring=False,
        device=torch.device(device),
        allow_tqdm=False,
    )


def compute_logits(predictor: Any, image: NDArray[np.float32]) -> NDArray[Any]:
    """Logits of an image by the same algorithms each time.

    Args:
        predictor: With one fold's weights.
        image: Preprocessed, a cascade's previous stage stacked, shape `(channels, z, y, x)`.

    Returns:
        Shape `(heads, z, y, x)`, float16 as nnU-Net keeps them.
    """
    import torch

    # nnU-Net lets cudnn choose the fastest algorithm, which need not be the same one twice
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image))
    result: NDArray[Any] = logits.numpy()
    return result


def run_jobs(file: Path) -> None:
    """Compute and write the logits that a file of `check` asks for."""
    import numpy as np
    import torch

    content = json.loads(file.read_bytes())
    torch.set_num_threads(content["num_threads"])
    for job in content["jobs"]:
        predictor = make_predictor(content["device"])
        predictor.initialize_from_trained_model_folder(
            job["model"], (job["fold"],), job["checkpoint"]
        )
        np.save(job["logits"], compute_logits(predictor, np.load(job["image"])))


if __name__ == "__main__":
    hide_package()
    run_jobs(Path(sys.argv[1]))
