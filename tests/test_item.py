import hashlib
from typing import Any

import orjson
from builders import MODEL, make_item
from hypothesis import given
from strategies import any_item

from runner.item import Item, Part, item_id

KEYS = (
    "parts", "negative", "seed", "width", "height", "steps", "scale", "sampler", "eta", "format", "init_sha256", "crop",
    "strength", "fixed_code",
)  # fmt: skip


def plain_id(item: Item) -> str:
    """The id as it is defined."""
    wish = {key: getattr(item, key) for key in KEYS if getattr(item, key) is not None}
    wish["parts"] = [{"text": part.text, "weight": part.weight} for part in item.parts]
    if item.long_prompts == "chunk":
        wish["long_prompts"] = "chunk"
    learnt = {each.name: each.sha256 for each in item.embeddings}
    document = {"item": wish, "model": dict(item.model.fingerprints)} | ({"embeddings": learnt} if learnt else {})
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


@given(any_item())
def test_an_id_is_as_it_is_defined(item: Item) -> None:
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"long_prompts": "chunk"},
        {"long_prompts": "truncate", "negative": "chunk"},
        {"init_sha256": "ab" * 32, "crop": (0, 0, 64, 64), "strength": 0.5},
        {"fixed_code": 7, "seed": item.seed // 2},
        {"parts": (Part("a", 0.25), Part('"\\\u2028', 0.75))},
    )
    for each in changes:
        changed = item._replace(model=MODEL, **each)
        assert item_id(changed) == plain_id(changed)


def test_an_id_stays_what_it_is() -> None:
    expected = "89086dde26f13dacc5344efb34a13e33cd0fdc0938841d8610b0891ba1fd9d46"  # as the first versions made it
    assert item_id(make_item(model=MODEL)) == expected
