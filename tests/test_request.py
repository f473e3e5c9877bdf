import json
import os
import shutil

import pytest
import single_file
import tiny
import torch
from builders import make_item

from runner import settings
from runner.errors import ManifestError, ModelError
from runner.folder.names import RUN
from runner.item import Model, item_id
from runner.request import read_request


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def ask(tmp_path, model):
    """Reads a request for a manifest's text, or for the lines of a records file."""

    def read(text, *overrides, name="m.yaml"):
        target = tmp_path / name
        target.write_text(text)
        out = [f"out={tmp_path / 'out'}"] if not any(word.startswith("out=") for word in overrides) else []
        return read_request(target, settings.compose([f"model.path={model}", *out, *overrides]))

    return read


MANIFEST = "version: 1\nname: alps\njobs: [{prompts: [cat, dog], seeds: 1-5, width: 64, height: 64}]\n"


def test_items_in_order(ask):
    request = ask(MANIFEST)
    assert [item.number for item in request.wanted()] == list(range(10))
    assert request.count() == 10


def test_an_item_has_one_id_in_every_form_of_the_model(ask, tmp_path):
    parts = single_file.small(1)
    single_file.save_folder(tmp_path / "folder", parts)
    torch.save({"state_dict": single_file.to_compvis(parts)}, tmp_path / "x.ckpt")
    requests = [ask(MANIFEST, f"model.path={tmp_path / form}") for form in ("folder", "x.ckpt")]
    assert len({item_id(request.items[0]) for request in requests}) == 1


def test_limit_and_shuffle(ask):
    assert [item.number for item in ask(MANIFEST, "limit=3").wanted()] == [0, 1, 2]
    shuffled = [item.number for item in ask(MANIFEST, "shuffle=1").wanted()]
    assert sorted(shuffled) == list(range(10)) != shuffled
    assert shuffled == [item.number for item in ask(MANIFEST, "shuffle=1").wanted()]
    assert [item.number for item in ask(MANIFEST, "shuffle=1", "limit=4").wanted()] == shuffled[:4]
    assert ask(MANIFEST, "limit=99").count() == 10


def test_the_run_folder_has_the_manifests_name(ask):
    assert str(ask(MANIFEST, "out=null").store) == "outputs/alps"
    assert str(ask(MANIFEST, "out=elsewhere/x").store) == "elsewhere/x"


def test_defaults_from_the_command_line(ask):
    assert {item.steps for item in ask(MANIFEST, "defaults.steps=4").wanted()} == {4}


def test_ids_are_of_the_wish_and_the_weights(ask, model, tmp_path_factory):
    first = ask(MANIFEST)
    same = ask("version: 1\njobs: [{prompts: ['dog:3'], seeds: [2], W: 64, H: 64, steps: 50}]\n")
    wanted = next(item for item in first.wanted() if (item.prompt, item.seed) == ("dog", 2))
    assert item_id(same.items[0]) == item_id(wanted)
    assert len({item_id(item) for item in first.wanted()}) == 10
    other = tiny.save_model(tmp_path_factory.mktemp("models") / "other", seed=1)
    assert item_id(ask(MANIFEST, f"model.path={other}").items[wanted.number]) != item_id(wanted)


def test_an_id_is_the_same_for_ever():
    from runner.item import item_id

    model = Model(fingerprints=(("text_encoder", "a"), ("unet_encode", "b"), ("unet_decode", "c"), ("vae", "d")))
    expected = "1e0b7a72aec010ddbaf0a6fa9bf2d9d89ee09f0631d6c2f44966d5ec19f08310"
    assert item_id(make_item(model=model)) == expected
    assert item_id(make_item(number=9, axes=(("seed", 27),), model=model)) == expected


def test_a_drawn_seed_is_kept_with_the_run_folder(ask, tmp_path):
    text = "version: 1\njobs: [{prompts: [cat], n_samples: 3, width: 64, height: 64}]\n"
    request = ask(text)
    seeds = [item.seed for item in request.wanted()]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    assert request.drawn_seeds == {0: seeds[0]}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RUN).write_text(json.dumps({"drawn_seeds": {"0": 77}}))
    assert [item.seed for item in ask(text).wanted()] == [77, 78, 79]
    (tmp_path / "out" / RUN).write_text("{torn")
    assert ask(text).count() == 3


def test_records_are_a_target(ask):
    (emoji,) = ask(MANIFEST, "model.path=builtin:emoji").models
    item = make_item(number=5, prompt="cat:0.25 dog:0.75", seed=9, model=emoji)
    record = {"id": "x", "status": "done", "item": item.to_dict() | {"model": "emoji"}}
    lines = [
        json.dumps(record | {"model": emoji.to_dict() | {"path": emoji.path}}),
        json.dumps(record),  # names a file of conf/model/
        '{"prompt": "a", "seed": 3}',
    ]
    request = ask("\n".join(lines), name="records.jsonl")
    assert [wanted.seed for wanted in request.wanted()] == [9, 9, 3]
    assert item_id(request.items[0]) == item_id(request.items[1]) == item_id(item)
    assert request.items[2].model.name == "tiny"


