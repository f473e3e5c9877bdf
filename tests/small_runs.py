"""Small runs: manifests of a few pictures, an engine that paints without a model, and what became of their items."""

from fake_engine import FakeEngine

from runner.folder.ledger import iterate_records
from runner.folder.store import LocalStore
from runner.verbs.run import run as running

MANIFEST = """
version: 1
name: small
defaults: {width: 64, height: 64, steps: 3}
jobs:
  - prompts: [cat, "cat:1 dog:3", a tall tree]
    seeds: 1-4
  - prompts: [dog]
    seeds: 9
    matrix: {sampler: [euler_a, plms], scale: [1, 7.5], format: [png, jpg]}
"""

SMALL = "version: 1\njobs: [{prompts: [PROMPTS], seeds: SEEDS, width: 64, height: 64, steps: 1}]\n"


def small(prompts, seeds):
    return SMALL.replace("PROMPTS", prompts).replace("SEEDS", seeds)


def paint(request, **changes):
    return list(running.run(request, FakeEngine(**changes)))


def records_of(folder):
    return iterate_records(LocalStore(folder))


def hashes(folder):
    """What each finished item's id became."""
    return {record["id"]: record["pixels"] for record in records_of(folder) if record["status"] == "done"}
