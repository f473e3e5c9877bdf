import pytest
import tiny
from builders import make_item

from runner import request, settings
from runner.model import files
from runner.verbs.plan import lint
from runner.verbs.plan.forecast import Kind


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(model_path):
    return files.find_model(str(model_path))


@pytest.fixture
def warnings(tmp_path, model_path):
    """What a job, given in YAML, is warned of; by the checks' names."""

    def check(job, *overrides):
        path = tmp_path / "m.yaml"
        path.write_text(f"version: 1\ndefaults: {{width: 64, height: 64, steps: 20}}\njobs:\n- {job}\n")
        linter = lint.Linter(request.read_request(path, settings.compose([f"model.path={model_path}", *overrides])))
        for item in linter._request.wanted():
            linter.read(item)
        return {warned.check.name: warned for warned in linter.warnings()}

    return check


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a (cat:1.2) dog", "'(cat:1.2)' is emphasis"),
        ("a (cat : .5) dog", "'(cat : .5)' is emphasis"),
        ("((masterpiece)), a cat", "'((masterpiece))' is emphasis"),
        ("a cat, [blurry]", "'[blurry]' is less emphasis"),
        ("a {red|blue} cat", "'{red|blue}' is a choice"),
        ("a {{red}} cat", "'{{red}}' is emphasis in NovelAI"),
        ("an __animal/wild__ here", "'__animal/wild__' is a wildcard"),
        ("a cat <lora:fur:0.8>", "'<lora:fur:0.8>' is a LoRA"),
        ("a cat <HYPERNET:x:1>", "is a LoRA or a hypernetwork"),
        ("embedding:badhands, a cat", "'embedding:badhands' is an embedding"),
        ("a cat BREAK a dog", "'BREAK' is a new piece"),
        ("a cat AND a dog", "'AND' is two prompts at once"),
        ("cat::2 dog", "'cat::2' is a weight in Midjourney"),
        ("hot:: dog", "'hot::' is a weight in Midjourney"),
        ("a cat --ar 16:9", "'--ar 16:9' is a parameter in Midjourney"),
        ("a cat --tile", "'--tile' is a parameter"),
    ],
)
def test_other_tools_syntax_is_seen(text, found):
    assert found in "; ".join(lint.foreign_syntax(text))


@pytest.mark.parametrize(
    "text",
    [
        "portrait (oil on canvas) of a cat",
        "tabby cat:0.25 white duck:0.75 hybrid",
        "TAKE A BREAK AND RELAX",
        "cats and dogs, a broken AND-gate",
        "http://example.org/a_b__c",
        "std::vector on a blackboard",
        "a well-known -- if old -- castle",
        "snake_case and a__b",
        "x<y and y>z",
        "",
    ],
)
def test_ordinary_text_is_left_alone(text):
    assert list(lint.foreign_syntax(text)) == []


@pytest.mark.parametrize("text", ["a (cat:1.2)", "((a))", "a [b]", "a <lora:x:1>", "a BREAK b"])
def test_what_looks_like_automatic1111s_syntax_is_said_to_be_one(text):
    assert "prompt_syntax: a1111 reads it" in "; ".join(lint.foreign_syntax(text))
    assert list(lint.foreign_syntax(text, a1111=True)) == []


def test_a_prompt_in_automatic1111s_syntax_is_warned_of_other_tools_only(warnings):
    texts = "prompts: ['(a:1.2), [b], c:0.5, 12:30 d', '{x|y} e'], negative: '(bad:1.4)'"
    found = warnings(f"{{{texts}, seed: 1, prompt_syntax: a1111}}")
    assert found.keys() == {"other_syntax"}
    assert [example.text for example in found["other_syntax"].examples] == [
        "'{x|y}' is a choice in Dynamic Prompts; here each is a prompt of its own"
    ]


def test_a_break_within_brackets_is_a_word(warnings):
    found = warnings("{prompts: [a BREAK b, '(a BREAK b:1.2)', '[a BREAK b:3]'], seed: 1, prompt_syntax: a1111}")
    assert found.keys() == {"break_in_brackets"}
    assert [example.text for example in found["break_in_brackets"].examples] == ["'BREAK' weighs -1.2"]