SWEEP = """\
version: 1
models: {one: {path: tiny}, two: {path: two}}
defaults: {width: 64, height: 64, steps: 1}
jobs:
  - {prompts: [cat, dog], seeds: 1-2, matrix: {model: [two, one]}}
  - {prompt: plain, seed: 1}
"""


@pytest.fixture
def two(tmp_path, model):
    """Two models beside the manifest."""
    shutil.copytree(model, tmp_path / "tiny")
    return tiny.save_model(tmp_path / "two", seed=1)


def test_models_take_turns(ask, two, tmp_path):
    request = ask(SWEEP)
    assert [(model.name, model.path) for model in request.models][:2] == [
        ("two", str(two)),
        ("one", str(tmp_path / "tiny")),
    ]
    assert [model.name for model in request.models] == ["two", "one", "tiny"]
    assert [item.number for item in request.wanted()] == [0, 1, 4, 5, 2, 3, 6, 7, 8]
    assert sorted(item.number for item in ask(SWEEP, "limit=3").wanted()) == [0, 1, 2]
    shuffled = [(item.model.name, item.number) for item in ask(SWEEP, "shuffle=1").wanted()]
    assert [name for name, _ in shuffled] == ["two"] * 4 + ["one"] * 4 + ["tiny"]
    assert shuffled != [(item.model.name, item.number) for item in request.wanted()]


def test_an_id_is_of_the_weights_and_not_of_their_name(ask, two):
    plain = ask("version: 1\njobs: [{prompt: cat, seed: 1, W: 64, H: 64, steps: 1}]\n")
    request = ask(SWEEP)
    assert item_id(request.items[2]) == item_id(plain.items[0]) != item_id(request.items[0])


def test_the_settings_model_is_not_looked_for_where_nobody_asks_for_it(ask, two):
    assert len(ask(SWEEP.partition("  - {prompt: plain")[0], "model.path=/nowhere").models) == 2
    with pytest.raises(ModelError):
        ask(SWEEP, "model.path=/nowhere")


def test_all_broken_models_are_told_at_once_with_their_places(ask, two, tmp_path):
    for name in ("tiny", "two"):
        (tmp_path / name / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ManifestError) as caught:
        ask(SWEEP)
    assert [(error.location.line, error.location.column) for error in caught.value.errors] == [(2, 22), (2, 41)]
    assert "the model 'one': " in str(caught.value)
    assert caught.value.exit_code == 4


def recorded(request):
    lines = []
    for item in request.items:
        model = item.model.to_dict() | {"path": item.model.path}
        lines.append(json.dumps({"item": item.to_dict() | {"model": model["name"]}, "model": model, "run": {}}))
    return "\n".join(lines)


def test_records_find_the_models_that_they_were_made_with(ask, two, model, tmp_path):
    request = ask(SWEEP)
    again = ask(recorded(request), "model.path=builtin:emoji", name="records.jsonl")
    assert [item_id(item) for item in again.items] == [item_id(item) for item in request.items]
    assert [item.model.name for item in again.items] == [item.model.name for item in request.items]
    two.rename(tmp_path / "moved")
    with pytest.raises(ManifestError) as caught:
        ask(recorded(request), name="records.jsonl")
    assert f"records.jsonl:1:1: the model 'two': no model with these fingerprints was found, neither at {two}" in str(
        caught.value
    )
    assert f": two, text_encoder {dict(request.items[0].model.fingerprints)['text_encoder'][:12]}, " in str(
        caught.value
    )
    moved = ask(recorded(request), f"model.path={tmp_path / 'moved'}", name="records.jsonl")
    assert item_id(moved.items[0]) == item_id(request.items[0])
    assert moved.items[0].model.path == str(tmp_path / "moved")


def test_a_name_that_no_record_explains_is_one_of_conf(ask):
    with pytest.raises(ManifestError, match=r"items.jsonl:1:1: model: 'emojo' is not known, did you mean 'emoji'"):
        ask('{"prompt": "a", "seed": 3, "model": "emojo"}', name="items.jsonl")


def test_a_prompt_too_long_shows_what_would_be_lost(ask):
    long = " ".join(["cat"] * 75 + ["white duck"])
    text = (
        f"version: 1\njobs:\n  - prompts:\n      - short\n      - {long}\n    seeds: 1\n    width: 64\n    height: 64\n"
    )
    with pytest.raises(ManifestError) as caught:
        ask(text)
    assert "m.yaml:5:9" in str(caught.value)
    assert "'white duck'" in str(caught.value)
    assert "long_prompts: chunk or truncate" in str(caught.value)
    assert ask(text + "    long_prompts: truncate\n").count() == 2
    with pytest.raises(ManifestError, match="would be lost"):
        ask(json.dumps({"prompt": long, "seed": 1}), name="items.jsonl")


def test_the_manifest_is_looked_at_before_the_model(ask):
    with pytest.raises(ManifestError):
        ask("version: 1\njobs: []\n", "model.path=/nowhere")
    with pytest.raises(ModelError):
        ask(MANIFEST, "model.path=/nowhere")


