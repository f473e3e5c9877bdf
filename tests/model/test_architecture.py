"""Families are data: every tensor has one fragment, and folders and single files find their family."""

import pytest
import single_file
import tiny
from safetensors.torch import save_file

from runner.model.architecture import V1, V2, XL
from runner.model.files import find_model


@pytest.mark.parametrize(
    ("family", "fragments", "halves"),
    [
        (V1, ("text_encoder", "unet_encode", "unet_decode", "vae"), ("unet_encode", "unet_decode")),
        (V2, ("text_encoder", "unet_encode", "unet_decode", "vae"), ("unet_encode", "unet_decode")),
        (XL, ("text_encoder", "text_encoder_2", "unet_in", "unet_out", "vae"), ("unet_in", "unet_out")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_fragments_are_those_of_the_record(family, fragments, halves):
    assert family.fragments == fragments
    assert family.fragment_of("unet", "up_blocks.0.resnets.0.conv1.weight") == halves[1]
    assert family.fragment_of("unet", "mid_block.resnets.0.conv1.weight") == halves[0]
    assert family.fragment_of("vae", "decoder.up_blocks.0.resnets.0.conv1.weight") == "vae"


def test_every_fragment_has_tensors(tmp_path):
    model = find_model(str(tiny.save_model(tmp_path / "tiny")))
    found = {model.family.fragment_of(part, name) for part, table in model.tensors.items() for name in table}
    assert found == set(model.family.fragments)


@pytest.mark.parametrize(("version", "family"), [(1, V1), (2, V2)])
def test_a_single_file_and_a_folder_are_of_one_family(tmp_path, version, family):
    parts = single_file.small(version)
    save_file(single_file.to_compvis(parts), tmp_path / "model.safetensors")
    folder = single_file.save_folder(tmp_path / "folder", parts)
    for path in (tmp_path / "model.safetensors", folder):
        assert find_model(str(path)).family is family
