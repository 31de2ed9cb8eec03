"""The page of `nnUNetv2_mapo compare` in a browser."""

from pathlib import Path

import pytest
from browser import SIZES, find_faults, needs_chromium, opened
from metric_files import HIGHER, RISING, write_metrics

from nnunetv2_mapo.cli import main
from nnunetv2_mapo.tools.metrics import METRICS


@needs_chromium
@pytest.mark.parametrize("size", SIZES)
def test_the_page_of_three_methods_fits_phone_and_desktop(tmp_path: Path, size: str) -> None:
    folders = {"nnUNetTrainer": RISING, "nnUNetTrainer_MAPO": HIGHER}
    folders["nnUNetTrainer_MAPO_NoPreference"] = RISING
    for name, dice in folders.items():
        write_metrics(tmp_path / name, dice)
    names = [str(tmp_path / name) for name in folders]
    assert main(["compare", *names, "-o", str(tmp_path)]) == 0
    with opened(tmp_path / "comparison.html", size) as page:
        assert find_faults(page) == []
        assert page.locator("svg").count() == 2 * len(METRICS)
        for summary in page.locator("details:not([open]) > summary").element_handles():
            summary.click()
        assert find_faults(page) == []
        assert page.locator("details").last.locator("tbody tr").count() == 8
