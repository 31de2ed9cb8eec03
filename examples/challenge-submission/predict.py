"""Segment every case of a folder with the nnU-Net model in `nnUNet_results`; nothing is downloaded.

Environment: `MODEL=DATASET/TRAINER__PLANS__CONFIGURATION` chooses one of several models,
`DISABLE_TTA=1` leaves out the mirrored passes (up to 4 times faster in 2D, 8 times in 3D).
"""

import argparse
import contextlib
import os
import re
import sys
from pathlib import Path

import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_results

CHECKPOINT = "checkpoint_final.pth"


def find_model(results: Path, wanted: str) -> Path:
    """Folder of the model `DATASET/TRAINER__PLANS__CONFIGURATION`; of the only one if `""`."""
    plans = sorted(results.glob("*/*__*__*/plans.json"))
    models = {file.parent.relative_to(results).as_posix(): file.parent for file in plans}
    if wanted in models:
        return models[wanted]
    if not wanted and len(models) == 1:
        return next(iter(models.values()))
    found = ", ".join(models) or "none, unpack your model.zip there"
    sys.exit(f"MODEL={wanted or '(not set)'} must be one of the models in {results}: {found}")


def load_predictor(model: Path, disable_tta: str) -> nnUNetPredictor:
    """Predictor with all folds of the model, on the GPU if there is one."""
    if disable_tta not in ("", "0", "1"):
        sys.exit(f"DISABLE_TTA={disable_tta} must be 0 or 1")
    folds = [path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{CHECKPOINT}")]
    if not folds:
        sys.exit(f"{model} has no fold_X/{CHECKPOINT}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = nnUNetPredictor(device=device, use_mirroring=disable_tta != "1", allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), tuple(sorted(folds)), CHECKPOINT)
    if predictor.configuration_manager.previous_stage_name is not None:
        sys.exit(f"{model} is the second stage of a cascade and needs the first: not supported")
    print(f"{model.name}, folds {', '.join(sorted(folds))}, on {device}")
    return predictor


def find_cases(folders: list[Path], endings: list[str], num_channels: int) -> dict[str, list[Path]]:
    """Image files of each case, in the order of the channels, by the segmentation's file name.

    Files of one folder are nnU-Net's `CASE_0000.mha` … if all are named so, else each is a case.
    Several folders are the channels, with the same file names in each, or with one file in each.
    """
    images = [
        sorted(
            file
            for file in folder.glob("*")
            if file.name.lower().endswith(tuple(endings)) and not file.name.startswith(".")
        )
        for folder in folders
    ]
    for folder, files in zip(folders, images, strict=True):
        if not files:
            there = [str(file) for file in sorted(folder.rglob("*")) if file.is_file()][:9]
            found = ", ".join(there) or "nothing"
            sys.exit(f"{folder} has no image ({', '.join(endings)}). In and below it: {found}")
    if len(folders) > 1:
        if all(len(files) == 1 for files in images):
            return {images[0][0].name: [files[0] for files in images]}
        names = sorted({file.name for files in images for file in files})
        return {name: [folder / name for folder in folders] for name in names}
    pattern = re.compile(rf"(.+)_(\d{{4}})({'|'.join(map(re.escape, endings))})", re.IGNORECASE)
    matches = [match for file in images[0] if (match := pattern.fullmatch(file.name))]
    if len(matches) < len(images[0]) or any(int(match[2]) >= num_channels for match in matches):
        return {file.name: [file] for file in images[0]}
    cases: dict[str, list[Path]] = {}
    for file, match in zip(images[0], matches, strict=True):
        cases.setdefault(match[1] + match[3], []).append(file)
    return cases


def channel_names(predictor: nnUNetPredictor) -> list[str]:
    """Names of the image channels; old data sets call them modalities."""
    description = predictor.dataset_json
    return list(description.get("modality", description.get("channel_names")).values())


def segment(predictor: nnUNetPredictor, files: list[Path], output: Path) -> None:
    """Segment one case and write it with the geometry of its image."""
    reader = predictor.plans_manager.image_reader_writer_class()
    image, properties = reader.read_images([str(file) for file in files])
    channels = channel_names(predictor)
    if len(image) != len(channels):
        names = ", ".join(f"CASE_{index:04d} ({name})" for index, name in enumerate(channels))
        message = f"{len(image)} channels in {[f.name for f in files]}, the model needs {names}"
        raise ValueError(message)
    reader.write_seg(predictor.predict_single_npy_array(image, properties), str(output), properties)


def succeeds(predictor: nnUNetPredictor, files: list[Path], output: Path) -> bool:
    """Segment one case; print what went wrong, so that one bad case does not lose the others."""
    try:
        segment(predictor, files, output)
    except Exception as error:
        print(f"FAILED {output.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


def main() -> int:
    """Segment all cases; 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, nargs="+", default=[Path("/input")])
    parser.add_argument("--output", type=Path, default=Path("/output"))
    arguments = parser.parse_args()
    with contextlib.suppress(PermissionError):
        arguments.output.mkdir(parents=True, exist_ok=True)
    if not os.access(arguments.output, os.W_OK):
        sys.exit(f"user {os.getuid()} may not write to {arguments.output}: chmod 777 it")
    model = find_model(Path(nnUNet_results), os.environ.get("MODEL", ""))
    predictor = load_predictor(model, os.environ.get("DISABLE_TTA", ""))
    reader = predictor.plans_manager.image_reader_writer_class
    endings = list(reader.supported_file_endings)
    if issubclass(reader, SimpleITKIO):
        endings.append(".nii")  # it reads them, but does not say so
    cases = find_cases(arguments.input, endings, len(channel_names(predictor)))
    done = [succeeds(predictor, files, arguments.output / name) for name, files in cases.items()]
    print(f"{sum(done)} of {len(done)} cases segmented")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
