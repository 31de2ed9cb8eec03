"""Stacks of unlabelled images from candidates and answers; expected values by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_choices import CANDIDATES, say

from nnunetv2_mapo.method.labels import Labels
from nnunetv2_mapo.method.store import Round
from nnunetv2_mapo.method.unlabelled import NUM_PLACES, label_loss, settle

CLASSES, CPU = Labels(3), torch.device("cpu")
MAPS = CANDIDATES[:, None].astype(np.int8)  # (K, 1, 1, 10): three axes, as nnU-Net has them


def make_dataset(candidates=MAPS):
    cases = {f"image_{number}": candidates for number in range(2)}
    return SimpleNamespace(
        identifiers=[*reversed(cases)],  # as folders are listed: in any order
        load_case=lambda name: (np.zeros((1, 1, 1, 10)), cases[name], None, {"spacing": (1, 1, 1)}),
    )


def make(tmp_path, use, *answers, labels=CLASSES, dataset=None):
    stacks = Round(tmp_path, {"answers": len(answers)})
    return settle(dataset or make_dataset(), answers, use, stacks, labels, (1, 10))


ABOUT_0 = say(1, 2, image="image_0")


def test_a_pair_is_stored_behind_the_plain_prediction(tmp_path):
    images = make(tmp_path, "preferences", ABOUT_0)
    assert len(images) == 1
    assert images.has_pairs
    plain, chosen, rejected, weight = images.stacks.open_stack("image_0")[:][:, 0, 0]
    assert plain.tolist() == [0] * 10
    assert chosen.tolist() == [1, 1, 1, 1, 0, 0, 2, 2, 2, 2]
    assert rejected.tolist() == [0, 0, 0, 0, 0, 0, 2, 2, 2, 2]
    assert weight.tolist() == [100] * 4 + [0] * 6


def test_what_was_chosen_is_a_label(tmp_path):
    images = make(tmp_path, "chosen", ABOUT_0)
    assert not images.has_pairs
    assert list(images.places) == ["image_0"]
    assert images.stacks.open_stack("image_0")[:].tolist() == [[[[1, 1, 1, 1, 0, 0, 2, 2, 2, 2]]]]


def test_the_plain_prediction_of_every_image_is_a_pseudo_label(tmp_path):
    images = make(tmp_path, "pseudo-label", ABOUT_0)
    assert list(images.places) == ["image_0", "image_1"]
    assert not images.stacks.open_stack("image_1")[:].any()
    assert images.places["image_1"].shape == (0, 4)


def test_regions_are_bits(tmp_path):
    labels = Labels(2, regions=((1, 2), (2,)))
    images = make(tmp_path, "preferences", ABOUT_0, labels=labels)
    _, chosen, rejected, _ = images.stacks.open_stack("image_0")[:][:, 0, 0]
    assert chosen.tolist() == [1, 1, 1, 1, 0, 0, 3, 3, 3, 3]
    assert rejected.tolist() == [0, 0, 0, 0, 0, 0, 3, 3, 3, 3]


def test_patches_are_centred_on_what_is_learnt(tmp_path):
    images = make(tmp_path, "preferences", ABOUT_0)
    assert sorted(images.places["image_0"].tolist()) == [[0, 0, 0, x] for x in range(4)]
    chosen = make(tmp_path / "chosen", "chosen", ABOUT_0)
    assert {x for *_, x in chosen.places["image_0"].tolist()} == {0, 1, 2, 3, 6, 7, 8, 9}


def test_of_many_voxels_some_are_enough(tmp_path):
    many = np.repeat(MAPS, 500, axis=-1)
    dataset = make_dataset(many)
    places = make(tmp_path, "preferences", ABOUT_0, dataset=dataset).places["image_0"]
    assert len(np.unique(places, axis=0)) == NUM_PLACES
    again = make(tmp_path / "again", "preferences", ABOUT_0, dataset=dataset).places["image_0"]
    np.testing.assert_array_equal(places, again)


def test_the_loader_finds_them_whichever_class_it_looks_for(tmp_path):
    images = make(tmp_path, "preferences", ABOUT_0)
    own = SimpleNamespace(identifiers=["case"], own="attribute")
    training = images.as_training_cases(own, [0, 1, 2])
    assert training.identifiers == ["image_0"]
    assert training.own == "attribute"
    data, stack, previous, properties = training.load_case("image_0")
    assert data.shape == (1, 1, 1, 10)
    assert stack.shape == (4, 1, 1, 10)
    assert previous is None
    assert properties["spacing"] == (1, 1, 1)
    locations = properties["class_locations"]
    assert all(locations[key] is images.places["image_0"] for key in (-1, (-1, 0, 1, 2)))


def test_stacks_that_are_there_stay_and_others_are_made_anew(tmp_path):
    make(tmp_path, "preferences", ABOUT_0)
    written = (tmp_path / "image_0.b2nd").stat().st_mtime_ns
    make(tmp_path, "preferences", ABOUT_0)
    assert (tmp_path / "image_0.b2nd").stat().st_mtime_ns == written
    other = say(0, 1, image="image_1")
    images = make(tmp_path, "preferences", ABOUT_0, other)
    assert (tmp_path / "image_0.b2nd").stat().st_mtime_ns > written
    assert len(images) == 2


@pytest.mark.parametrize("use", ["preferences", "chosen"])
def test_images_without_a_preference_are_left_out(tmp_path, use):
    assert len(make(tmp_path, use, say(verdict="equal", image="image_0"))) == 0


def test_labels_are_learnt_with_the_loss_of_the_base_trainer():
    network = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(2.0)
    batch = {"data": torch.tensor([[3.0]]), "target": torch.tensor([[1.0]])}
    loss = label_loss(network, batch, torch.nn.L1Loss(), CPU)
    assert loss.item() == 5.0  # |2 * 3 - 1|
    loss.backward()
    assert network.weight.grad.item() == 3.0
    batch["target"] = [torch.tensor([[1.0]]), torch.tensor([[4.0]])]
    loss = label_loss(network, batch, lambda output, target: output - target[1], CPU)
    assert loss.item() == 2.0
