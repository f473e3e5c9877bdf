"""Pictures made in two ways are mixed only if that is wanted, but what overflows is rendered again in float32."""

import dataclasses
import shutil

import pytest
from fake_engine import MAKING
from safetensors.torch import load_file, save_file
from small_runs import hashes, paint, small

from runner.engine import autoencoder
from runner.engine.start import plan_execution, start_engine
from runner.errors import SettingError
from runner.events import ItemFailed
from runner.folder.ledger import iterate_records
from runner.folder.store import LocalStore
from runner.verbs.run import run as running


def test_pictures_made_in_two_ways_are_mixed_only_if_that_is_wanted(ask):
    paint(ask(text=small("cat", "1-2")), unet_bs=4)
    with pytest.raises(SettingError, match="unet_bs was 4 and is now 2") as caught:
        paint(ask(text=small("cat", "1-3")), unet_bs=2)
    assert "mixed=true" in str(caught.value)
    _, loaded, *_, finished = paint(ask("mixed=true", text=small("cat", "1-3")), unet_bs=2)
    assert "unet_bs was 4 and is now 2" in loaded.notes[0]
    assert finished.done == 1
    assert paint(ask(text=small("cat", "1-4")), unet_bs=4)[-1].done == 1


def test_a_run_goes_on_after_it_took_a_lower_unet_bs_since_memory_ran_out(ask):
    paint(ask(text=small("cat", "1-2")), made={"unet_bs": 2, "lowered_from": 4})
    records = list(iterate_records(LocalStore(ask().store.folder)))
    assert [record["run"]["lowered_from"] for record in records] == [4, 4]
    _, loaded, *_, finished = paint(ask(text=small("cat", "1-3")), unet_bs=4)
    assert loaded.notes == ("pictures of 64x64 were made with unet_bs=2, since memory was short for 4",)
    assert finished.done == 1
    with pytest.raises(SettingError, match="unet_bs was 2 or 4 and is now 8"):
        paint(ask(text=small("cat", "1-4")), unet_bs=8)


def test_another_version_of_a_library_is_a_note(ask):
    paint(ask(text=small("cat", "1")), making=MAKING._replace(env=(("torch", "2.7"),)))
    loaded = paint(ask(text=small("cat", "1-2")), making=MAKING._replace(env=(("torch", "99.0"),)))[1]
    assert "torch was 2.7 and is now 99.0" in loaded.notes[0]


def overflowing(model, folder, component, tensor, row=slice(None)):
    """The model with some weights that are too large for float16; a norm behind them takes the size out again."""
    shutil.copytree(model, folder)
    [file] = (folder / component).glob("*.safetensors")
    weights = load_file(file)
    weights[tensor][row] *= 1e7
    save_file(weights, file)
    return folder


def run_in_half(request):
    [files] = request.models.values()
    execution = plan_execution(request.settings, files)
    half = dataclasses.replace(execution, dtype="float16", costs=execution.costs.in_dtype("float16"))
    return list(running.run(request, start_engine(request.settings, files, half)))


DOG = 1929  # the token of the word
OVERFLOWS = {
    "text": ("text_encoder", "embeddings.token_embedding.weight", DOG, 2, "the latents are not finite"),
    "unet": ("unet", "conv_in.weight", slice(None), 4, "the latents are not finite"),
    "decoder": ("vae", "decoder.conv_in.weight", slice(None), 4, "the decoded picture is not finite"),
}


@pytest.mark.some(1)
@pytest.mark.parametrize("place", OVERFLOWS)
def test_what_overflows_is_rendered_again_in_full_precision(ask, model, tmp_path, place):
    component, tensor, row, number, why = OVERFLOWS[place]
    broken = overflowing(model, tmp_path / "broken", component, tensor, row)
    text = small("cat, dog", "1-2")
    request = ask(f"model.path={broken}", text=text)
    events = run_in_half(request)
    assert events[-1].done == 4
    assert not any(isinstance(event, ItemFailed) for event in events)
    again = [record for record in iterate_records(request.store) if "rerendered" in record]
    assert len(again) == number
    assert all(record["rerendered"] == f"{why} in float16" for record in again)
    assert all(set(record["run"]["dtypes"].values()) == {"float32"} for record in again)
    in_full = ask(f"model.path={broken}", text=text, out="full")
    list(running.run(in_full))
    assert {record["id"]: record["pixels"] for record in again}.items() <= hashes(in_full.store.folder).items()


def test_what_still_overflows_in_full_precision_has_failed(ask, model, tmp_path):
    broken = overflowing(model, tmp_path / "broken", "unet", "conv_out.weight")
    for _ in range(5):  # beyond float32 as well
        weights = load_file(file := broken / "unet/diffusion_pytorch_model.safetensors")
        weights["conv_out.weight"] *= 1e7
        save_file(weights, file)
    request = ask(f"model.path={broken}", text=small("cat", "1-2"))
    finished = run_in_half(request)[-1]
    assert (finished.done, len(finished.failed)) == (0, 2)
    for record in iterate_records(request.store):
        assert record["error"] == {"class": "NotFinite", "message": "the latents are not finite in float32"}
        assert record["rerendered"] == "the latents are not finite in float16"


def test_a_picture_of_one_colour_is_suspicious_in_half_precision_only(ask, monkeypatch):
    original = autoencoder.decode
    monkeypatch.setattr(autoencoder, "decode", lambda *given: ((made * 0, good) for made, good in original(*given)))
    request = ask(text=small("cat", "1"))
    assert run_in_half(request)[-1].done == 1
    [record] = iterate_records(request.store)
    assert record["rerendered"] == "the picture is of one colour in float16"


def test_another_number_type_is_another_way(ask):
    request = ask(text=small("cat", "1"))
    list(running.run(request))
    with pytest.raises(SettingError, match="dtypes was float32 and is now float16"):
        run_in_half(ask(text=small("cat", "1-2")))


def test_turbo_and_memory_are_not_another_way(ask):
    list(running.run(ask("turbo=true", text=small("cat", "1"))))
    events = list(running.run(ask("turbo=false", "memory=8GiB", text=small("cat", "1-2"))))
    assert events[1].notes == ()
    assert events[-1].done == 1
