import pytest
import tiny
import torch

from runner.device import component as device_component
from runner.device.lanes import Lanes
from runner.device.units import find_units
from runner.kernels.replace import replace_layers
from runner.model import files
from runner.model.modules import build_module
from runner.planning.costs import STAYS, VISITS, WALKS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return files.find_model(str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")))


def make(model, mode, name="unet", place=None):
    cpu = torch.device("cpu")
    module = build_module(model, name)
    return device_component.Component(
        module, model.tensors[name], device=cpu, dtype=torch.float32, mode=mode, place=place
    )


def unet_calls(count, size=8):
    generator = torch.Generator().manual_seed(1)
    for index in range(count):
        latents = torch.randn((2, 4, size + 8 * (index % 2), size), generator=generator)
        context = torch.randn((2, 77, 16), generator=generator)
        times = torch.full((2,), 100.0 * index)
        yield lambda unet, x=latents, t=times, c=context: unet(x, t, encoder_hidden_states=c).sample


def test_weights_are_there_during_a_visit_only(model):
    component = make(model, VISITS)
    with component.visit() as unet:
        assert not any(parameter.is_meta for parameter in unet.parameters())
    assert all(parameter.is_meta for parameter in component.module.parameters())


def test_a_component_that_stays_is_read_once(model, monkeypatch):
    component = make(model, STAYS)
    with component.visit():
        pass
    monkeypatch.setattr(component.parking, "bring", lambda *_, **__: pytest.fail("read again"))
    with component.visit() as unet:
        assert not any(parameter.is_meta for parameter in unet.parameters())


def test_a_visit_may_be_of_parts_only(model):
    component = make(model, VISITS, "vae")
    with component.visit("decoder", "post_quant_conv") as vae:
        assert not any(parameter.is_meta for parameter in vae.decoder.parameters())
        assert all(parameter.is_meta for parameter in vae.encoder.parameters())
    assert all(parameter.is_meta for parameter in component.module.parameters())


@torch.inference_mode()
def test_a_component_may_change_its_mode(model):
    component, calls = make(model, STAYS), list(unet_calls(2))
    wanted = component.call_all(calls)
    for mode in (WALKS, VISITS, WALKS, STAYS, WALKS):
        component.change(mode)
        for found, expected in zip(component.call_all(calls), wanted, strict=True):
            assert torch.equal(found, expected)
        assert any(not parameter.is_meta for parameter in component.module.parameters()) == (mode == STAYS)


@torch.inference_mode()
def test_a_walk_gives_the_same_bits_as_the_resident_module(model):
    stays, walks = make(model, STAYS), make(model, WALKS)
    for count in (1, 4):
        calls = list(unet_calls(count))
        for resident, walked in zip(stays.call_all(calls), walks.call_all(calls), strict=True):
            assert torch.equal(resident, walked)


@torch.inference_mode()
@pytest.mark.parametrize("mode", [STAYS, VISITS, WALKS])
@pytest.mark.some(1)
def test_calls_side_by_side_give_the_same_bits(model, mode):
    """Five calls on two lanes, and on one of them, in a module whose layers pack their weights in the first call."""
    wanted = make(model, STAYS).call_all(list(unet_calls(5)))
    component = make(model, mode, place=Lanes(2))
    replace_layers(component.module, torch.float32)
    packed = make(model, STAYS)
    replace_layers(packed.module, torch.float32)
    for width in (2, 1, 2):
        component.place.width = width
        found = component.call_all(list(unet_calls(5)))
        for ours, same, near in zip(found, packed.call_all(list(unet_calls(5))), wanted, strict=True):
            assert torch.equal(ours, same)
            torch.testing.assert_close(ours, near)
    if mode == WALKS:
        assert set(component.walk.loads.values()) == {3}


@torch.inference_mode()
def test_each_unit_is_brought_once_for_all_calls(model):
    component = make(model, WALKS)
    for walk in range(1, 4):
        component.call_all(list(unet_calls(5)))
        assert set(component.walk.loads.values()) == {walk}
    assert len(component.walk.loads) > 10


@torch.inference_mode()
def test_no_more_than_a_unit_is_there_during_a_walk(model):
    component = make(model, WALKS)
    most = 0

    def watch(*_):
        nonlocal most
        most = max(most, sum(p.numel() for p in component.module.parameters() if not p.is_meta))

    for unit in component.walk.units.values():
        unit.module.register_forward_hook(watch)
    component.call_all(list(unet_calls(3)))
    largest = max(sum(p.numel() for p in unit.module.parameters()) for unit in component.walk.units.values())
    assert most == largest < model.parameters("unet") / 4
    assert all(parameter.is_meta for parameter in component.module.parameters())


def test_every_parameter_is_in_exactly_one_unit(model):
    for name in ("unet", "vae", "text_encoder"):
        module = build_module(model, name)
        units = find_units(module)
        found = [f"{unit}.{name}" for unit, part in units.items() for name, _ in part.named_parameters()]
        assert sorted(found) == sorted(name for name, _ in module.named_parameters())


@torch.inference_mode()
@pytest.mark.parametrize("place", [None, Lanes(2)])
def test_an_error_in_a_call_is_passed_on_and_the_next_walk_is_whole(model, place):
    component = make(model, WALKS, place=place)
    calls = list(unet_calls(2))

    def broken(unet):
        calls[0](unet)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        component.call_all([calls[1], broken])
    assert torch.equal(component.call_all(calls)[1], make(model, STAYS).call_all(calls)[1])


@pytest.mark.parametrize("mode", [STAYS, VISITS])
def test_an_error_while_weights_are_brought_leaves_none_behind(model, mode):
    """As when memory runs out at the tenth of the module's parts: the next, smaller layout needs all of it."""
    component = make(model, mode)
    brought, count = component.parking.bring, iter(range(100))

    class Short:
        by_layer = True

        def bring(self, *given, again):
            if next(count) == 10:
                raise torch.OutOfMemoryError("no memory for this part")
            return brought(*given, again=again)

    component.parking, whole = Short(), component.parking
    with pytest.raises(torch.OutOfMemoryError), component.visit():
        pass
    assert all(parameter.is_meta for parameter in component.module.parameters())
    component.parking = whole
    with component.visit() as module:
        assert not any(parameter.is_meta for parameter in module.parameters())
