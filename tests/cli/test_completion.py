import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_mapo.cli import SHELLS, build_parser, find_paths, main

COMMAND = "nnUNetv2_mapo"
needs_bash = pytest.mark.skipif(
    shutil.which("bash") is None or sys.platform == "win32", reason="no bash"
)


@pytest.fixture
def script(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", "bash"])
    assert stop.value.code == 0
    path = tmp_path / "completion.sh"
    path.write_text(capsys.readouterr().out)
    return path


def complete(script, *words):
    """What bash offers for the last of the words after the command."""
    quoted = " ".join(f"'{word}'" for word in (COMMAND, *words))
    code = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; "
        f"_shtab_{COMMAND} {COMMAND} '{words[-1]}' ''; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, check=False, cwd=script.parent
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@needs_bash
def test_bash_takes_the_script(script):
    subprocess.run(["bash", "-n", script], check=True)


@needs_bash
def test_sub_commands_options_and_choices_are_completed(script):
    assert complete(script, "de") == {"demo"}
    assert {"demo", "doctor", "preview", "report"} <= complete(script, "")
    assert complete(script, "evaluate", "--to") == {"--tolerance"}
    assert complete(script, "preview", "-device", "c") == {"cpu", "cuda"}


@needs_bash
def test_files_and_folders_are_completed_where_an_argument_is_one(script):
    (script.parent / "metrics").mkdir()
    (script.parent / "metrics.txt").touch()
    assert complete(script, "evaluate", "-o", "met") == {"metrics"}
    assert complete(script, "evaluate", "-djfile", "met") == {"metrics", "metrics.txt"}


def test_paths_are_found_in_every_sub_command():
    found = {action.dest for action in find_paths(build_parser())}
    assert {"output", "predictions", "djfile", "folders", "model"} <= found
    parser = argparse.ArgumentParser()
    parser.add_argument("place", type=Path)
    parser.add_argument("name")
    assert [action.dest for action in find_paths(parser)] == ["place"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell, capsys):
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    # a sub-command, and an option of one
    assert "doctor" in script
    assert "tolerance" in script


def test_an_unknown_shell_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", "cmd"])
    assert stop.value.code == 2
    assert "bash" in capsys.readouterr().err
