"""The same pictures as Optimized Stable Diffusion: its samplers, written apart, against a run of a manifest."""

import json
from pathlib import Path

import numpy as np
import original
import pytest
import tiny
from PIL import Image, ImageDraw

from runner import settings
from runner.folder.ledger import iterate_records
from runner.model.tokens import SHIPPED
from runner.request import read_request
from runner.verbs.run import run as running

STEPS = 10
SCALE = 4.0  # the embedded model's own; see docs/differences.md for more
SEED = 27
PROMPT = "tiger face:1 panda face:3"
# In dB of the peak signal, against what the original writes: it cuts bytes off, which alone leaves 51.
WANTED = {
    "ddim": 48, "plms": 48, "lms": 48, "euler": 38, "heun": 34, "dpm2": 30, "euler_a": 48, "dpm2_a": 40,
}  # fmt: skip
SAME = 65  # against the same without its faults: single bytes differ by one, by the order of additions


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Of two pictures of bytes, in dB; infinite where they are the same."""
    error = np.square(one.astype(float) - other).mean()
    return float(10 * np.log10(255**2 / error)) if error else np.inf


def render(folder: Path, model: Path, jobs: str) -> dict[tuple[str, str, int], np.ndarray]:
    """The runner's pictures, by sampler, prompt and seed."""
    (folder / "m.yaml").write_text(f"version: 1\ndefaults: {{width: 64, height: 64, scale: {SCALE}}}\njobs:\n{jobs}")
    given = [f"model.path={model}", f"out={folder / 'out'}", "unet_bs=4", "precision=full", "skip_grid=true"]
    request = read_request(folder / "m.yaml", settings.compose(given))
    list(running.run(request))
    return {
        (record["item"]["sampler"], record["item"]["prompt"], record["item"]["seed"]): np.asarray(
            Image.open(request.store.folder / record["image"])
        )
        for record in iterate_records(request.store)
    }


@pytest.fixture(scope="module", params=["emoji", "tiny"])
def both(request, tmp_path_factory):
    """The original, and the runner's pictures of the same model."""
    folder = tmp_path_factory.mktemp(request.param)
    model = SHIPPED.parent if request.param == "emoji" else tiny.save_model(folder / "tiny")
    samplers = json.dumps(original.SAMPLERS)
    jobs = f"  - {{prompt: '{PROMPT}', seed: {SEED}, steps: {STEPS}, matrix: {{sampler: {samplers}}}}}\n"
    return original.Original(model, SHIPPED), render(folder, model, jobs)


@pytest.mark.parametrize("sampler", original.SAMPLERS)
@pytest.mark.some(8)
def test_pictures_are_the_originals(both, sampler):
    by_original, made = both
    picture = made[sampler, PROMPT, SEED]
    assert picture.std() > 10
    how = {"sampler": sampler, "steps": STEPS, "scale": SCALE}
    [wanted] = by_original.draw(PROMPT, [SEED], **how, half=True)
    [mended] = by_original.draw(PROMPT, [SEED], **how, faithful=False)
    assert psnr(picture, mended) >= SAME
    assert psnr(picture, wanted) >= WANTED[sampler]


def test_the_seeds_of_a_batch_count_up(tmp_path):
    how = {"sampler": "ddim", "steps": STEPS, "scale": SCALE, "faithful": False}
    wanted = original.Original(SHIPPED.parent, SHIPPED).draw("penguin", [5, 6, 7], **how)
    job = f"  - {{prompt: penguin, seed: 5, n_samples: 3, steps: {STEPS}, sampler: ddim}}\n"
    made = render(tmp_path, SHIPPED.parent, job)
    assert all(psnr(made["ddim", "penguin", 5 + place], picture) >= SAME for place, picture in enumerate(wanted))


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_img2img_is_the_originals_with_the_right_noise(tmp_path, eta):
    """The original adds the noise of one step higher than the first one it takes away."""
    sketch = Image.new("RGB", (64, 64), (50, 100, 220))
    ImageDraw.Draw(sketch).ellipse((12, 8, 52, 60), "white", "black", 8)
    sketch.save(tmp_path / "sketch.png")
    job = f"  - {{prompt: penguin, seed: 3, steps: {STEPS}, init: sketch.png, strength: 0.5, eta: {eta}}}\n"
    [picture] = render(tmp_path, SHIPPED.parent, job).values()
    by_original = original.Original(SHIPPED.parent, SHIPPED)
    how = {"sampler": "ddim", "steps": STEPS, "scale": SCALE, "eta": eta, "init": sketch, "strength": 0.5}
    [mended] = by_original.draw("penguin", [3], **how, faithful=False)
    [wanted] = by_original.draw("penguin", [3], **how)
    assert psnr(picture, mended) >= SAME
    assert psnr(picture, wanted) < 40
