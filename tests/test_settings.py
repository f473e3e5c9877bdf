import dataclasses

import pytest
from omegaconf import OmegaConf

from runner import settings
from runner.errors import SettingError
from runner.manifest.rules import ITEM_KEYS


def test_the_defaults_are_those_of_the_documentation():
    made = settings.compose([])
    assert (made.device, made.precision, made.engine) == ("auto", "autocast", "local")
    assert (made.turbo, made.unet_bs, made.memory, made.out, made.limit, made.shuffle) == (None,) * 6
    assert (made.model.path, made.model.prediction) == ("builtin:emoji", "auto")
    assert settings.given_defaults(made) == {}


def test_values_of_compile():
    values = {text: settings.compose([f"compile={text}"]).compile for text in ("auto", "true", "false", "openvino")}
    assert values == {"auto": None, "true": True, "false": False, "openvino": "openvino"}
    assert settings.compose([]).compile is None


def test_overrides():
    made = settings.compose(
        [
            "turbo=false",
            "unet_bs=4",
            "memory=2GiB",
            "model.path=/some/folder",
            "defaults.steps=4",
            "limit=3",
            "shuffle=0",
        ]
    )
    assert (made.turbo, made.unet_bs, made.memory, made.limit, made.shuffle) == (False, 4, 2 << 30, 3, 0)
    assert made.model.path == "/some/folder"
    assert settings.given_defaults(made) == {"steps": 4}
    assert settings.compose(["model=sd15"]).model.path == "weights/stable-diffusion-v1-5"


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("1.2GB", 1_200_000_000), ("1200MB", 1_200_000_000), ("512mib", 512 << 20), ("4096", 4096)],
)
def test_sizes(text, size):
    assert settings.parse_size(text) == size


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("uent_bs=4", ["'uent_bs' is not a setting", "did you mean 'unet_bs'"]),
        ("defaults.stesp=4", ["'defaults.stesp'", "did you mean 'defaults.steps'"]),
        ("model.pth=x", ["did you mean 'model.path'"]),
        ("+speed=9", ["can be changed, but not added"]),
        ("++speed=9", ["can be changed, but not added"]),
        ("~device", ["can be changed, but not added"]),
        ("model.prediction=v", ["model.prediction=v", "epsilon"]),
        ("model=emojy", ["no such model", "did you mean 'emoji'"]),
        ("device=gpu", ["device=gpu", "cuda:N"]),
        ("precision=half", ["precision=half", "autocast, full"]),
        ("turbo=1", ["turbo=1", "true, false or auto"]),
        ("turbo=yes", ["turbo=yes", "true, false or auto"]),
        ("compile=1", ["compile=1", "true, openvino, false or auto"]),
        ("compile=inductor", ["compile=inductor", "true, openvino, false or auto"]),
        ("unet_bs=0", ["unet_bs=0", "from 1"]),
        ("unet_bs=2.5", ["unet_bs=2.5", "from 1"]),
        ("unet_bs=true", ["unet_bs=True", "from 1"]),
        ("memory=lots", ["memory=lots", "2GiB"]),
        ("memory=0", ["memory=0", "2GiB"]),
        ("memory=2PB", ["memory=2PB", "2GiB"]),
        ("limit=0", ["limit=0", "at least 1"]),
        ("n_rows=0", ["n_rows=0", "at least 1"]),
        ("sample=0", ["sample=0", "at least 1"]),
        ("shard=0/4", ["shard=0/4", "from 1/16 to 16/16"]),
        ("shard=5/4", ["shard=5/4"]),
        ("shard=/16", ["shard=/16", "a part and their number"]),
        ("shard=3", ["shard=3"]),
        ("shard_size=much", ["shard_size=much", "should be a size such as"]),
        ("to=tar", ["to=tar", "webdataset"]),
        ("limit=abc", ["limit=abc: should be a whole number"]),
        ("limit=", ["limit=: should be a whole number"]),
        ("limit=1.5", ["limit=1.5: should be a whole number"]),
        ("json=perhaps", ["json=perhaps: should be true or false"]),
        ("bench.scale=x", ["bench.scale=x: should be a number"]),
        ("defaults={steps: 4}", ["write each by its name"]),
        ("defaults.prompt=x", ["prompts are set by the manifest"]),
        ("hydra.run.dir=x", ["'hydra.run.dir' is not a setting"]),
        ("model.path=", ["names no model"]),
        ("shuffle=abc", ["shuffle", "abc"]),
        ("engine=rays", ["engine=rays", "'ray'"]),
        ("allow_outside=perhaps", ["allow_outside", "perhaps"]),
        ("steps=4", ["'steps' is not a setting"]),
        ("bench=emojy", ["bench=emojy: no such bench", "did you mean 'emoji'"]),
        ("bench.imges=4", ["did you mean 'bench.images'"]),
        ("bench.images=0", ["bench.images=0", "at least 1"]),
        ("bench.rounds=-1", ["bench.rounds=-1", "at least 1"]),
        ("bench.size=100", ["bench.size=100", "multiple of 64"]),
        ("bench.steps=501", ["bench.steps=501", "at most 500"]),
        ("bench.ceilings=[lots]", ["bench.ceilings=lots", "1200MB"]),
        ("=4", ["is not a setting"]),
    ],
)
def test_wrong_settings_are_refused_with_what_would_be_right(override, words):
    with pytest.raises(SettingError) as caught:
        settings.compose([override])
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_bench_brings_its_model_unless_another_is_named():
    assert settings.compose(["bench=emoji"]).model.path == "builtin:emoji"
    assert settings.compose(["bench=sd15"]).model.path == "random:sd15"
    assert settings.compose(["bench=sd15", "model=sd15"]).model.path == "weights/stable-diffusion-v1-5"
    assert settings.compose(["bench=sd15", "model.path=mine"]).model.path == "mine"
    for name in settings.group_names("bench"):
        assert settings.compose([f"bench={name}"]).bench.name == name


def test_checked_settings_can_be_changed():
    made = settings.compose(["memory=2GiB", "unet_bs=4"])
    assert dataclasses.replace(made) == made
    assert dataclasses.replace(settings.compose([]), memory="1KB").memory == 1000


def test_every_default_of_an_item_can_be_overridden():
    keys = set(OmegaConf.to_container(settings.compose_config([]))["defaults"])
    assert keys == set(ITEM_KEYS) - {"prompt"}


def test_only_what_conf_says_is_a_setting():
    config = OmegaConf.to_container(settings.compose_config([]))
    assert set(config) == {field.name for field in settings.fields(settings.Settings)}


def test_what_was_given():
    assert settings.given_keys(["unet_bs=4", "model.path=a=b"]) == {"unet_bs", "model.path"}
