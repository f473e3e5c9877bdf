"""Finds the weights that an item or a record asks for, by path, by name or by fingerprint."""

from __future__ import annotations

import contextlib

from runner.errors import ModelError
from runner.item import Model
from runner.model.files import AUTO, BUILTIN, ModelFiles, find_model, place_of
from runner.model.fingerprints import fingerprints
from runner.record import Pairs
from runner.settings import ModelSettings, group_names, named_model

Seen = dict[tuple[str, str, str], tuple[ModelFiles, Pairs] | ModelError]  # what was found at a place already


def use_model(
    asked: Model, settings: ModelSettings, *, remembered: bool = True, seen: Seen | None = None
) -> tuple[Model, ModelFiles]:
    """The model that is asked for, with its place and its fingerprints; the settings' own where none is named.

    One with recorded fingerprints is the first of the settings' model, what lies at its recorded place, and the file of
    `conf/model/` with its name, that has the same ones. Where `seen` goes from call to call, a place is read once.

    Raises:
        ModelError: it isn't there, isn't a model, or has other weights than the recorded ones.
    """
    if not asked.fingerprints:
        place = asked if asked.path else settings
        there = asked._replace(path=place.path, prediction=place.prediction, vae=place.vae)
        return identify(there, remembered=remembered, seen=seen)
    places: list[Model | ModelSettings] = [settings, asked]
    places += [named_model(asked.name)] if asked.name in group_names("model") else []
    for place in places:
        prediction = asked.prediction if place.prediction == AUTO else place.prediction
        with contextlib.suppress(ModelError):  # the next one may be it
            there = asked._replace(path=place.path, prediction=prediction, vae=place.vae)
            found, files = identify(there, remembered=remembered, seen=seen)
            if dict(found.fingerprints) == dict(asked.fingerprints):
                return found, files
    where = f"neither at {asked.path} nor by model=" if asked.path else "not by model=, and no path is recorded"
    raise ModelError(f"no model with these fingerprints was found, {where}: {asked}. Pass model.path=")


def identify(asked: Model, *, remembered: bool = True, seen: Seen | None = None) -> tuple[Model, ModelFiles]:
    """What lies at a model's place, whatever was recorded of it; the paths of files become whole ones."""
    key, seen = (asked.path, asked.prediction, asked.vae), {} if seen is None else seen
    if key not in seen:
        try:
            files = find_model(*key)
            seen[key] = files, tuple(fingerprints(files, remembered=remembered).items())
        except ModelError as error:
            seen[key] = error
    found = seen[key]
    if isinstance(found, ModelError):
        raise found
    files, hashes = found
    path = asked.path if asked.path.startswith(BUILTIN) else str(files.path.resolve())
    vae = asked.vae and str(place_of(asked.vae).resolve())
    found_model = asked._replace(path=path, vae=vae, fingerprints=hashes, family=files.family.name)
    return found_model._replace(name=asked.name or files.name), files
