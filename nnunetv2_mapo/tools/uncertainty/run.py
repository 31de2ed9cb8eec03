"""The steps of `uncertainty`: segment as nnU-Net does, sample, write maps, score."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.inference.data_iterators import preprocessing_iterator_fromfiles
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_mapo.support.errors import CommandError, InputError
from nnunetv2_mapo.support.files import WriteError
from nnunetv2_mapo.support.memory import is_out_of_memory
from nnunetv2_mapo.support.randomness import seeded
from nnunetv2_mapo.support.table import format_table
from nnunetv2_mapo.support.weights import hash_weights
from nnunetv2_mapo.tools.device import choose_device
from nnunetv2_mapo.tools.evaluate.case_metrics import EvaluationError, read_segmentation
from nnunetv2_mapo.tools.models import ModelError
from nnunetv2_mapo.tools.uncertainty import FOLDER
from nnunetv2_mapo.tools.uncertainty.dropout_statistics import Sampling, sample_with
from nnunetv2_mapo.tools.uncertainty.ground_truth import read_ground_truth
from nnunetv2_mapo.tools.uncertainty.maps import make_maps, write_map
from nnunetv2_mapo.tools.uncertainty.model import Model, find_sampling, open_predictor
from nnunetv2_mapo.tools.uncertainty.prediction_input import ImageFiles, find_images
from nnunetv2_mapo.tools.uncertainty.records import (
    UNCERTAINTY_CSV,
    UNCERTAINTY_JSON,
    Records,
    read_cases,
)
from nnunetv2_mapo.tools.uncertainty.scores import score_case
from nnunetv2_mapo.tools.uncertainty.uncertainty import summarize_maps

_NUM_SHOWN = 5  # most uncertain cases
_GO_ON = "Go on with --continue_prediction."


@dataclass(frozen=True)
class Job:
    """What is done with every case.

    Attributes:
        model: What segments.
        sampling: How samples are drawn.
        records: Of the cases.
        output: Folder of the segmentations.
    """

    model: Model
    sampling: Sampling
    records: Records
    output: Path

    def segmentation_of(self, case: ImageFiles) -> Path:
        """File of the delivered segmentation."""
        return self.output / f"{case.identifier}{self.model.predictor.dataset_json['file_ending']}"

    def maps_of(self, case: ImageFiles) -> tuple[Path, Path]:
        """Files of the entropy and of the variance."""
        folder, name = self.records.folder, case.identifier
        return folder / f"{name}_entropy.nii.gz", folder / f"{name}_variance.nii.gz"


def run_uncertainty(arguments: argparse.Namespace) -> None:
    """Run the sub-command from its parsed command line.

    Raises:
        CommandError: The model or the images cannot be used, or the maps cannot be written.
    """
    try:
        model = open_predictor(arguments)
        cases = find_images(
            arguments.input, model.predictor, arguments.prev_stage_predictions, arguments.labels
        )
        sampling = find_sampling(arguments, model)
        records = open_records(arguments, model, sampling)
        job = Job(model, sampling, records, arguments.output)
        missing = [case for case in cases if not is_finished(case, job)]
        print(f"{len(cases)} cases, {len(missing)} of them without maps", flush=True)
        for case in missing:
            if case.truth is not None:
                read_ground_truth(case, model.predictor)
        if not arguments.continue_prediction:
            delete_earlier(cases, job)
        records.write()
        segment(arguments, model.predictor)
        map_cases(missing, job, arguments.npp)
    except (ModelError, InputError, EvaluationError) as error:
        raise CommandError(str(error)) from error
    except WriteError as error:
        message = f"{error} {_GO_ON}"
        raise CommandError(message) from error
    except RuntimeError as error:
        on_cpu = choose_device(arguments.device).type == "cpu"
        if message := explain(error, on_cpu=on_cpu):
            raise CommandError(message) from error
        raise
    print(f"\n{describe(records)}")
    print(f"Written: {UNCERTAINTY_JSON}, {UNCERTAINTY_CSV} and the maps in {records.folder}")


def explain(error: RuntimeError, *, on_cpu: bool) -> str:
    """What to do about an error of PyTorch or nnU-Net; empty if that is not known."""
    if is_out_of_memory(error):
        elsewhere = "" if on_cpu else " or take -device cpu"
        return (
            f"There is too little memory even for one sample at a time ({error}). Free "
            f"memory{elsewhere}. {_GO_ON}"
        )
    if re.search("worker.* died", str(error)):
        return (
            f"A process of nnU-Net died, for the reason above or, without one, most likely for "
            f"lack of memory ({error}). Mend it, or use fewer processes with -npp and -nps. "
            f"{_GO_ON}"
        )
    return ""


def open_records(arguments: argparse.Namespace, model: Model, sampling: Sampling) -> Records:
    """Records of the cases that are done already: none, or those of the run that is continued.

    Raises:
        InputError: That run had other settings.
    """
    predictor, stage = model.predictor, arguments.prev_stage_predictions
    settings = {
        "weights": [hash_weights(weights) for weights in predictor.list_of_parameters],
        "num_samples": sampling.num_samples,
        "rate": sampling.rate,
        "granularity": sampling.granularity,
        "step_size": arguments.step_size,
        "mirroring_of_segmentations": not arguments.disable_tta,
        "previous_stage": stage and str(stage.resolve()),
    }
    description = {
        "folder": str(model.folder),
        "trainer": predictor.trainer_name,
        "folds": list(arguments.folds),
        "checkpoint": arguments.checkpoint,
    }
    folder, cases = arguments.output / FOLDER, {}
    if arguments.continue_prediction:
        try:
            cases = read_cases(folder, settings)
        except ValueError as error:
            message = f"{error} Run again without --continue_prediction, or with another -o."
            raise InputError(message) from error
    return Records(folder, settings, description, cases)


def delete_earlier(cases: Sequence[ImageFiles], job: Job) -> None:
    """Delete what an earlier run has left of cases: a continuation would take it for this one's.

    Raises:
        InputError: A file cannot be deleted.
    """
    try:
        for case in cases:
            for path in (job.segmentation_of(case), *job.maps_of(case)):
                path.unlink(missing_ok=True)
    except OSError as error:
        message = f"{error}: what an earlier run wrote is in the way. Name another folder with -o."
        raise InputError(message) from error


def is_finished(case: ImageFiles, job: Job) -> bool:
    """Whether nothing is left to do for a case."""
    known = job.records.cases.get(case.identifier, {})
    files = [job.segmentation_of(case), *job.maps_of(case)]
    has_scores = case.truth is None or "dice" in known
    return bool(known) and has_scores and all(path.is_file() for path in files)


def segment(arguments: argparse.Namespace, predictor: nnUNetPredictor) -> None:
    """Segment as nnUNetv2_predict does."""
    stage = arguments.prev_stage_predictions
    predictor.predict_from_files(
        str(arguments.input),
        str(arguments.output),
        overwrite=not arguments.continue_prediction,
        num_processes_preprocessing=arguments.npp,
        num_processes_segmentation_export=arguments.nps,
        folder_with_segs_from_prev_stage=stage and str(stage),
    )


def map_cases(cases: Sequence[ImageFiles], job: Job, num_processes: int) -> None:
    """Write maps and records of cases that are segmented.

    Args:
        cases: Any number, also none.
        job: What to do.
        num_processes: That preprocess.

    Raises:
        EvaluationError: A segmentation cannot be read.
        WriteError: The disk is full.
    """
    if not cases:
        return
    predictor, labels = job.model.predictor, job.model.labels
    with sample_with(predictor, labels, job.sampling) as sampler:
        preprocessed = preprocess(cases, predictor, num_processes)
        for number, (case, item) in enumerate(zip(cases, preprocessed, strict=True), 1):
            print(f"\nMaps of {case.identifier} ({number} of {len(cases)}):", flush=True)
            # By the case alone: its maps do not depend on which cases there are and their order.
            with seeded(f"uncertainty/{case.identifier}", predictor.device):
                statistics = sampler.sample(item["data"])
            properties = item["data_properties"]
            maps = make_maps(statistics, properties, predictor)
            for path, volume in zip(job.maps_of(case), maps[1:], strict=True):
                write_map(volume, properties, path)
            reader = predictor.plans_manager.image_reader_writer_class
            delivered = read_segmentation(str(job.segmentation_of(case)), reader)
            segmentation = delivered.labels.astype(np.int16)
            scores = None
            if case.truth is not None:
                truth = read_ground_truth(case, predictor)
                scores = score_case(maps, segmentation, truth, labels)
            summary = summarize_maps(maps.entropy, maps.variance, segmentation > 0)
            job.records.add(case.identifier, summary, scores)


def preprocess(
    cases: Sequence[ImageFiles], predictor: nnUNetPredictor, num_processes: int
) -> Iterator[dict[str, Any]]:
    """Preprocessed cases in their order, as nnUNetv2_predict makes them."""
    stages = [str(case.previous_stage) for case in cases if case.previous_stage]
    items: Iterator[dict[str, Any]] = preprocessing_iterator_fromfiles(
        [case.images for case in cases],
        stages or None,
        None,
        predictor.plans_manager,
        predictor.dataset_json,
        predictor.configuration_manager,
        num_processes,
        predictor.device.type == "cuda",
    )
    return items


def title_of(name: str, records: Records) -> str:
    """Name of a case in the table, marked where nothing is segmented."""
    return name if records.cases[name]["num_segmented"] else f"{name} (nothing segmented)"


def describe(records: Records) -> str:
    """The most uncertain cases and, with a ground truth, what the uncertainty is worth."""
    ranked = records.rank()
    columns = ["mean_entropy", "mean_variance"]
    columns += ["dice", "ece", "ece_foreground", "aurc"] if records.has_scores else []
    mean = records.mean()
    rows = [
        [title_of(name, records), *(f"{records.cases[name][column]:.4f}" for column in columns)]
        for name in ranked[:_NUM_SHOWN]
    ]
    rows.append(
        [f"mean of {len(ranked)}", *(f"{mean.get(column, np.nan):.4f}" for column in columns)]
    )
    text = format_table(["most uncertain cases", *columns], rows)
    if not records.has_scores:
        return text
    order = records.order()
    aurc, aurc_random, aurc_best = (
        mean.get(column, np.nan) for column in ("aurc", "aurc_random", "aurc_best")
    )
    return (
        f"{text}\n\n"
        "Area under the risk-coverage curve, 0 is best:\n"
        f"  voxels by entropy, risk = wrong voxels: {aurc:.5f} "
        f"(random order {aurc_random:.5f}, best order {aurc_best:.5f})\n"
        f"  cases by mean entropy, risk = 1 - Dice: {order.aurc:.4f} "
        f"(random order {order.aurc_random:.4f}, best order {order.aurc_best:.4f})"
    )
