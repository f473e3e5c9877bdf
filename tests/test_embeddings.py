"""Learnt words from the command line: a manifest lists them, and all verbs know them."""

from __future__ import annotations

import json

import orjson
import pytest
import tiny
import torch
from jsonschema import Draft7Validator
from safetensors.torch import save_file
from schemas import complaints
from test_order import heavy_after

from runner import cli, settings
from runner.errors import ManifestError
from runner.folder import schema as record_schema
from runner.item import item_id
from runner.model.tokens import SHIPPED
from runner.request import read_request

HEAD = "version: 1\ndefaults: {width: 64, height: 64, steps: 2}\n"
LISTED = "embeddings: {toy: words/toy.pt, bad: {path: words/bad.safetensors}, gone: words/gone.pt}\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with embeddings of three and of one vector, and one that is too wide."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    generator = torch.Generator().manual_seed(0)
    toy, bad = (torch.randn(count, 16, generator=generator) for count in (3, 1))
    torch.save({"string_to_param": {"*": toy}, "string_to_token": {"*": 265}}, "words/toy.pt")
    save_file({"emb_params": bad}, "words/bad.safetensors")
    save_file({"emb_params": torch.ones(1, 768)}, "words/wide.safetensors")
    return tmp_path


@pytest.fixture
def ask(folder, model):
    def read(text, *overrides, name="m.yaml"):
        (folder / name).write_text(text, encoding="utf-8")
        if name.endswith(".yaml"):
            assert complaints(text) == []
        request = read_request(folder / name, settings.compose([f"model.path={model}", *overrides]))
        list(request.items)
        return request

    return read


def refused(ask, text, **how):
    with pytest.raises(ManifestError) as raised:
        ask(text, **how)
    return raised.value


def named(items):
    return [[each.name for each in item.embeddings] for item in items]


def test_an_item_has_the_embeddings_that_its_texts_name(ask):
    prompts = ["a <toy>", "cat:1 <bad> dog:2", "plain", "{text: '<toy>', negative: '<bad>'}"]
    made = ask(f"{HEAD}{LISTED}jobs: [{{prompts: [{', '.join(prompts)}], seed: 1, matrix: {{scale: [7.5, 1]}}}}]").items
    assert named(made) == [["toy"], ["toy"], ["bad"], ["bad"], [], [], ["bad", "toy"], ["toy"]]
    assert all(len(each.sha256) == 64 and each.path.startswith("/") for item in made for each in item.embeddings)
    assert len({item_id(item) for item in made}) == 8


def test_what_no_text_names_costs_nothing_and_changes_no_id(ask):
    plain = ask(f"{HEAD}jobs: [{{prompts: [a cat], seed: 1}}]").items[0]
    listed = ask(f"{HEAD}{LISTED}jobs: [{{prompts: [a cat], seed: 1}}]").items[0]
    assert item_id(plain) == item_id(listed) and plain == listed


def test_without_a_list_such_a_prompt_is_plain_text(ask):
    [item] = ask(f"{HEAD}jobs: [{{prompts: ['a <toy> <3 <lora:x:1>'], seed: 1}}]").items
    assert item.embeddings == () and "embeddings" not in item.to_dict()


def test_an_id_says_which_vectors_and_not_which_file(ask, folder):
    text = f"{HEAD}{LISTED}jobs: [{{prompts: [a <toy>], seed: 1}}]"
    before = item_id(ask(text).items[0])
    save_file({"emb_params": torch.load("words/toy.pt")["string_to_param"]["*"]}, "words/other.safetensors")
    assert item_id(ask(text.replace("toy.pt", "other.safetensors")).items[0]) == before
    save_file({"emb_params": torch.ones(3, 16)}, "words/other.safetensors")
    assert item_id(ask(text.replace("toy.pt", "other.safetensors")).items[0]) != before


def test_long_lists_of_prompts_name_them_too(ask, folder):
    (folder / "p.txt").write_text("".join(f"cat {n} {'<toy>' if n % 2 else ''}\n" for n in range(5000)))
    made = ask(f"{HEAD}{LISTED}jobs: [{{prompts: [{{file: p.txt}}], seed: 1}}]").items
    assert named([made[0], made[1], made[4999]]) == [[], ["toy"], ["toy"]]
    assert named(made) == [[], ["toy"]] * 2500


