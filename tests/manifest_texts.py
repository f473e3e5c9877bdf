"""What is read of a manifest's text, or why it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from schemas import complaints

from runner.errors import ManifestError
from runner.manifest.job import Job
from runner.manifest.read import Manifest, load


def read(folder: Path, text: str, *, outside: bool = False, **overrides: Any) -> Manifest:
    """The manifest of a text; the JSON schema has to accept what is read."""
    path = folder / "m.yaml"
    path.write_text(text, encoding="utf-8")
    found = load(path, overrides=overrides, allow_outside=outside)
    assert complaints(text) == []
    return found


def job(folder: Path, body: str, **overrides: Any) -> Job:
    """The only job of a manifest, written as a flow mapping."""
    return read(folder, f"version: 1\njobs:\n  - {body}\n", **overrides).jobs[0]


def values(job: Job, key: str) -> list[Any]:
    return list(job.columns[key])


def texts(job: Job) -> list[str]:
    return [prompt.text for prompt in values(job, "prompt")]


def refusal(folder: Path, text: str) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        read(folder, text)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    return caught.value
