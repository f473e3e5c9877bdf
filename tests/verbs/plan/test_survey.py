import dataclasses
import gc
import json
from pathlib import Path

import orjson
import pytest
import tiny
from builders import failure, make_item, record
from rich.console import Console

from runner import cli, request, settings
from runner.errors import SettingError
from runner.folder.names import image_path
from runner.item import Item, item_id
from runner.verbs.plan import forecast, survey
from runner.verbs.plan import text as plan_text

JOBS = """version: 1
name: small
defaults: {width: 64, height: 64, steps: 20}
jobs:
- prompts: [cat, dog, "cat:1 dog:3"]
  seeds: 1-4
  matrix: {sampler: [ddim, euler], scale: [1, 7.5]}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def ask(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)

    def asked(text=JOBS, *overrides, name="m.yaml"):
        Path(name).write_text(text)
        return request.read_request(Path(name), settings.compose([f"model.path={model}", *overrides]))

    return asked


@pytest.fixture
def look(ask):
    return lambda *arguments, **more: survey.make_survey(ask(*arguments, **more))


def finish(asked, numbers, **changes):
    """Writes records and pictures of some of the items."""
    lines = []
    for number in numbers:
        item = asked.items[number]
        file = asked.store.folder / image_path(item)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
        lines.append(record(item, id=item_id(item), **changes))
    write(asked.store.folder, lines)


def write(folder, records):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b"".join(orjson.dumps(each) + b"\n" for each in records))


def shown(found, width):
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        plan_text.show(found, console)
    return captured.get()


def test_counts(look):
    found = look()
    assert (found.images, found.done, found.missing, found.failed) == (48, 0, 48, 0)
    assert {key: dict(axis.values) for key, axis in found.axes.items()} == {
        "prompt": {"cat": 16, "dog": 16, "cat:1 dog:3": 16},
        "sampler": {"ddim": 24, "euler": 24},
        "scale": {1.0: 24, 7.5: 24},
        "seed": {1: 12, 2: 12, 3: 12, 4: 12},
    }
    assert [(group.sampler, group.images, group.unet_bs) for group in found.groups] == [
        ("ddim", 24, 32),
        ("euler", 24, 32),
    ]
    assert (found.ends[0].number, found.ends[1].number) == (0, 47)
    assert (found.prompts, found.weighted, [each.prompt for each in found.read_as]) == (3, 1, ["cat:1 dog:3"])
    assert found.waves == 2  # 72 rows
    assert found.memory_bytes > 0
    assert found.warnings == []


def test_limit_and_shuffle(look):
    found = look(JOBS, "limit=5", "shuffle=1")
    assert found.images == found.missing == sum(found.axes["seed"].values.values()) == 5
    assert found.ends != look(JOBS, "limit=5").ends


def test_what_is_done_and_what_has_failed(ask):
    asked = ask()
    finish(asked, [0, 1, 2])
    failed = [{**failure(asked.items[n]), "id": item_id(asked.items[n])} for n in (2, 3, 3, 4)]
    write(asked.store.folder, failed)
    write(asked.store.folder, [{**failure(asked.items[1]), "id": item_id(asked.items[1])}])
    finish(asked, [1])
    (asked.store.folder / image_path(asked.items[1])).unlink()
    found = survey.make_survey(asked)
    assert (found.done, found.missing, found.failed, found.attempts) == (1, 47, 3, 4)
    assert "48 pictures: 1 done, 47 to render (3 of them failed before, 4 times in all)" in shown(found, 120)


def test_the_attempts_of_an_item_that_stands_twice_count_once(ask):
    asked = ask(JOBS.replace("1-4", "[1, 1, 2]"))
    write(asked.store.folder, [{**failure(asked.items[0]), "id": item_id(asked.items[0])}] * 2)
    found = survey.make_survey(asked)
    assert (found.failed, found.attempts) == (1, 2)


def test_when_all_is_done_there_is_little_to_say(ask):
    asked = ask(JOBS, "limit=3")
    finish(asked, range(3))
    found = survey.make_survey(asked)
    assert (found.missing, found.waves, found.memory_bytes, found.groups) == (0, 0, 0, [])
    text = shown(found, 80)
    assert "3 pictures: 3 done, nothing to render" in text
    assert "to render, in" not in text
    assert "time" not in text


def test_the_same_picture_twice_is_made_once(ask):
    asked = ask(JOBS.replace("seeds: 1-4", "seeds: [1, 1, 1, 1, 2]"))
    found = survey.make_survey(asked)
    assert (found.images, found.missing, found.groups[0].images) == (60, 24, 12)
    (warned,) = found.warnings
    assert (warned.check.name, warned.count, len(warned.examples)) == ("same_picture", 36, 3)
    assert (warned.examples[0].item, warned.examples[0].text) == (1, "the same as item 0")
    finish(asked, [0])
    again = survey.make_survey(asked)
    assert (again.done, again.missing) == (1, 23)


def test_names_that_older_pictures_have(ask):
    finish(ask(), [0, 5])
    found = survey.make_survey(ask(JOBS.replace("steps: 20", "steps: 21")))
    (warned,) = found.warnings
    assert (warned.check.name, warned.count, found.missing) == ("name_taken", 2, 48)
    assert warned.examples[1].text == str(image_path(ask().items[5]))


def test_kinds_are_warned_of_by_their_number_of_pictures(look):
    found = look(JOBS.replace("steps: 20", "steps: 3, negative: bad"))
    assert {warned.check.name: warned.count for warned in found.warnings} == {"few_steps": 48, "unused_negative": 24}
    assert look(JOBS, "defaults.width=1024").warnings[0].check.name == "odd_size"


def test_time_and_disk_come_from_the_records(ask, monkeypatch):
    monkeypatch.setattr(forecast, "device_name", lambda device: "A fast one")
    asked = ask()
    assert not survey.make_survey(asked).forecast.seconds
    assert "no records of this machine and model yet" in shown(survey.make_survey(asked), 200)
    run = {
        "device": "cpu",
        "device_name": "A fast one",
        "dtypes": {"unet_encode": "float32"},
        "turbo": True,
        "unet_bs": 4,
    }
    seconds = {"encode": 0.0, "denoise": 3600.0, "decode": 1.0}
    there = request.Path("outputs/other")
    model = {"name": "tiny", "fingerprints": dict(next(iter(asked.models)).fingerprints)}
    monkeypatch.setattr(survey.choices, "guess_device", lambda setting: "cpu")
    write(there, [record(make_item(scale=1.0, number=n), run=run, seconds=seconds, model=model) for n in range(4)])
    found = survey.make_survey(asked)
    assert found.forecast.pictures == 4
    assert found.forecast.seconds["denoise"] == pytest.approx(3600 * 96)  # 72 rows, filled up to 96
    text = shown(found, 200)
    assert "about 4.0 days and the loading, judged by 4 pictures made here" in text


def test_long_axes_are_counted_to_the_end_of_what_is_kept(limit, look):
    limit(survey, VALUES_KEPT=3)
    found = look(JOBS.replace("1-4", "1-500"))
    axis = found.axes["seed"]
    assert (len(axis.values), axis.more) == (3, 12 * 497)
    assert axis.to_dict() == {
        "different": 3,
        "values": [{"value": seed, "images": 12} for seed in (1, 2, 3)],
        "images_of_more_values": 12 * 497,
    }


def test_more_items_than_can_be_read_are_refused(look):
    with pytest.raises(
        SettingError, match="plan reads up to 10000000 items, and these are 12000000; set limit=10000000"
    ):
        look(JOBS.replace("1-4", "1-1000000"))


def test_items_are_not_kept(ask):
    alive = []

    class Counting:
        """The items of a request; every thousand, those that are there are counted."""

        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __getitem__(self, number):
            return self.items[number]

        def __iter__(self):
            for item in self.items:
                if item.number % 1000 == 0:
                    alive.append(sum(type(each) is Item for each in gc.get_objects()))
                yield item

    asked = ask(JOBS.replace("1-4", "1-300"))
    assert survey.make_survey(dataclasses.replace(asked, items=Counting(asked.items))).images == 3600
    assert len(alive) == 4
    assert max(alive) - alive[0] < survey.TOGETHER + 10


def test_a_target_of_json_lines(look):
    lines = [{"prompt": "a (cat:1.5)", "seed": seed, "width": 64, "height": 64} for seed in (1, 2, 2)]
    found = look("".join(json.dumps(line) + "\n" for line in lines), name="items.jsonl")
    assert (found.images, found.missing) == (3, 2)
    assert {warned.check.name for warned in found.warnings} == {"other_syntax", "same_picture"}
    assert "item 0  '(cat:1.5)' is emphasis" in shown(found, 120)


def test_models_are_counted_one_by_one(ask, model, monkeypatch):
    text = JOBS.replace("matrix: {", "matrix: {model: [emoji, mine], ").replace(
        "jobs:", f"models: {{mine: {{path: {model}}}}}\njobs:"
    )
    monkeypatch.setattr(forecast, "device_name", lambda device: None)
    asked = ask(text, "allow_outside=true")
    found = survey.make_survey(asked)
    assert [(turn.model.name, turn.missing) for turn in found.turns] == [("emoji", 48), ("mine", 48)]
    assert (found.images, found.missing, dict(found.axes["model"].values)) == (96, 96, {"emoji": 48, "mine": 48})
    assert found.waves == sum(turn.waves for turn in found.turns) == 4
    assert found.memory_bytes == max(turn.memory_bytes for turn in found.turns)
    assert {(group.model, group.images) for group in found.groups} == {("emoji", 24), ("mine", 24)}
    lines = [" ".join(line.split()) for line in shown(found, 200).splitlines()]
    assert "model 2 emoji, mine (48 each)" in lines
    assert "pictures model size sampler steps unet_bs" in lines
    assert any(line.startswith("model mine, float32, on cpu") and line.endswith("; 48 to render") for line in lines)
    finish(asked, [item.number for item in asked.items if item.model.name == "emoji"])
    again = survey.make_survey(asked)
    assert [(turn.missing, turn.waves) for turn in again.turns] == [(0, 0), (48, 2)]
    assert again.to_dict()["models"][1]["missing"] == again.to_dict()["missing"] == 48


def test_the_time_of_all_models_is_known_where_that_of_each_is(ask, model, monkeypatch):
    text = JOBS.replace("matrix: {", "matrix: {model: [emoji, mine], ").replace(
        "jobs:", f"models: {{mine: {{path: {model}}}}}\njobs:"
    )
    monkeypatch.setattr(forecast, "device_name", lambda device: None)
    asked = ask(text, "allow_outside=true")
    run = {"device": "cpu", "device_name": "x", "dtypes": {"unet_encode": "float32"}, "turbo": True, "unet_bs": 4}
    for number, each in enumerate(asked.models):
        made = {"run": run, "seconds": {"denoise": 10.0}, "model": each.to_dict()}
        write(request.Path("outputs/other"), [record(make_item(number=number), **made)])
        seconds = survey.make_survey(asked).forecast.seconds
        assert bool(seconds) == (number == 1)
    assert seconds["denoise"] == pytest.approx(
        sum(turn.forecast.seconds["denoise"] for turn in survey.make_survey(asked).turns)
    )


@pytest.mark.parametrize("width", [40, 80, 120, 1000])
def test_no_text_is_cut_off_at_any_width(look, width):
    text = JOBS.replace("cat,", f"{'a very long prompt of many words ' * 5}, {'x' * 150},")
    out = shown(look(text), width)
    assert "…" not in out
    assert all(len(line) <= width for line in out.splitlines())
    assert out.count("x") >= 150


def test_in_a_pipe_lines_are_whole_and_without_colour(look, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    plan_text.print_survey(look(JOBS.replace("cat,", f"{'x' * 150},")))
    out = capsys.readouterr().out
    assert "x" * 150 in out.split()
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_a_prompt_does_not_steer_the_terminal(look):
    line = json.dumps({"prompt": "a \x1b[31mred [bold]cat[/bold]", "seed": 1}) + "\n"
    assert r"a \u001b[31mred [bold]cat[/bold]" in shown(look(line, name="items.jsonl"), 100)


def test_what_people_see(look):
    lines = [line.rstrip() for line in shown(look(), 100).splitlines()]
    assert lines[0] == "48 pictures: 0 done, 48 to render"
    assert "  sampler  2  ddim, euler (24 each)" in lines
    assert "  seed     4  1 to 4 (12 each)" in lines
    assert "  0.25 'cat' + 0.75 'dog'" in lines
    assert "           seed 4, 64x64, 20 steps of euler, scale 7.5" in lines
    assert "           images/cat_1_dog_3/seed_4_00047.png" in lines


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({1: 2, 2: 2}, "1, 2 (2 each)"),
        ({1: 2, 2: 3}, "1 (2), 2 (3)"),
        ({1: 2, 2: 3, 3: 2}, "1 to 3 (2 to 3 each)"),
        ({1: 2, 5: 2, 3: 2}, "1, 5, 3 (2 each)"),
        ({n * 0.5: 1 for n in range(8)}, "0, 0.5, 1, 1.5, 2, 2.5, 2 more (1 each)"),
    ],
)
def test_an_axis_is_short(values, text):
    assert plan_text._axis(survey.Axis(values=survey.Counter(values)))[1] == text


def test_the_json_document(ask, model, capsys):
    ask(JOBS.replace("seeds: 1-4", "seeds: [1, 1]"))
    assert cli.main(["plan", "m.yaml", "json=true", f"model.path={model}"]) == 0
    out = capsys.readouterr()
    document = json.loads(out.out)
    assert out.err == ""
    assert list(document) == [
        "target", "folder", "images", "done", "missing", "failed", "attempts", "waves", "device", "device_name",
        "memory_bytes", "disk_bytes", "seconds", "judged_by", "models", "axes", "first", "last", "groups", "prompts",
        "warnings",
    ]  # fmt: skip
    assert (document["images"], document["missing"], document["seconds"]) == (24, 12, None)
    assert document["first"]["image"] == "images/cat/seed_1_00000.png"
    assert document["prompts"]["read_as"] == [
        {"prompt": "cat:1 dog:3", "parts": [{"text": "cat", "weight": 0.25}, {"text": "dog", "weight": 0.75}]}
    ]
    assert document["warnings"][0]["kind"] == "same_picture"


A1111_JOBS = """
version: 1
defaults: {width: 64, height: 64, steps: 20, prompt_syntax: a1111}
jobs:
- prompts: ["a (cat:1.3), [dog]", "[a:(b:1.2):0.5] BREAK c", "[a|b]", plain, "[a:b:19]"]
  seeds: 1-2