@pytest.mark.parametrize(
    ("listed", "prompt", "said"),
    [
        ("{toy: words/toy.pt}", "a <tpy> x", "'<tpy>', at column 3 of the text, is not listed under 'embeddings', did"),
        ("{toy: words/toy.pt}", "a <tpy> x", "did you mean 'toy'?"),
        ("{toy: words/toy.pt}", "<zzz>", "is not listed under 'embeddings', known are: toy"),
        ("{}", "cat <toy>", "'<toy>', at column 5 of the text, is not listed under 'embeddings', none are listed"),
        ("{toy: words/none.pt}", "<toy>", "the embedding 'toy': words/none.pt: there is nothing"),
        ("{toy: words/wide.safetensors}", "<toy>", "emb_params has vectors of 768 numbers, as Stable Diffusion v1 has"),
        (f"{{toy: {{path: words/toy.pt, sha256: {'f' * 64}}}}}", "<toy>", "and not ffffffffffff"),
    ],
)  # fmt: skip
def test_what_is_wrong_about_a_word_is_said_with_its_place(ask, listed, prompt, said):
    error = refused(ask, f"{HEAD}embeddings: {listed}\njobs:\n- prompts:\n  - {prompt}\n  seed: 1\n")
    assert said in error.message.replace(f"{error.location.path.parent}/", "")
    assert error.location.line == (6 if "'<" in error.message or "listed" in said else 3)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("[a]", "embeddings: expected a mapping of names to files"),
        ("{toy: {sha256: abc}}", "the embedding 'toy' needs a 'path'"),
        ("{toy: {path: a.pt, sha256: abc}}", "sha256: 'abc' is none"),
        ("{a b: a.pt}", "'a b' can't name an embedding"),
        ("{'<toy>': a.pt}", "can't name an embedding"),
        ("{..: a.pt}", "can't name an embedding"),
        ("{toy: ../a.pt}", "leaves the manifest's folder"),
        ("{toy: [a.pt]}", "expected a text, not a list"),
        ("{toy: {path: a.pt, weight: 1}}", "unknown key 'weight'"),
    ],
)
def test_a_wrong_list_is_refused_whether_it_is_used_or_not(folder, model, listed, said):
    (folder / "m.yaml").write_text(f"{HEAD}embeddings: {listed}\njobs: [{{prompts: [cat], seed: 1}}]")
    with pytest.raises(ManifestError) as raised:
        read_request(folder / "m.yaml", settings.compose([f"model.path={model}"]))
    assert said in raised.value.message and raised.value.location.line == 3


def test_a_negative_counts_only_where_it_is_encoded(ask):
    body = "jobs: [{{prompts: [cat], negative: <nobody>, seed: 1, scale: {}}}]"
    assert named(ask(HEAD + LISTED + body.format(1)).items) == [[]]
    assert "'<nobody>'" in refused(ask, HEAD + LISTED + body.format(7.5)).message


def test_a_word_of_the_models_own_stays_what_it_is(folder, ask):
    own = tiny.save_model(folder / "own")
    for name in ("vocab.json", "merges.txt"):
        (own / "tokenizer").mkdir(exist_ok=True)
        (own / "tokenizer" / name).symlink_to(SHIPPED / name)
    (own / "tokenizer/added_tokens.json").write_text(json.dumps({"<cat-toy>": tiny.VOCABULARY}))
    file = own / "text_encoder/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": tiny.VOCABULARY + 1}))
    text = f"{HEAD}{LISTED}jobs: [{{prompts: [a <cat-toy> <toy>], seed: 1}}]"
    assert named(ask(text, f"model.path={own}").items) == [["toy"]]
    assert "'<cat-toy>'" in refused(ask, text).message


def test_every_model_that_can_meet_a_word_is_checked(ask, folder, model):
    models = f"models: {{a: {{path: {model}}}}}\n"
    text = f"{HEAD}{models}embeddings: {{wide: words/wide.safetensors, toy: words/toy.pt}}\njobs:\n"
    jobs = "- {prompts: [<toy>], seed: 1, model: a}\n- {prompts: [<wide>], seed: 1}\n"
    with pytest.raises(ManifestError, match="the model tiny has 16"):
        ask(text + jobs, "allow_outside=true")


