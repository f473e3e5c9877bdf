"""The three forms as the packages read them for which they are made: `webdataset` and `datasets`, without a network."""

import gc
import hashlib
import json
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import webdataset
from builders import make_item
from fake_engine import paint

from runner import cli
from runner.errors import Location
from runner.images.codec import encode
from runner.item import item_id
from runner.manifest.lines import read_item
from runner.record import item_dict, model_dict

# The first ones have neither init nor LoRAs; what comes later must not hurt whoever takes the types of the first.
ITEMS = [
    *(make_item(number=n, seed=n, prompt="cat", axes=(("seed", n),)) for n in range(6)),
    make_item(number=6, seed=2**63 - 1, prompt="2026-01-01", negative="ugly", scale=3.0),
    make_item(number=7, prompt='{"a": "Füchse\n\t✨"}', width=128, axes=(("scale", 7.5),)),
    make_item(number=8, prompt="", init="inits/a.png", init_sha256="0" * 64, strength=0.5, crop=(0, 0, 64, 64)),
    make_item(number=1_000_000_000, prompt="dog", extra=(("clip_skip", 2),)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder with all sorts of items."""
    place = tmp_path_factory.mktemp("forms") / "all sorts"
    lines = []
    for item in ITEMS:
        data, name = encode(paint(item), item), f"images/x/{item.number}.{item.format}"
        (place / name).parent.mkdir(exist_ok=True, parents=True)
        (place / name).write_bytes(data)
        written = {"image": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "seconds": {}}
        about = {"version": 1, "id": item_id(item), "status": "done", "item": item_dict(item)}
        lines.append(orjson.dumps(about | {"model": model_dict(item.model), "run": {}, "env": {}} | written))
    (place / "records.jsonl").write_bytes(b"\n".join([*lines, b""]))
    return place


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    def run(to):
        out = tmp_path_factory.mktemp(to) / "out"
        assert cli.main(["export", str(folder), f"to={to}", f"out={out}", "shard_size=100kB"]) == 0
        return out

    return run


@pytest.fixture
def load(tmp_path):
    """`datasets.load_dataset`, with a cache of its own."""
    import datasets

    datasets.disable_progress_bars()

    def read(*place, **options):
        return datasets.load_dataset(*map(str, place), split="train", cache_dir=str(tmp_path), **options)

    return read


def pixels(picture):
    return np.asarray(picture.convert("RGB"))


def check_rows(rows):
    """Whether a table has every item with its values and its picture."""
    rows = sorted(rows, key=lambda row: json.loads(row["record"])["item"]["number"])
    assert [row["text"] for row in rows] == [item.prompt for item in ITEMS]
    for row, item in zip(rows, ITEMS, strict=True):
        assert np.array_equal(pixels(row["image"]), paint(item))
        values = {key: row[key] for key in ("seed", "width", "height", "steps", "scale", "sampler", "negative")}
        assert values == {key: getattr(item, key) for key in values}
        assert row["id"] == item_id(item)
        assert json.loads(row["record"])["item"] == json.loads(orjson.dumps(item_dict(item)))


# webdataset leaves the closing of its files to Python.
LEFT_OPEN = ("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
files_left_open = pytest.mark.filterwarnings(*LEFT_OPEN)


def read_webdataset(files, *decoders):
    found = list(webdataset.WebDataset(list(map(str, files)), shardshuffle=False).decode(*decoders))
    gc.collect()
    return found


@files_left_open
def test_webdataset_reads_its_shards(exported):
    out = exported("webdataset")
    index = json.loads((out / "index.json").read_text())
    assert len(index["shardlist"]) > 1
    found = read_webdataset([out / shard["url"] for shard in index["shardlist"]], "rgb8")
    assert len(found) == sum(shard["nsamples"] for shard in index["shardlist"])
    for sample, item in zip(found, ITEMS, strict=True):
        assert np.array_equal(sample["png"], paint(item))
        assert (sample["txt"], sample["json"]["id"]) == (item.prompt, item_id(item))
        assert sample["__key__"] == f"{item.number:09d}-{item_id(item)[:12]}"


@files_left_open
def test_a_records_json_in_a_shard_makes_the_same_item(exported, tmp_path):
    found = read_webdataset(sorted(exported("webdataset").glob("*.tar")))
    for sample, item in zip(found, ITEMS, strict=True):
        if item.init is None:  # that picture isn't there
            wish = {key: value for key, value in sample["json"]["item"].items() if key != "model"}
            again = read_item(wish, number=0, location=Location(tmp_path / "x.jsonl"), model=item.model)
            assert item_id(again) == item_id(item)


def test_datasets_reads_shards_of_webdataset(exported, load):
    found = load(exported("webdataset"))
    assert found["txt"] == [item.prompt for item in ITEMS]
    assert [record["id"] for record in found["json"]] == list(map(item_id, ITEMS))
    assert np.array_equal(pixels(found[7]["png"]), paint(ITEMS[7]))


@pytest.mark.parametrize("to", ["imagefolder", "parquet"])
def test_datasets_reads_a_folder_by_its_names(exported, load, to):
    check_rows(load(exported(to)))


def test_datasets_reads_an_imagefolder(exported, load):
    check_rows(load("imagefolder", data_dir=str(exported("imagefolder"))))


def test_a_parquet_file_says_which_column_is_a_picture(exported):
    import datasets

    [first, *_] = sorted(Path(exported("parquet")).glob("*.parquet"))
    features = datasets.Features.from_arrow_schema(pq.read_schema(first))
    assert features["image"] == datasets.Image() and features["seed"] == datasets.Value("int64")
    assert pq.read_metadata(first).row_group(0).num_rows <= 100


def test_values_of_other_types_do_not_break_a_table(folder, tmp_path, load):
    lines = [orjson.loads(line) for line in (folder / "records.jsonl").read_bytes().splitlines()]
    lines[0]["item"] |= {"prompt": 7, "seed": 2**64 - 1, "scale": 5, "steps": None, "sampler": ["x"], "number": -1}
    lines[1]["item"] = lines[1]["model"] = None
    (tmp_path / "run/images").mkdir(parents=True)
    (tmp_path / "run/images/x").symlink_to(folder / "images/x")
    (tmp_path / "run/records.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    assert cli.main(["export", str(tmp_path / "run"), "to=parquet", f"out={tmp_path / 'out'}"]) == 0
    rows = {row["id"]: row for row in load(tmp_path / "out")}
    altered, bare = rows[lines[0]["id"]], rows[lines[1]["id"]]
    values = [altered[key] for key in ("text", "seed", "scale", "steps", "sampler")]
    assert values == ["", 0, 5, 0, ""]
    assert (bare["text"], bare["model"], bare["seed"]) == ("", "", 0)
    assert json.loads(altered["record"])["item"]["seed"] == 2**64 - 1
