"""The steps of `uncertainty`: segment as nnU-Net does, map and score each case, rank the cases."""

from __future__ import annotations

import multiprocessing
from argparse import Namespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases, verify_labels
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.inference.data_iterators import preprocessing_iterator_fromfiles
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder

from nnunetv2_mapo.method.cases import channels_of, labels_of
from nnunetv2_mapo.method.config import MAPOConfig
from nnunetv2_mapo.support.device import choose_device, seeded
from nnunetv2_mapo.support.errors import CommandError
from nnunetv2_mapo.support.files import find_checkpoint
from nnunetv2_mapo.tools.models import load_folds, read_model
from nnunetv2_mapo.tools.uncertainty import FOLDER, USUAL_RATE
from nnunetv2_mapo.tools.uncertainty.maps import (
    make_maps,
    make_sampler,
    write_map,
    write_picture,
)
from nnunetv2_mapo.tools.uncertainty.measures import (
    describe,
    measure_undecided,
    rank,
    score_case,
)


def run_uncertainty(arguments: Namespace) -> None:
    """Run the sub-command from its parsed command line.

    Raises:
        CommandError: The model or the images cannot be used, or memory or disk do not suffice.
    """
    path = arguments.output / FOLDER / "uncertainty.csv"
    try:
        predictor, mapo = open_model(arguments)
        cases = find_cases(arguments, predictor)
        path.unlink(missing_ok=True)  # an earlier run's, in case this one does not come to its end
        table = rank(map_cases(arguments, cases, predictor, mapo))
        table.to_csv(path, index_label="case")
    except OSError as error:
        raise CommandError(str(error)) from error
    print(f"\n{describe(table)}\nWritten: {path}, and the maps beside it")


def open_model(arguments: Namespace) -> tuple[nnUNetPredictor, dict[str, Any]]:
    """Open the model as nnUNetv2_predict does, and say what a reader of its maps must know.

    Returns:
        nnU-Net's predictor; the settings of MAPO, none unless all folds were trained with it.
    """
    folder, name = arguments.model, arguments.checkpoint
    paths = [find_checkpoint(folder, fold, name) for fold in arguments.folds]
    settings = [read_model(path).get("mapo", {}).get("config", {}) for path in paths]
    mapo = settings[0] if all(settings) else {}
    device = choose_device(arguments.device)
    # As nnUNetv2_predict: the last bits of a convolution depend on the number of threads.
    torch.set_num_threads(multiprocessing.cpu_count() if device.type == "cpu" else 1)
    predictor = nnUNetPredictor(use_mirroring=not arguments.disable_tta, device=device)
    load_folds(predictor, folder, arguments.folds, name)
    num_dimensions = len(predictor.configuration_manager.patch_size)
    has_dropout = bool(mapo) and MAPOConfig.from_dict(mapo).trains_with_dropout
    largest = max(mapo[f"rates_{num_dimensions}d"]) if has_dropout else 0.0
    if arguments.rate is None:
        arguments.rate = min(USUAL_RATE, largest)
        print(
            f"Rate {arguments.rate}: this network was trained with dropout up to {largest}."
            if largest
            else "Rate 0: this network was trained without dropout, so the maps are of its plain "
            f"softmax. --rate {USUAL_RATE} shows how fragile it is."
        )
    elif arguments.rate > largest:
        print(
            f"NOTE: by its checkpoint this network was trained with dropout at rates up to "
            f"{largest}. At rate {arguments.rate} the maps show how fragile it is, not which "
            "segmentations it holds for possible."
        )
    return predictor, mapo


def find_cases(arguments: Namespace, predictor: nnUNetPredictor) -> dict[str, list[str]]:
    """Images of each case by its name, sorted: one file a channel, or one with all channels.

    Raises:
        CommandError: A file is missing or, by nnU-Net's own checks, which print why, does not fit.
    """
    folder, ending = str(arguments.input), predictor.dataset_json["file_ending"]
    files = sorted(path.name for path in arguments.input.glob(f"*{ending}"))
    names = map(str, get_identifiers_from_splitted_dataset_folder(folder, ending))
    cases = {name: create_paths_fn(folder, files, ending, name) for name in names}
    channels, manager = channels_of(predictor.dataset_json), predictor.label_manager
    reader = predictor.plans_manager.image_reader_writer_class
    known = [*manager.all_labels, *[manager.ignore_label] * manager.has_ignore_label]
    message = "" if cases else f"{folder} has no file that ends in {ending}, as dataset.json says."
    if predictor.configuration_manager.previous_stage_name:
        message = "Second stages of cascades have no maps: take a model of another configuration."
    for name, images in cases.items():
        if len(images) not in (1, len(channels)):
            message = (
                f"{folder} has {len(images)} images of {name}: the model needs one file for each "
                f"of its channels ({', '.join(channels)}), CASE_0000{ending}, CASE_0001{ending} …"
            )
        if arguments.labels and not (arguments.labels / f"{name}{ending}").is_file():
            message = f"There is no {name}{ending} in {arguments.labels}."
    if message:
        raise CommandError(message)
    for name, images in cases.items() if arguments.labels else ():
        truth = f"{arguments.labels}/{name}{ending}"
        fits = check_cases(images, truth, len(channels), reader)
        if not (fits and verify_labels(truth, reader, known)):
            message = f"{truth} is no ground truth of {images[0]} for this model: see above."
            raise CommandError(message)
    return cases


def map_cases(
    arguments: Namespace,
    cases: dict[str, list[str]],
    predictor: nnUNetPredictor,
    mapo: dict[str, Any],
) -> pd.DataFrame:
    """Segment cases as nnUNetv2_predict does, then sample each, write its maps and score it."""
    ending, plans = predictor.dataset_json["file_ending"], predictor.plans_manager
    labels, reader = labels_of(predictor.label_manager), plans.image_reader_writer_class
    output = arguments.output
    predictor.predict_from_files(
        str(arguments.input), str(output), num_processes_preprocessing=arguments.npp,
        num_processes_segmentation_export=arguments.nps,
    )  # fmt: skip
    preprocessed = preprocessing_iterator_fromfiles(
        [*cases.values()], None, None, plans, predictor.dataset_json,
        predictor.configuration_manager, arguments.npp, predictor.device.type == "cuda",
    )  # fmt: skip
    rates = torch.full((arguments.samples if arguments.rate else 1,), arguments.rate)
    sampler = make_sampler(predictor, labels, mapo, rates)
    white = measure_undecided(labels)
    rows = {}
    for name, item in zip(cases, preprocessed, strict=True):
        print(f"\nMaps of {name}:", flush=True)
        # By the case alone: its maps do not depend on which cases there are and their order.
        with seeded(f"uncertainty/{name}", predictor.device):
            statistics = sampler.predict_logits_from_preprocessed_data(item["data"])
        maps = make_maps(statistics, item["data_properties"], predictor)
        for kind in ("entropy", "variance"):
            path = output / FOLDER / f"{name}_{kind}.nii.gz"
            write_map(getattr(maps, kind), item["data_properties"], reader, path)
            if reader is NaturalImage2DIO:  # whose images a viewer of NIfTI is not made for
                write_picture(
                    getattr(maps, kind), path.with_name(f"{name}_{kind}.png"), white[kind]
                )
        segmentation, truth = (
            folder and reader().read_seg(f"{folder}/{name}{ending}")[0][0].astype(np.int16)
            for folder in (output, arguments.labels)
        )
        rows[name] = score_case(maps, segmentation, truth, labels)
    return pd.DataFrame.from_dict(rows, orient="index")
