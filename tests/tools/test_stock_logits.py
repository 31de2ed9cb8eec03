import os
import subprocess
import sys
from pathlib import Path

from nnunetv2_mapo.tools import stock_logits

SCRIPT = Path(stock_logits.__file__)
PROGRAM = """
import runpy, sys
runpy.run_path(sys.argv[1])["hide_package"]()
for name in ("nnunetv2_mapo", "nnunetv2_mapo.rule", "nnunetv2_mapo_other"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        print("no", error.name)
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
for name in ("Own", "Other", "Rule", "Whole", "Part"):
    print(name, recursive_find_python_class(sys.argv[2], name, None) is not None)
"""


def test_the_package_and_modules_that_need_it_are_hidden_and_nothing_else(tmp_path):
    modules = {
        "own.py": "class Own: pass  # not of nnunetv2_mapo",
        "other.py": "import nnunetv2_mapo_other\nclass Other: pass",
        "rule.py": "from nnunetv2_mapo.rule import find_trainer\nclass Rule: pass",
        "whole/__init__.py": "import nnunetv2_mapo",
        "whole/module.py": "class Whole: pass",
        "part/__init__.py": "",
        "part/module.py": "class Part: pass",
        "nnunetv2_mapo_other.py": "",
    }
    for name, text in modules.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(SCRIPT), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{SCRIPT.parents[3]}{os.pathsep}{tmp_path}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "no nnunetv2_mapo",
        "no nnunetv2_mapo.rule",
        "Own True",
        "Other True",
        "Rule False",
        "Whole False",
        "Part True",
    ]


def test_no_module_beside_the_script_hides_one_of_python():
    # those that the script imports before it takes its own folder off sys.path
    beside = {path.stem for path in SCRIPT.parent.iterdir()}
    assert not beside & sys.stdlib_module_names
