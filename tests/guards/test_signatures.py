"""What nnU-Net calls by its signature; expected: what nnU-Net itself does with the trainer."""

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_mapo.guards.signatures import check_signatures
from nnunetv2_mapo.support.errors import InputError
from nnunetv2_mapo.trainer import MAPOTrainer

CPU = torch.device("cpu")
INITS = {
    "five": "plans, configuration, fold, dataset_json, device=CPU",
    "annotated": "plans: dict, configuration: str, fold: int, dataset_json: dict, device=CPU",
    "another_order": "plans, configuration, dataset_json, fold, device=CPU",
}
WRONG_INITS = {
    "plans, configuration, fold, dataset_json, unpack_dataset=True, device=CPU":
    "plans, configuration, fold, dataset_json, unpack_dataset, device",  # of earlier nnU-Net
    "*args, **kwargs": "args, kwargs",
    "plans, configuration, fold, dataset_json, device=CPU, **kwargs":
    "plans, configuration, fold, dataset_json, device, kwargs",
    "plans, config, fold, dataset_json, device=CPU": "plans, config, fold, dataset_json, device",
    "plans, configuration, fold, dataset_json": "plans, configuration, fold, dataset_json",
}  # fmt: skip
OLD = "architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, inputs, outputs"
BUILDS = {
    "new": "plans_manager, configuration_manager, inputs, outputs, enable_deep_supervision=True",
    "new_names": "plans_manager, c, i, o, enable_deep_supervision",
    "old": f"{OLD}, enable_deep_supervision=True",
    "anything": "*args, **kwargs",
}
WRONG_BUILDS = {
    "renamed": "plans, config, inputs, outputs, deep=True",
    "no_deep_supervision": "plans_manager, configuration_manager, inputs, outputs",
    "keywords": "plans_manager, **kwargs",
    "the_first": "plans_manager, dataset_json, configuration_manager, inputs, deep=True",
    "another_last_name": "plans_manager, configuration_manager, inputs, outputs, deep=True",
    "seven": f"{OLD}, patch_size, enable_deep_supervision",
}


def make(text: str, *bases: type) -> type:
    """Trainer with MAPO of a trainer with a body."""
    scope = {"CPU": CPU, "torch": torch}
    exec(f"def make(Base):\n  class Mine(Base):\n{text}\n  return Mine", scope)
    return type("Mine_MAPO", (MAPOTrainer, scope["make"](*bases or (nnUNetTrainer,))), {})


def with_init(parameters: str) -> type:
    return make(f"    def __init__(self, {parameters}): pass")


def with_build(parameters: str, kind: str = "@staticmethod", first: str = "") -> type:
    return make(f"    {kind}\n    def build_network_architecture({first}{parameters}): pass")


@pytest.mark.parametrize("parameters", INITS.values(), ids=INITS)
def test_an_init_with_nnunets_names_is_fine(parameters):
    check_signatures(with_init(parameters))


@pytest.mark.parametrize(("parameters", "names"), WRONG_INITS.items())
def test_an_init_with_other_names_is_refused_with_the_lines_to_paste(parameters, names):
    with pytest.raises(InputError) as error:
        check_signatures(with_init(parameters))
    message = str(error.value)
    assert message.startswith(f"Mine.__init__ has the parameters {names}, but nnU-Net makes")
    check_signatures(make(message.split("Paste:\n\n")[1]))


@pytest.mark.parametrize("parameters", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("kind", [("@staticmethod", ""), ("@classmethod", "cls, ")])
def test_a_network_may_be_built_by_the_new_and_by_the_old_signature(parameters, kind):
    check_signatures(with_build(parameters, *kind))


@pytest.mark.parametrize("parameters", WRONG_BUILDS.values(), ids=WRONG_BUILDS)
def test_another_signature_of_the_network_is_refused_with_the_lines_to_paste(parameters):
    with pytest.raises(InputError) as error:
        check_signatures(with_build(parameters))
    message = str(error.value)
    assert message.startswith("Mine.build_network_architecture has the parameters ")
    pasted = message.split("Paste:\n\n")[1]
    check_signatures(make(f"{pasted}\n        pass"))


def test_a_network_that_only_a_trainer_could_build_is_refused():
    with pytest.raises(InputError, match="to predict, without self"):
        check_signatures(with_build(BUILDS["new"], "", "self, "))


def test_an_initialize_that_builds_the_network_itself_calls_it_as_it_likes():
    trainer = make(
        "    def initialize(self): self.build_network_architecture(1, 2)\n"
        "    def build_network_architecture(self, one, two): pass"
    )
    check_signatures(trainer)


def test_an_init_that_does_all_of_nnunets_work_has_the_parameters_it_likes():
    check_signatures(make("    def __init__(self, plans, more=1): self.my_init_kwargs = {}"))


def test_it_is_refused_before_anything_is_made(monkeypatch, tmp_path):
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    trainer = with_init("plans, config, fold, dataset_json, device")
    with pytest.raises(InputError, match="plans, config, fold"):
        trainer({}, "2d", 0, {}, device=CPU)
    assert not list(tmp_path.iterdir())
