import gc
import shutil
import weakref

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from runner.device.component import Component
from runner.model.architecture import LATENT_DIFFUSION as COMPONENTS
from runner.model.files import find_model
from runner.verbs.doctor import probes
from runner.verbs.doctor.probes import TYPES, measure, probe_large_layers, probe_model


@pytest.fixture(autouse=True)
def quick(limit):
    limit(probes, LEAST_CALLS=2)
    limit(probes, ENOUGH=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@torch.inference_mode()
def by_place(model, free=None):
    return {(probe.fragment, probe.dtype): probe for probe in probe_model(model, "cpu", free)}


def test_every_fragment_is_called_in_every_number_type(folder):
    found = by_place(find_model(str(folder)))
    assert list(found) == [(name, dtype) for name in COMPONENTS for dtype in TYPES]
    for probe in found.values():
        assert probe.finite and probe.seconds > 0 and not probe.problem
        assert (probe.relative is None) == (probe.dtype == "float32")
    for name in COMPONENTS:  # 8 and 11 bits of a number are kept
        assert 1e-5 < found[name, "float16"].relative < found[name, "bfloat16"].relative < 0.1


def test_weights_that_do_not_fit_walk_through_to_the_same_numbers(folder):
    model = find_model(str(folder))
    staying, walking = by_place(model), by_place(model, free=0)
    assert {key: probe.relative for key, probe in walking.items()} == {k: p.relative for k, p in staying.items()}


@pytest.mark.parametrize(
    ("component", "tensor"),
    [("text_encoder", "final_layer_norm.weight"), ("unet", "conv_in.weight"), ("vae", "decoder.conv_in.weight")],
)
def test_what_overflows_in_a_number_type_is_noticed(folder, tmp_path, component, tensor):
    shutil.copytree(folder, tmp_path / "broken")
    [file] = (tmp_path / "broken" / component).glob("*.safetensors")
    weights = load_file(file)
    weights[tensor] *= 1e7  # more than float16 holds, and no matter to the others
    save_file(weights, file)
    found = by_place(find_model(str(tmp_path / "broken")))
    bad = found.pop((component, "float16"))
    assert not bad.finite and bad.relative is None and not bad.problem
    assert all(probe.finite for probe in found.values())


def test_no_weights_of_one_probe_are_held_in_the_next(folder, monkeypatch):
    made = []

    def make(*given, **named):
        assert not any(component() for component in made)
        component = Component(*given, **named)
        made.append(weakref.ref(component))
        return component

    monkeypatch.setattr(probes, "Component", make)
    gc.disable()
    try:
        by_place(find_model(str(folder)))
    finally:
        gc.enable()
    assert len(made) == len(COMPONENTS) * len(TYPES)


def test_a_number_type_without_kernels_is_a_problem_and_no_crash():
    def call():
        raise RuntimeError("\"conv\" not implemented for 'Half'\nsecond line")

    probe, output = measure("unet", "float16", call, torch.ones(1))
    assert output is None
    assert (probe.finite, probe.seconds, probe.problem) == (False, None, "\"conv\" not implemented for 'Half'")


def test_the_first_call_is_not_counted(system, limit):
    clock = iter([0.0, 100.0, 100.0, 103.0, 103.0, 105.0])
    limit(probes, LEAST_CALLS=3)
    system(probes.time, perf_counter=lambda: next(clock))
    probe, _ = measure("unet", "float32", lambda: torch.ones(1), None)
    assert probe.seconds == 2.0


def test_how_far_it_is_from_float32():
    near, _ = measure("unet", "float16", lambda: torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    assert near.relative == pytest.approx(0.1)
    unknown, _ = measure("unet", "float16", lambda: torch.ones(2), torch.tensor([1.0, torch.nan]))
    assert (unknown.finite, unknown.relative) == (True, None)


def test_large_layers_in_the_types_that_may_be_chosen(limit):
    limit(probes, CHANNELS=16)
    limit(probes, SIDE=8)
    with torch.inference_mode():
        full, half = probe_large_layers("cpu")
    assert (full.dtype, half.dtype) == ("float32", "bfloat16")
    assert full.finite and half.finite and 1e-4 < half.relative < 0.05
