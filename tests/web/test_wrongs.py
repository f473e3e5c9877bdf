from pathlib import Path

import pytest

from runner.errors import Location, ManifestError, ManifestErrors, SettingError
from runner.web.wrongs import worded, wrong_fields

PLACE = Location(Path("manifest.yaml"), 3, 1)


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (ManifestError("steps: 0 is not from 1 to 500", PLACE), {"steps": "0 is not from 1 to 500"}),
        (ManifestError("seeds: 'x' is not", PLACE), {"seed": "'x' is not"}),
        (ManifestError("loras.ink: 200 is not", PLACE), {"lora/0": "200 is not"}),
        (SettingError("unet_bs=0: should be auto"), {"unet_bs": "unet_bs=0: should be auto"}),
        (SettingError("model.path=/x: there is nothing at /x"), {"model": "model.path=/x: there is nothing at /x"}),
        (SettingError("columns: both axes are 'scale'"), {"columns/values": "both axes are 'scale'"}),
        (SettingError("there is no picture yet: drop one"), {}),
    ],
)
def test_an_error_is_about_a_field(error, fields):
    assert wrong_fields(error) == fields


def test_a_value_of_an_axis_is_wrong_in_its_axis():
    assert wrong_fields(ManifestError("scale: 'x' is no number", PLACE), {"scale": "rows/values"}) == {
        "rows/values": "'x' is no number"
    }


def test_several_errors_are_about_several_fields():
    errors = ManifestErrors([ManifestError("steps: 0", PLACE), ManifestError("width: 1", PLACE)])
    assert wrong_fields(errors) == {"steps": "0", "width": "1"}


def test_a_prompt_that_is_too_long_names_the_pages_own_field():
    error = ManifestError(
        "the prompt 'x' has more than 75 tokens. Shorten it, or set long_prompts: chunk or truncate", PLACE
    )
    assert worded(error).endswith("or choose 'chunk' or 'truncate' at 'A prompt that is too long'")
    assert wrong_fields(error).keys() == {"prompt", "long_prompts"}
