"""What a training needs from its data, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_mapo.support.errors import InputError

NUM_FOLDS = 5  # of the split that nnU-Net makes where there is none
_Base: Any = object  # to mypy, everything that a trainer inherits is Any


def check_fold(fold: int | str) -> None:
    """Refuse what nnU-Net would take for the last fold."""
    if isinstance(fold, int) and fold < 0:
        message = f"fold {fold} is not valid: 0, 1, 2 … of splits_final.json, or 'all'"
        raise InputError(message)


def check_preprocessed(folder: Path, dataset: str, configuration: str) -> None:
    """Refuse a data set that is not preprocessed for a configuration."""
    if not folder.is_dir() or not any(folder.iterdir()):
        message = (
            f"{dataset} is not preprocessed for {configuration}: {folder} is missing or empty. "
            f"Run nnUNetv2_preprocess -d {dataset[7:10]} -c {configuration} with the plans of "
            "this training, or check the environment variable nnUNet_preprocessed."
        )
        raise InputError(message)


def check_enough_for_folds(identifiers: Sequence[str], splits_file: Path) -> None:
    """Refuse fewer cases than the folds that nnU-Net would make of them."""
    if not splits_file.is_file() and len(identifiers) < NUM_FOLDS:
        message = (
            f"A split into {NUM_FOLDS} folds needs {NUM_FOLDS} cases; there are "
            f"{len(identifiers)}: {list(identifiers)}. Train fold 'all', or write your own split "
            f"to {splits_file}."
        )
        raise InputError(message)


def check_split(
    training: Sequence[str], validation: Sequence[str], available: Collection[str], source: str
) -> None:
    """Refuse a split without training or validation cases, or with cases that are not there."""
    for name, identifiers in (("training", training), ("validation", validation)):
        if not identifiers:
            message = f"This fold has no {name} case. See {source}."
            raise InputError(message)
        if missing := sorted(set(identifiers) - set(available)):
            message = (
                f"{len(missing)} {name} cases of this fold are not among the preprocessed cases: "
                f"{missing[:5]}. Correct {source}, or preprocess the data set again."
            )
            raise InputError(message)


def check_foreground(dataset: Any) -> None:
    """Refuse training cases that are all background.

    Args:
        dataset: nnU-Net's; its properties list some voxels of each foreground class or region.
    """
    for identifier in dataset.identifiers:
        *_, properties = dataset.load_case(identifier)
        for label, places in properties["class_locations"].items():
            # With an ignore label there is one more list, of all that is annotated.
            is_foreground = not (isinstance(label, tuple) and -1 in label)
            if is_foreground and len(places):
                return
    message = (
        f"None of the {len(dataset.identifiers)} training cases has a voxel of any foreground "
        "class: there is nothing to learn. Check the labels in labelsTr against dataset.json and "
        "preprocess again."
    )
    raise InputError(message)


class Checked(_Base):  # type: ignore[misc]  # nnU-Net ships no types
    """Part of `MAPOTrainer` that looks at the data before a training starts."""

    @staticmethod
    def _check_environment() -> None:
        nnUNet_preprocessed.require()
        nnUNet_results.require()

    def _check_data(self) -> None:
        check_fold(self.fold)
        check_preprocessed(
            Path(self.preprocessed_dataset_folder),
            self.plans_manager.dataset_name,
            self.configuration_name,
        )
        training, _ = super().get_tr_and_val_datasets()
        check_foreground(training)

    def do_split(self) -> tuple[Any, Any]:
        """The base trainer's split, checked."""
        folder = self.preprocessed_dataset_folder
        available = infer_dataset_class(folder).get_identifiers(folder)
        splits_file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold != "all":
            check_enough_for_folds(available, splits_file)
        training, validation = super().do_split()
        check_split(training, validation, available, str(splits_file))
        return training, validation