- {prompt: "a (cat:1.3), [dog]", seed: 3, prompt_syntax: plain}
"""


def test_how_prompts_in_automatic1111s_syntax_were_read(look):
    found = look(A1111_JOBS)
    assert (found.prompts, found.weighted) == (6, 4)
    text = shown(found, 200)
    assert "1 'a' + 1.3 'cat' + 1 ',' + 0.909 'dog'" in text
    assert "to step 11: 1 'a' + BREAK + 1 'c'; then: 1.2 'b' + BREAK + 1 'c'" in text
    assert "to step 2: 1 'a'; to step 3: 1 'b'; to step 4: 1 'a'; to step 5: 1 'b'; 15 more changes" in text
    assert [len(reading.spans) for reading in found.read_as] == [1, 2, 19, 1]  # what comes after the last step is none
    document = found.to_dict()["prompts"]["read_as"][1]
    assert document["prompt_syntax"] == "a1111" and document["loras"] == []
    assert [(span["last_step"], span["parts"][0]) for span in document["spans"]] == [
        (10, {"text": "a", "weight": 1.0}),
        (20, {"text": "b", "weight": 1.2}),
    ]


def test_a_card_also_holds_what_its_driver_needs(look):
    assert "for the driver and its kernels" in shown(look(JOBS, "device=cuda:0"), 160)
    assert "driver" not in shown(look(JOBS, "device=cpu"), 160)
