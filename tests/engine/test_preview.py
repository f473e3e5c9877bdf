import numpy as np
import pytest
import tiny
import torch
from builders import make_item

from runner.device.component import Component
from runner.engine import autoencoder, preview, samplers
from runner.engine.executor import Executor
from runner.engine.samplers import ModelCall, NoiseSchedule
from runner.events import Rendered, StepDone
from runner.model import files
from runner.model.modules import build_module
from runner.planning.costs import VISITS, model_costs
from runner.planning.layouts import Execution
from runner.planning.waves import group


def run(model, look, **changes):
    """What becomes of some items: their pixels by their numbers, and the previews of each step."""
    items = [
        make_item(number=n, seed=n, sampler=name, steps=4, width=128 if n == 3 else 64)
        for n, name in enumerate(("ddim", "dpmpp_2m", "euler_a", "heun"))
    ]
    executor = Executor(model, Execution(costs=model_costs(model, "cpu", "float32"), **changes))
    made, seen = {}, []
    for wave in group(items, executor.execution):
        for event in executor.run(wave):
            if isinstance(event, Rendered):
                made[event.item.number] = event.pixels.tobytes()
            if isinstance(event, StepDone) and look:
                seen.append((len(wave.items), wave.items[0], event.preview()))
    return made, seen


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return files.find_model(str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.mark.parametrize("turbo", [True, False])
def test_looking_changes_no_byte(model, turbo):
    settings = {"dtype": "float32", "turbo": turbo, "unet_bs": 4}
    made, seen = run(model, True, **settings)
    assert run(model, False, **settings)[0] == made
    for count, item, pictures in seen:
        assert len(pictures) == count
        assert {(each.shape, each.dtype) for each in pictures} == {
            ((item.height // 8, item.width // 8, 3), np.dtype("uint8"))
        }


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_prediction_leads_back_to_the_picture(prediction):
    schedule = NoiseSchedule(prediction=prediction)
    pictures, latents = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    call = ModelCall(latents, 431.5)
    predicted = samplers.leading_to(pictures, call, schedule)
    assert torch.allclose(samplers.led_to(predicted, call, schedule), pictures, atol=1e-4)


def test_the_embedded_models_previews_have_the_pictures_colours():
    model = files.find_model("builtin:emoji")
    vae = Component(
        build_module(model, "vae"), model.tensors["vae"], device=torch.device("cpu"), dtype=torch.float32, mode=VISITS
    )
    found = preview.fit(vae)
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[16:48, 16:48] = (220, 50, 60)  # a red square on white
    with torch.inference_mode():
        latents = autoencoder.encode_picture(vae, picture).permute(1, 2, 0)
        colours = torch.cat([latents, torch.ones(8, 8, 1)], -1) @ found
    middle, corner = colours[3:5, 3:5].mean((0, 1)), colours[0, 0]
    assert middle[0] > 0.6 and middle[1:].max() < 0.4
    assert corner.min() > 0.75