def test_a_missing_target(tmp_path, model):
    with pytest.raises(ManifestError, match="there is no such file"):
        read_request(tmp_path / "no.yaml", settings.compose([f"model.path={model}"]))


def test_a_target_or_picture_that_is_no_file_is_refused(ask, tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(ManifestError, match="'pipe' is not a file") as caught:
        ask("version: 1\njobs: [{prompt: cat, init: pipe}]\n")
    assert "^" in caught.value.report()
    for name in ("pipe.yaml", "pipe.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ManifestError, match="not a file") as caught:
            read_request(tmp_path / name, settings.compose([]))
        assert len(caught.value.report()) < 200


def test_a_prompt_that_is_too_long_is_not_repeated(ask):
    with pytest.raises(ManifestError, match="these words would be lost") as caught:
        ask(f"version: 1\njobs: [{{prompt: {'word ' * 2000}}}]\n")
    assert len(str(caught.value)) < 600


def test_a_long_prompt_in_automatic1111s_syntax_is_no_error(ask):
    long = "white duck, " * 60
    jobs = f"version: 1\njobs: [{{prompts: ['{long}'], seeds: 1, width: 64, height: 64, prompt_syntax: a1111}}]\n"
    assert ask(jobs).items[0].a1111
    line = {"prompt": long, "seed": 1, "negative": long, "prompt_syntax": "a1111"}
    assert ask(json.dumps(line), name="items.jsonl").items[0].a1111
    with pytest.raises(ManifestError, match="more than 75 tokens"):
        ask(jobs.replace("prompt_syntax: a1111", "matrix: {prompt_syntax: [plain, a1111]}"))


def numbers(request):
    return [item.number for item in request.wanted()]


def test_shards_are_every_nth_item_and_together_all_of_them(ask):
    shards = [ask(MANIFEST, f"shard={part}/3") for part in (1, 2, 3)]
    assert list(map(numbers, shards)) == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert [shard.count() for shard in shards] == [4, 3, 3]
    assert numbers(ask(MANIFEST, "shard=1/1")) == list(range(10))
    assert not shards[0].is_whole and ask(MANIFEST).is_whole
    beyond = ask(MANIFEST, "shard=11/12")
    assert numbers(beyond) == [] and beyond.count() == 0


def test_shards_are_of_what_shuffle_and_limit_leave(ask):
    whole = numbers(ask(MANIFEST, "shuffle=5", "limit=7"))
    shards = [ask(MANIFEST, "shuffle=5", "limit=7", f"shard={part}/2") for part in (1, 2)]
    assert list(map(numbers, shards)) == [whole[0::2], whole[1::2]]
    assert [shard.count() for shard in shards] == [4, 3]
    assert numbers(ask(MANIFEST, "limit=7", "shard=2/2")) == [1, 3, 5]


def test_a_shard_has_a_folder_of_its_own(ask):
    assert str(ask(MANIFEST, "out=null", "shard=3/16").store) == "outputs/alps-shard-3-of-16"
    assert str(ask(MANIFEST, "out=elsewhere", "shard=3/16").store) == "elsewhere"


def test_shards_of_what_has_no_seeds_are_refused(ask):
    text = "version: 1\njobs:\n- {prompts: [dog], seeds: 1, width: 64, height: 64}\n- {prompts: [cat]}\n"
    with pytest.raises(ManifestError, match=r"m.yaml:4:3: this job has no seeds, so every shard would draw others"):
        ask(text, "shard=1/2")
    assert ask(text, "shard=1/2", "defaults.seed=4").count() == 1


def test_the_order_of_loras_and_models_holds_within_a_shard(ask, tmp_path, model):
    shutil.copytree(model, tmp_path / "tiny")
    tiny.save_model(tmp_path / "two", seed=1)
    request = ask(SWEEP, "shard=1/2")
    found = [item.model.name for item in request.wanted()]
    assert found == sorted(found, key=list(dict.fromkeys(found)).index) and len(found) == request.count()


def test_ids_choose_items_before_all_else(ask, tmp_path):
    ids = [item_id(item) for item in ask(MANIFEST).wanted()]
    (tmp_path / "ids.txt").write_text("\n".join([ids[7], ids[2][:8], ids[3], ids[9], "f" * 64]))
    given = f"ids={tmp_path / 'ids.txt'}"
    request = ask(MANIFEST, given)
    assert numbers(request) == [2, 3, 7, 9] and request.count() == 4 and not request.is_whole
    assert request.note.endswith(f"1 ids are of no item of {tmp_path / 'm.yaml'}: {'f' * 64}")
    assert numbers(ask(MANIFEST, given, "limit=3")) == [2, 3, 7]
    assert numbers(ask(MANIFEST, given, "limit=3", "shard=2/2")) == [3]
    shuffled = numbers(ask(MANIFEST, given, "shuffle=1"))
    assert sorted(shuffled) == [2, 3, 7, 9] and shuffled == numbers(ask(MANIFEST, given, "shuffle=1"))
    (tmp_path / "ids.txt").write_text("f" * 64)
    with pytest.raises(ManifestError, match="none of its 1 ids"):
        ask(MANIFEST, given)