def test_vectors_count_among_the_tokens_of_a_prompt(ask):
    words = " ".join(["cat"] * 72)
    assert ask(f"{HEAD}{LISTED}jobs: [{{prompts: ['{words} <toy>'], seed: 1}}]").count() == 1
    assert (
        "would be lost: '<toy>'"
        in refused(ask, f"{HEAD}{LISTED}jobs: [{{prompts: ['{words} red <toy>'], seed: 1}}]").message
    )
    assert (
        ask(f"{HEAD}{LISTED}jobs: [{{prompts: ['{words} red <toy>'], seed: 1, long_prompts: truncate}}]").count() == 1
    )


# ---- JSON lines


def line(**changes):
    return json.dumps({"prompt": "a <toy>", "seed": 1, "width": 64, "height": 64, "steps": 2} | changes) + "\n"


def test_a_line_may_name_files(ask, folder):
    text = line(embeddings={"toy": "words/toy.pt", "bad": "words/bad.safetensors"}) + line(seed=2)
    first, second = ask(text, name="items.jsonl").items
    assert named([first, second]) == [["toy"], []] and len(first.embeddings[0].sha256) == 64
    again = ask(
        line(embeddings={"toy": first.to_dict()["embeddings"]["toy"] | {"path": "words/toy.pt"}}), name="a.jsonl"
    )
    assert item_id(again.items[0]) == item_id(first)


def test_one_name_may_be_two_embeddings_in_lines(ask):
    prompt = " ".join(["cat"] * 74) + " <toy>"
    text = line(prompt=prompt, embeddings={"toy": "words/bad.safetensors"})
    [item] = ask(text, name="items.jsonl").items
    both = line(embeddings={"toy": "words/toy.pt"}) + text
    assert [each.embeddings[0].sha256 == item.embeddings[0].sha256 for each in ask(both, name="b.jsonl").items] == [
        False,
        True,
    ]
    assert (
        "would be lost"
        in refused(ask, text + line(prompt=prompt, embeddings={"toy": "words/toy.pt"}), name="c.jsonl").message
    )


@pytest.mark.parametrize(
    ("embeddings", "said"),
    [
        ({"bad": "words/bad.safetensors"}, "'<toy>', at column 3 of the text, is not listed under 'embeddings'"),
        ({}, "none are listed"),
        ({"toy": "../toy.pt"}, "leaves the manifest's folder"),
        ({"toy": "gone.pt"}, "the embedding 'toy'"),
        ({"toy": {"sha256": "f" * 64}}, "no path is recorded; its SHA-256 is ffff"),
        ({"toy": {"path": "words/toy.pt", "sha256": "f" * 64}}, "and not ffffffffffff"),
        ({"toy": {}}, "needs a 'path'"),
        ({"to y": "a"}, "can't name an embedding"),
        (["toy"], "expected a mapping"),
    ],
)
def test_what_is_wrong_in_a_line(ask, embeddings, said):
    error = refused(ask, line(prompt="x") + line(embeddings=embeddings), name="items.jsonl")
    assert said in error.message and error.location.line == 2


# ---- all verbs


