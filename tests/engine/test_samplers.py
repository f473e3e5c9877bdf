import numpy as np
import pytest
import torch

from runner.engine import samplers
from runner.sampler_names import SAMPLERS, model_calls

SCHEDULE = samplers.NoiseSchedule()
NOISY = ("ddim", "euler_a", "dpm2_a", "dpmpp_2m_sde", "dpmpp_2m_sde_karras", "dpmpp_sde", "dpmpp_sde_karras", "lcm")


def made_up(call):
    return torch.sin(call.latents * 1.3 + call.timestep / 300)


def play(name, steps, seeds, *, predict=made_up, eta=0.0, schedule=SCHEDULE, pictures=None, skip=0):
    """Runs a sampler with a made-up model; returns the latents and the time steps that were asked for."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn((4, 8, 8), generator=generator) for generator in generators])
    begin = samplers.Start(noise=noise, generators=generators, pictures=pictures, skip=skip)
    return finish(samplers.start(name, schedule, steps=steps, eta=eta, begin=begin), predict)


def finish(run, predict=made_up):
    times = []
    try:
        call = next(run)
        while True:
            times.append(call.timestep)
            call = run.send(predict(call))
    except StopIteration as stop:
        return stop.value, times


def perfect(picture, schedule=SCHEDULE):
    """A model that knows the one picture there is: it predicts exactly the noise in what it is shown."""
    training = samplers._training_sigmas(schedule)

    def predict(call):
        low = min(int(call.timestep), 998)
        sigma = training[low] + (call.timestep - low) * (training[low + 1] - training[low])
        alpha = (sigma**2 + 1) ** -0.5
        noise = (call.latents - picture * alpha) / (sigma * alpha)
        if schedule.prediction == "v_prediction":
            return alpha * noise - sigma * alpha * picture
        return noise

    return predict


def test_every_sampler_of_the_interface_is_there():
    assert set(samplers.TABLE) == set(SAMPLERS)


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 50])
@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_the_same_bits_alone_and_among_others(name, steps):
    eta = 0.5 if name == "ddim" else 0.0
    together, times = play(name, steps, [5, 9, 2, 7], eta=eta)
    alone, _ = play(name, steps, [2], eta=eta)
    assert torch.equal(together[2:3], alone)
    assert together.isfinite().all()
    assert len(times) == model_calls(name, steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_step_begins_with_noise_alone(name):
    picture = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3)) * 0.7
    made, times = play(name, 1, [1], predict=perfect(picture))
    if name in ("ddim", "plms"):  # as in the original, whose only time step is then the last
        assert times == [1.0]
    else:
        assert times[0] == 999
        assert (made - picture).abs().max() < 0.12


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_model_leads_to_the_picture(name, prediction):
    schedule = samplers.NoiseSchedule(prediction=prediction)
    picture = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3)) * 0.7
    made, _ = play(name, 30, [1], predict=perfect(picture, schedule), schedule=schedule)
    assert (made - picture).abs().max() < 0.12  # the last step leaves what little noise the schedule starts with


@pytest.mark.parametrize("name", NOISY[:-1])  # for lcm the model has to be one of consistency
def test_pictures_are_as_different_as_those_that_the_model_has_learned(name):
    """Of normal pictures the right prediction is known; noise on the way must neither widen nor narrow them."""
    training = samplers._training_sigmas(SCHEDULE)

    def predict(call):
        sigma = float(np.interp(call.timestep, np.arange(1000), training))
        return call.latents * (sigma**2 + 1) ** 0.5 * sigma / (0.5**2 + sigma**2)

    made, _ = play(name, 250, range(40), predict=predict, eta=1.0 if name == "ddim" else 0.0)
    assert float(made.std()) == pytest.approx(0.5, rel=0.05)


def test_ddim_is_its_formula():
    """Song et al. 2021, equation 12, with the original's time steps: multiples of 20, and one more."""
    predict = lambda call: torch.sin(call.latents + call.timestep / 300)  # noqa: E731
    made, times = play("ddim", 50, [4], predict=predict)
    assert times == [float(t) for t in range(981, 0, -20)]
    sigmas = torch.tensor(samplers._training_sigmas(SCHEDULE))
    alphas = 1 / (1 + sigmas**2)
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(4)).double()
    for t in range(981, 0, -20):
        here, there = alphas[t], alphas[t - 20] if t > 20 else alphas[0]
        noise = predict(samplers.ModelCall(x, t))
        picture = (x - (1 - here).sqrt() * noise) / here.sqrt()
        x = there.sqrt() * picture + (1 - there).sqrt() * noise
    assert (made - x).abs().max() < 1e-4


def test_dpm2_takes_the_middle_on_the_cube_root():
    _, times = play("dpm2", 10, [0])
    assert len(times) == 20
    sigmas = samplers._training_sigmas(SCHEDULE)
    first, second = (
        float(sigmas[int(t)] + (t % 1) * (sigmas[min(int(t) + 1, 999)] - sigmas[int(t)])) for t in times[:2]
    )
    after = float(sigmas[888])
    assert second == pytest.approx(((first ** (1 / 3) + after ** (1 / 3)) / 2) ** 3, rel=1e-6)


@pytest.mark.parametrize("name", NOISY)
def test_noise_on_the_way_continues_the_images_own_generator(name):
    eta = 1.0 if name == "ddim" else 0.0
    torch.manual_seed(0)
    first, _ = play(name, 5, [8], eta=eta)
    torch.manual_seed(99)
    second, _ = play(name, 5, [8], eta=eta)
    assert torch.equal(first, second)
    generator = torch.Generator().manual_seed(8)
    noise = torch.randn((1, 4, 8, 8), generator=generator)
    other = samplers.Start(noise=noise, generators=[torch.Generator().manual_seed(9)])
    run = samplers.start(name, SCHEDULE, steps=5, eta=eta, begin=other)
    assert not torch.equal(first, finish(run)[0])
    if name == "ddim":
        assert not torch.equal(first, play(name, 5, [8], eta=0.0)[0])


def test_the_schedule_is_read_from_the_models_own_configuration():
    config = {"num_train_timesteps": 500, "beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear",
              "prediction_type": "v_prediction", "_class_name": "DDIMScheduler"}  # fmt: skip
    schedule = samplers.NoiseSchedule.from_config(config)
    assert (schedule.train_steps, schedule.beta_schedule, schedule.prediction) == (500, "linear", "v_prediction")


@pytest.mark.parametrize("skip", [1, 7, 28, 29])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_from_a_picture_makes_the_rest_of_the_steps(name, skip):
    """The noise that is added is the noise that the first step takes away: a perfect model gives the picture back."""
    picture = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3)) * 0.7
    made, times = play(name, 30, [1, 2], predict=perfect(picture), pictures=picture.expand(2, 4, 8, 8), skip=skip)
    assert (made - picture).abs().max() < 0.12
    assert len(times) == model_calls(name, 30 - skip)
    _, whole = play(name, 30, [1], predict=perfect(picture))
    assert times[0] in whole
    alone, _ = play(name, 30, [2], predict=perfect(picture), pictures=picture, skip=skip)
    assert torch.equal(alone, made[1:])


@pytest.mark.parametrize("name", SAMPLERS)
def test_strength_0_gives_the_picture_and_strength_1_begins_with_noise_alone(name):
    picture = torch.randn((1, 4, 8, 8))
    made, times = play(name, 10, [1], pictures=picture, skip=10)
    assert torch.equal(made, picture)
    assert times == []
    assert torch.equal(play(name, 10, [1], pictures=picture, skip=0)[0], play(name, 10, [1])[0])
