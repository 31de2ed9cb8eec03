import os
import subprocess
import sys
from pathlib import Path

from nnunetv2_mapo.tools.export import stock_logits

SCRIPT = Path(stock_logits.__file__)
PROGRAM = """
import pkgutil, runpy, sys
hide = runpy.run_path(sys.argv[1])["hide_package"]
sys.path.insert(0, sys.argv[2])
hide()
for name in ("nnunetv2_mapo", "nnunetv2_mapo.rule", "check_input", "nnunetv2_mapo_other"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        print("no", error.name)
print(*(each.name for each in pkgutil.iter_modules([sys.argv[3]])))
"""


def test_the_package_and_modules_that_need_it_are_hidden_and_nothing_else(tmp_path):
    modules = {
        "own.py": "from nnunetv2.training import x  # not of nnunetv2_mapo",
        "other.py": "import nnunetv2_mapo_other",
        "rule.py": "from nnunetv2_mapo.rule import find_trainer as __getattr__",
        "late.py": "def f():\n    import nnunetv2_mapo",
        "whole/__init__.py": "import nnunetv2_mapo",
        "part/__init__.py": "",
        "nnunetv2_mapo_other.py": "",
    }
    for name, text in modules.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(SCRIPT), str(SCRIPT.parent), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{SCRIPT.parents[3]}{os.pathsep}{tmp_path}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "no nnunetv2_mapo",
        "no nnunetv2_mapo",  # Python looks for the parent first
        "no check_input",  # the script's own folder is not searched
        "nnunetv2_mapo_other other own part",
    ]


def test_no_module_beside_the_script_hides_one_of_python():
    # those that the script imports before it takes its own folder off sys.path
    beside = {path.stem for path in SCRIPT.parent.iterdir()}
    assert not beside & sys.stdlib_module_names