def test_a_run_its_records_verify_and_extract(folder, model, capsys):
    (folder / "m.yaml").write_text(
        f"{HEAD}{LISTED}jobs: [{{prompts: [a <toy>, 'cat:1 <toy> dog:2', cat], negative: <bad>, seeds: 1}}]\n"
    )
    chosen = [f"model.path={model}", "device=cpu"]
    assert cli.main(["run", "m.yaml", *chosen, "out=first"]) == 0
    records = [orjson.loads(each) for each in (folder / "first/records.jsonl").read_bytes().splitlines()]
    check = Draft7Validator(record_schema.make_schema())
    for record in records:
        check.validate(record)
    assert [sorted(record["item"]["embeddings"]) for record in records] == [["bad", "toy"], ["bad", "toy"], ["bad"]]
    toy = records[0]["item"]["embeddings"]["toy"]
    assert toy["path"] == str(folder / "words/toy.pt") and len(toy["sha256"]) == 64

    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/r.jsonl").write_bytes((folder / "first/records.jsonl").read_bytes())
    assert cli.main(["run", "elsewhere/r.jsonl", *chosen, "out=second"]) == 0
    again = [orjson.loads(each) for each in (folder / "second/records.jsonl").read_bytes().splitlines()]
    assert [(each["id"], each["sha256"]) for each in again] == [(each["id"], each["sha256"]) for each in records]

    assert cli.main(["verify", "second", *chosen]) == 0
    pictures = sorted(map(str, (folder / "first/images").rglob("*.png")))
    capsys.readouterr()
    assert cli.main(["extract", *pictures]) == 0
    made = capsys.readouterr().out
    assert f"toy:\n    path: embeddings/toy.safetensors\n    sha256: {toy['sha256']}\n" in made
    assert "say under 'embeddings' where their files are" in made
    (folder / "embeddings").mkdir()
    save_file({"emb_params": torch.load("words/toy.pt")["string_to_param"]["*"]}, "embeddings/toy.safetensors")
    (folder / "embeddings/bad.safetensors").write_bytes((folder / "words/bad.safetensors").read_bytes())
    (folder / "again.yaml").write_text(made)
    request = read_request(folder / "again.yaml", settings.compose(chosen))
    assert {item_id(item) for item in request.items} == {record["id"] for record in records}
    (folder / "embeddings/bad.safetensors").write_bytes((folder / "words/wide.safetensors").read_bytes())
    with pytest.raises(ManifestError, match=r"the embedding 'bad'.*holds another embedding"):
        read_request(folder / "again.yaml", settings.compose(chosen))


def test_what_has_become_of_an_embedding_is_said(folder, model, capsys):
    (folder / "m.yaml").write_text(f"{HEAD}{LISTED}jobs: [{{prompts: [a <toy>, cat], seeds: 1}}]\n")
    chosen = [f"model.path={model}", "device=cpu"]
    assert cli.main(["run", "m.yaml", *chosen, "out=made"]) == 0
    torch.save({"string_to_param": {"*": torch.ones(3, 16)}}, "words/toy.pt")
    capsys.readouterr()
    assert cli.main(["verify", "made", *chosen]) == 3
    said = capsys.readouterr().out
    assert "1 same, 1 failed" in said and "toy.pt: holds another embedding than the one that is asked for" in said
    assert cli.main(["run", "made/records.jsonl", *chosen, "out=again"]) == 4
    assert "holds another embedding" in capsys.readouterr().err
    record, plain = [orjson.loads(each) for each in (folder / "made/records.jsonl").read_bytes().splitlines()]
    record["item"]["embeddings"]["toy"]["sha256"] = "0" * 64
    (folder / "made/records.jsonl").write_bytes(orjson.dumps(record) + b"\n" + orjson.dumps(plain) + b"\n")
    assert cli.main(["verify", "made", *chosen]) == 5
    assert "the id is not that of the item and the weights" in capsys.readouterr().out


def test_two_embeddings_of_one_name_are_not_one_manifest(folder, model, capsys):
    (folder / "m.yaml").write_text(f"{HEAD}{LISTED}jobs: [{{prompts: [a <toy>], seeds: 1}}]\n")
    chosen = [f"model.path={model}", "device=cpu"]
    assert cli.main(["run", "m.yaml", *chosen, "out=a"]) == 0
    torch.save({"string_to_param": {"*": torch.ones(3, 16)}}, "words/toy.pt")
    assert cli.main(["run", "m.yaml", *chosen, "out=b"]) == 0
    capsys.readouterr()
    cli.main(["extract", "a", "b"])
    assert "its <toy> is another one than that of a/" in capsys.readouterr().err
    (folder / "m.yaml").write_text(f"{HEAD}jobs: [{{prompts: [a <toy>], seeds: 1}}]\n")
    assert cli.main(["run", "m.yaml", *chosen, "out=c"]) == 0
    cli.main(["extract", "a", "c"])
    assert "its <toy> is another one than that of a/" in capsys.readouterr().err


def test_plan_reads_them_without_torch(folder, model):
    (folder / "m.yaml").write_text(
        f"{HEAD}{LISTED}jobs: [{{prompts: [a <toy>, <bad>], seeds: 1-3, long_prompts: truncate}}]\n"
    )
    words = ["plan", str(folder / "m.yaml"), f"model.path={model}"]
    assert heavy_after(f"from runner import cli; assert cli.main({words!r}) == 0") == []
