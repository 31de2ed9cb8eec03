"""The steps of a preview: open the model, mine some of its training cases, show what they say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nnunetv2_mapo.method.cases import load_case
from nnunetv2_mapo.method.config import RATES_2D, RATES_3D, MAPOConfig
from nnunetv2_mapo.method.mining import Miner
from nnunetv2_mapo.method.selection import candidate_disagreement
from nnunetv2_mapo.support.errors import CommandError, InputError
from nnunetv2_mapo.support.files import WriteError
from nnunetv2_mapo.support.memory import OutOfMemoryError
from nnunetv2_mapo.tools.device import choose_device
from nnunetv2_mapo.tools.models import (
    ModelError,
    TrainedModel,
    find_model_folder,
    open_cases,
    open_model,
)
from nnunetv2_mapo.tools.preview.preview import Settings
from nnunetv2_mapo.tools.preview.results import SampleView, Seen, draw
from nnunetv2_mapo.tools.remining import mine_like

CASE_TAU = 0.1
RATES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


def run_preview(arguments: argparse.Namespace) -> None:
    """Run a preview from its parsed command line.

    Raises:
        CommandError: The model or its data cannot be used.
    """
    try:
        folder = find_model_folder(
            arguments.dataset, arguments.trainer, arguments.plans, arguments.configuration
        )
        device = choose_device(arguments.device)
        model = open_model(folder, arguments.fold, arguments.checkpoint, device)
        cases = open_cases(model).training
        chosen = space_evenly(sorted(cases.identifiers), arguments.cases)
        settings = default_settings(model)
        rates = sorted({*(arguments.rates or RATES), *settings.rates})
        samples = look_at(model, cases, chosen, rates, device)
        if not any(sample.has_foreground for sample in samples):
            message = f"None of {chosen} has foreground: look at more of them with --cases."
            raise CommandError(message)
        seen = Seen(
            model=model,
            checkpoint=arguments.checkpoint,
            num_cases=len(chosen),
            num_training=len(cases.identifiers),
            rates=tuple(rates),
            samples=samples,
            default=settings,
        )
        print(f"\n{seen}")
        if arguments.output:
            write(seen, arguments.output)
    except (ModelError, InputError) as error:
        raise CommandError(str(error)) from error
    except OutOfMemoryError as error:
        message = (
            f"{device} has too little memory for a single window of the image at {len(rates)} "
            "dropout rates. Free memory there, look at fewer --rates, or take -device cpu."
        )
        raise CommandError(message) from error


def write(seen: Seen, folder: Path) -> None:
    """Write the numbers and the picture into a folder that is there.

    Raises:
        CommandError: They cannot be written.
    """
    try:
        for path in (seen.write(folder), draw(seen, folder)):
            print(f"Written: {path}")
    except (OSError, WriteError) as error:
        message = f"Cannot write to {folder} ({error}). Name another folder with -o."
        raise CommandError(message) from error


def space_evenly(identifiers: Sequence[str], number: int) -> list[str]:
    """So many of them, evenly spaced; all if there are no more."""
    number = min(number, len(identifiers))
    return [identifiers[place * len(identifiers) // number] for place in range(number)]


def default_settings(model: TrainedModel) -> Settings:
    """The paper's rates for the model's dimension, and a τ at which two candidates make a pair."""
    is_2d = len(model.configuration_manager.patch_size) == 2
    return Settings(RATES_2D if is_2d else RATES_3D, CASE_TAU)


def look_at(
    model: TrainedModel,
    cases: Any,
    identifiers: Sequence[str],
    rates: Sequence[float],
    device: torch.device,
) -> list[SampleView]:
    """Mine cases as the first round of a training with these weights and rates would.

    Args:
        model: Its network is as before afterwards.
        cases: nnU-Net's dataset.
        identifiers: Cases of it.
        rates: Dropout rate of each candidate.
        device: Where the network lies.

    Returns:
        Their training samples.

    Raises:
        OutOfMemoryError: There is not enough memory for a single window.
    """
    trained = MAPOConfig.from_dict(model.mapo or {})
    config = MAPOConfig(  # samples are those of the default, whatever the model was trained with
        rates_2d=tuple(rates),
        rates_3d=tuple(rates),
        rates="fixed",
        granularity=trained.granularity,
        seed=trained.seed,
        dropout_include=trained.dropout_include,
        dropout_exclude=trained.dropout_exclude,
    )
    samples = []
    with mine_like(model, config, device, log=tqdm.write) as remining:
        for identifier in tqdm(identifiers, desc="preview", unit="case"):
            image, segmentation = load_case(cases, model.label_manager, identifier)
            truth = torch.from_numpy(segmentation[0])
            view = partial(_view_case, identifier=identifier, image=image, truth=truth)
            samples += remining.do(view, identifier)
    return samples


def _view_case(miner: Miner, identifier: str, image: Tensor, truth: Tensor) -> list[SampleView]:
    views = []
    for number, sample in enumerate(miner.find_samples(image, truth)):
        disagreement = candidate_disagreement(sample.candidates, ~sample.ignored)
        views.append(
            SampleView(
                identifier,
                number,
                has_foreground=bool((sample.target > 0).any()),
                dice=np.array(sample.dice),
                disagreement=disagreement.cpu().numpy(),
            )
        )
    return views
