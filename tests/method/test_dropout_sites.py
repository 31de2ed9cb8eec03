from __future__ import annotations

import pytest
from torch import nn

import nnunetv2_mapo
from nnunetv2_mapo.method.dropout_sites import find_dropout_sites

NUM_HEADS = 3


def network() -> nn.Module:
    shared = nn.Conv2d(4, 4, 3)
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4)),
            "attention": nn.MultiheadAttention(4, 2),
            "decoder": nn.ModuleList([shared, nn.ConvTranspose2d(4, 4, 2, 2)]),
            "alias": shared,
            "head": nn.Conv2d(4, NUM_HEADS, 1),
        }
    )


def reasons(**patterns) -> dict[str, str]:
    return {
        layer.name: layer.reason if layer.is_site else f"no: {layer.reason}"
        for layer in find_dropout_sites(network(), NUM_HEADS, **patterns).layers
    }


def test_every_layer_has_a_reason():
    assert reasons() == {
        "encoder.0": "convolution",
        "attention": "attention",
        "attention.out_proj": "no: inside attention attention",
        "decoder.0": "convolution",
        "decoder.1": "transposed convolution",
        "head": "no: output head: 1x1 convolution to 3 heads",
    }


def test_the_text_of_sites_is_a_table():
    sites = find_dropout_sites(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 3)), NUM_HEADS)
    assert str(sites).splitlines() == [
        "layer    type  dropout                                reason",
        "-----  ------  -------  ------------------------------------",
        "0      Conv2d      yes                           convolution",
        "1      Linear       no  output head: linear layer to 3 heads",
    ]


def test_sites_are_a_mapping_of_names_to_modules():
    net = network()
    sites = find_dropout_sites(net, NUM_HEADS)
    assert list(sites) == ["encoder.0", "attention", "decoder.0", "decoder.1"]
    assert len(sites) == 4
    assert sites["decoder.0"] is net["alias"]
    with pytest.raises(KeyError):
        sites["head"]
    assert not find_dropout_sites(nn.ReLU(), NUM_HEADS)


def test_a_pattern_excludes_a_module_with_all_its_parts():
    expected = {**reasons(), "decoder.0": "no: excluded by 'deco*r'"}
    expected["decoder.1"] = "no: excluded by 'deco*r'"
    assert reasons(exclude=("deco*r",)) == expected


def test_a_module_can_be_named_by_any_of_its_names():
    assert reasons(exclude=("alias",)) == {**reasons(), "decoder.0": "no: excluded by 'alias'"}


def test_excluding_nnu_net_s_decoder_leaves_the_encoder_that_is_a_part_of_it(make_network):
    net = make_network(deep_supervision=True)
    assert net.decoder.encoder is net.encoder
    encoder = [f"encoder.stages.{stage}.0.convs.0.conv" for stage in range(3)]
    for pattern in ("decoder", "decoder.*"):
        assert list(find_dropout_sites(net, NUM_HEADS, exclude=(pattern,))) == encoder
    alias = "decoder.encoder.stages.*"
    sites = find_dropout_sites(net, NUM_HEADS, exclude=(alias,))
    assert not set(encoder) & set(sites)
    assert len(sites) == 4  # two convolutions, two transposed ones


def test_a_pattern_includes_any_module_and_none_of_its_parts():
    included = reasons(include=("encoder", "attention.*", "head"))
    assert included == {
        "encoder": "included by 'encoder'",
        **reasons(),
        "attention.out_proj": "included by 'attention.*'",
        "head": "included by 'head'",
    }


def test_excluding_is_stronger_than_including():
    assert reasons(include=("*.0",), exclude=("encoder",)) == {
        **reasons(),
        "encoder.0": "no: excluded by 'encoder'",
        "decoder.0": "included by '*.0'",
    }


@pytest.mark.parametrize("setting", ["include", "exclude"])
def test_a_pattern_that_fits_no_module_is_refused_with_close_names(setting):
    with pytest.raises(ValueError, match=r"'encoder\.O' fits no module .* mean .*'encoder\.0'"):
        find_dropout_sites(network(), NUM_HEADS, **{setting: ("encoder.O",)})
    with pytest.raises(ValueError, match=r"'xyz' fits no module of the network\. print"):
        find_dropout_sites(network(), NUM_HEADS, **{setting: ("xyz",)})


def test_the_case_of_names_matters():
    with pytest.raises(ValueError, match="'Encoder' fits no module"):
        find_dropout_sites(network(), NUM_HEADS, exclude=("Encoder",))


def test_where_no_layer_works_voxel_by_voxel_the_last_fitting_one_is_the_head():
    layers = [nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 5, 3)]
    sites = find_dropout_sites(nn.Sequential(*layers), NUM_HEADS)
    assert list(sites) == ["0", "2"]
    assert sites.layers[1].reason == "output head: last convolution to 3 heads"


def test_sites_can_be_found_with_what_the_package_exports():
    assert nnunetv2_mapo.find_dropout_sites is find_dropout_sites