def test_all_of_the_quickstart_is_as_it_should_be():
    asked = request.read_request(lint_root() / "manifests/quickstart.yaml", settings.compose([]))
    linter = lint.Linter(asked)
    for item in asked.wanted():
        linter.read(item)
    samples = {(item.model, Kind.of(item)): item for item in asked.items}
    linter.read_kinds(dict.fromkeys(samples, 1), samples)
    assert linter.warnings() == []


def lint_root():
    return settings.conf_folder().parent


def test_a_warning_counts_texts_and_knows_the_first_three_places(warnings):
    prompts = "".join(f"\n  - a (cat:1.{n}) here" for n in range(5))
    found = warnings(f"prompts:{prompts}\n  seeds: 1-4")
    warned = found["other_syntax"]
    assert (warned.count, len(warned.examples)) == (5, 3)
    assert [str(example.place).rpartition("m.yaml")[2] for example in warned.examples] == [":5:5", ":6:5", ":7:5"]
    assert [example.item for example in warned.examples] == [0, 4, 8]
    document = warned.to_dict()
    assert document["examples"][1]["place"].endswith("m.yaml:6:5")
    assert {key: document[key] for key in ("kind", "count", "unit")} == {
        "kind": "other_syntax",
        "count": 5,
        "unit": "text",
    }


def test_a_negative_prompt_is_read_as_well(warnings):
    found = warnings("{prompts: [cat, dog], seeds: 1-2, negative: '(worst:1.4)'}")
    assert found["other_syntax"].count == 1


@pytest.mark.parametrize(
    ("prompt", "name", "text"),
    [
        ("a train at 12:30 in the rain", "number_as_weight", "'12:30' is '12' with the weight 30"),
        ("a 16:9", "number_as_weight", "'16:9' is '16' with the weight 9"),
        ("cat:1 dog:-0.5", "odd_weight", "'dog' weighs -1 of 1"),
        ("cat:1000 dog", "odd_weight", "'dog' weighs 0.001 of 1"),
    ],
)
def test_odd_weights(warnings, prompt, name, text):
    found = warnings(f"{{prompts: ['{prompt}'], seeds: 1}}")
    assert found[name].examples[0].text == text


@pytest.mark.parametrize("prompt", [r"a train at 12\:30", "cat:1 dog:0", "cat:0.25 dog:0.75", "cat:2", "at 1:30pm"])
def test_weights_that_are_meant(warnings, prompt):
    assert warnings(f"{{prompts: ['{prompt}'], seeds: 1}}") == {}


def test_a_prompt_that_is_no_weighted_one_has_no_weights(warnings):
    assert warnings("{prompts: [{text: 'a train at 12:30', weighted: false}], seeds: 1}") == {}


def test_words_that_are_cut(warnings):
    words = "tiger " * 74 + "a lost word"
    found = warnings(f"{{prompts: ['{words}', short], seeds: 1-2, long_prompts: truncate}}")
    assert found["cut_prompt"].count == 1
    assert found["cut_prompt"].examples[0].text == "lost: 'lost word'"
    assert warnings(f"{{prompts: ['{words}'], seeds: 1, long_prompts: chunk}}") == {}


def test_a_cut_negative_prompt_counts_where_it_is_used(warnings):
    job = f"{{prompts: [cat], seeds: 1, negative: '{'tiger ' * 80}', long_prompts: truncate, scale: %s}}"
    assert list(warnings(job % 2)) == ["cut_prompt"]
    assert warnings(job % 1) == {}


