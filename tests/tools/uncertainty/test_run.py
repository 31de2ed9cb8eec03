from __future__ import annotations

from math import nan

from nnunetv2_mapo.tools.uncertainty.run import delete_earlier, describe, print_notes
from nnunetv2_mapo.tools.uncertainty.scores import Scores, rank


def test_the_most_uncertain_cases_and_the_mean_of_all_are_printed():
    scores = {f"case_{n}": Scores(0.1 * n, 0.25, 1000 + n) for n in range(1, 8)}
    lines = describe(rank(scores)).splitlines()
    names = [line.split()[0] for line in lines[2:]]
    assert names == ["case_7", "case_6", "case_5", "case_4", "case_3", "mean"]
    assert lines[2].split() == ["case_7", "0.7000", "0.2500", "1007"]
    assert lines[-1].split() == ["mean", "of", "7", "0.4000", "0.2500", "1004"]


def test_with_a_ground_truth_the_worth_of_the_order_is_printed():
    scores = {"a": Scores(0.1, 0.2, 9, 0.9), "b": Scores(0.2, 0.2, 9, 0.5)}
    scores["ignored"] = Scores(0.3, 0.2, 9, nan)
    # Risks 0.1, then 0.5; of what has entered: 0.1, 0.3.
    assert "risk = 1 - Dice: 0.2000 (random order: 0.3000)" in describe(rank(scores))


def test_only_what_an_earlier_run_has_left_is_deleted(tmp_path):
    folder = tmp_path / "uncertainty"
    folder.mkdir()
    gone = [folder / "old_entropy.nii.gz", folder / "old_variance.nii.gz"]
    gone += [folder / "uncertainty.csv", folder / "uncertainty.json", tmp_path / "case_0.nii.gz"]
    kept = [folder / "notes.txt", tmp_path / "case_9.nii.gz", tmp_path / "plans.json"]
    for path in gone[1:] + kept:
        path.touch()
    delete_earlier(folder, [tmp_path / "case_0.nii.gz"])
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


def test_a_rate_above_those_of_the_training_is_named(capsys):
    mapo = {"rates_2d": [0, 0.05], "rates_3d": [0, 0.3]}
    print_notes(0.1, mapo, 2)
    assert "dropout rates up to 0.05, not 0.1" in capsys.readouterr().out
    print_notes(0.1, mapo, 3)
    assert not capsys.readouterr().out


def test_a_model_without_mapo_is_named_and_so_is_rate_0(capsys):
    print_notes(0.1, None, 3)
    assert "nothing in the checkpoint says that MAPO trained" in capsys.readouterr().out
    print_notes(0, None, 3)
    assert "rate 0 is the plain network" in capsys.readouterr().out
