"""Reads a picture's settings into a form: its own metadata, or that of another program, by what `extract` finds.

No pixel is decoded, and nothing of the file is kept.

    found = read_picture(Path("apple.png"), choices.loras)
    found.form["prompt"], found.notes
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import SettingError
from runner.text import shorten
from runner.verbs.extract import extract
from runner.web import forms

LONGEST_NOTE = 300  # characters
ABOUT_FILES = ("say under ", "the init picture", "the mask")  # notes that are for a manifest's author


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The values that a picture has for a form, and what can't be carried over."""

    form: Mapping[str, Any]
    notes: tuple[str, ...]


def read_picture(path: Path, loras: Mapping[str, Path]) -> Found:
    """What a picture file says of how it was made; `loras` are those that are there.

    Raises:
        SettingError: it says nothing that is known.
    """
    extraction = extract([path])
    if not extraction.manifest:
        said = "; ".join(extraction.problems).replace(f"{path}: ", "").replace(str(path), path.name)
        raise SettingError(f"{shorten(path.name)}: {shorten(said, LONGEST_NOTE)}")
    form = forms.from_manifest(extraction.manifest)
    asked = dict(form.get("loras", {}))
    form["loras"] = {key: weight for key, weight in asked.items() if key in loras}
    notes = [_without_files(note) for note in extraction.notes if not note.startswith(ABOUT_FILES)]
    notes += [f"there is no LoRA '{key}' here" for key in asked if key not in loras]
    notes += _of_pictures(extraction.manifest)
    return Found(form=form, notes=tuple(shorten(note, LONGEST_NOTE) for note in notes))


def _without_files(note: str) -> str:
    return re.sub(r" \(all pictures\)$", "", note)


def _of_pictures(manifest: str) -> list[str]:
    kind = forms.kind_of(manifest)
    made = {forms.IMG2IMG: "it was made from another picture, which isn't in it: drop that one into img2img"}
    made[forms.INPAINT] = "it was inpainted: its init picture and its mask aren't in it"
    return [made[kind]] if kind in made else []