@pytest.mark.parametrize(
    ("job", "name", "text"),
    [
        ("{prompts: [cat], seeds: 1, eta: 0.5, sampler: euler}", "unused_eta", "eta with euler"),
        ("{prompts: [cat], seeds: 1, eta: 1, matrix: {sampler: [ddim, lms]}}", "unused_eta", "eta with lms"),
        ("{prompts: [cat], seeds: 1, strength: 0.5}", "unused_strength", "strength without init"),
        ("{prompts: [cat], seeds: 1, matrix: {strength: [0.5, 1]}}", "unused_strength", "strength without init"),
        ("{prompts: [cat], seeds: 1, mask_blur: 8}", "unused_blur", "mask_blur without mask"),
    ],
)
def test_keys_without_effect(warnings, job, name, text):
    warned = warnings(job)[name]
    assert (warned.count, warned.examples[0].text) == (1, text)
    assert str(warned.examples[0].place).endswith("m.yaml:4:3")


@pytest.mark.parametrize(
    "job",
    [
        "{prompts: [cat], seeds: 1, eta: 0.5}",
        "{prompts: [cat], seeds: 1, eta: 0, sampler: euler}",
        "{prompts: [cat], seeds: 1, strength: 0.75}",
    ],
)
def test_keys_with_effect(warnings, job):
    assert warnings(job) == {}


def test_strength_with_an_init_has_an_effect(warnings, tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert warnings("{prompts: [cat], seeds: 1, init: a.png, strength: 0.5}") == {}


def test_a_mask_without_anything_white(warnings, tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Image.new("L", (64, 64), 127).save(tmp_path / "black.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "white.png")
    assert warnings("{prompts: [cat], seeds: 1, init: a.png, mask: white.png, mask_blur: 8}") == {}
    found = warnings("{prompts: [cat], seeds: 1, init: a.png, matrix: {mask: [white.png, black.png]}}")
    assert [each.text for each in found["black_mask"].examples] == ["black.png"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"width": 512}, "odd_size"),
        ({"width": 192, "height": 64}, "odd_size"),
        ({"scale": 1.0, "negative": "blurry"}, "unused_negative"),
        ({"steps": 5}, "few_steps"),
        ({"steps": 19, "sampler": "lms"}, "few_steps"),
        ({"steps": 7, "sampler": "heun"}, "few_steps"),
        ({"strength": 0.04, "init": "a.png"}, "no_steps"),
        ({}, None),
        ({"width": 128, "height": 64}, None),
        ({"scale": 1.0}, None),
        ({"negative": "blurry"}, None),
        ({"steps": 6}, None),
        ({"steps": 20, "sampler": "lms"}, None),
        ({"strength": 0.0, "init": "a.png"}, None),
    ],
    ids=str,
)
def test_kinds_of_pictures(model, changes, found):
    kind = Kind.of(make_item(**changes))
    names = [check.name for find, check in lint.KIND_CHECKS if list(find(kind, model))]
    assert names == ([found] if found else [])


def test_the_size_that_a_model_was_made_for(model):
    assert model.native_size == 64
    unet = dict(model.configs["unet"])
    for given, wanted in (([8, 16], 128), (None, 512), (96, 768)):
        configs = {**model.configs, "unet": {**unet, "sample_size": given}}
        changed = files.ModelFiles(name="m", path=model.path, configs=configs, tensors=model.tensors)
        assert changed.native_size == wanted


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tabby cat:0.25, white duck:0.75", True),
        ("cat: 0.5 dog: 0.5", True),
        ("cat:0,5 dog", True),
        ("cat:0.5; dog", True),
        ("cat:0.25 dog:0.75", False),
        ("portrait: oil on canvas", False),
        ("16:9 picture", False),
        (r"cat\:0.5, dog", False),
        ("http://x.org/1.5", False),
        ("a cat", False),
    ],
)
def test_numbers_that_look_like_weights_and_are_none(text, found):
    from runner.manifest import weighted

    item = make_item(prompt=text, parts=weighted.parse(text))
    assert bool(list(lint.unread_weights(item))) == found


def test_lines_that_were_meant_for_another_program_or_for_people():
    assert list(lint.comment_lines(make_item(prompt="# a comment")))
    assert not list(lint.comment_lines(make_item(prompt="a # b")))
    [said] = lint.foreign_syntax('--prompt "a cat" --seed 5')
    assert "AUTOMATIC1111's prompts from file" in said
    [said] = lint.foreign_syntax("a cat --ar 16:9")
    assert "Midjourney" in said
