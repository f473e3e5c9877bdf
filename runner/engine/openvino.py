"""The UNet compiled, by torch's inductor or for OpenVINO's runtime, and called as the module itself would be.

Every shape of a call is compiled by itself: with a fixed shape a row's bits don't depend on what stands in the other
rows. `planning.choices` decides whether to compile, and with what.

    compile_unet(unet, model, execution)
    [predicted] = unet.call_all([lambda unet: unet(latents, times, encoder_hidden_states=context)[0]])
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runner.device.component import Component
from runner.device.lanes import Lanes
from runner.engine.conditions import Conditions, empty, unet_call
from runner.engine.inductor import SHAPES_KEPT, Inductor
from runner.errors import FolderUnwritable, ModelError, SettingError
from runner.files import writing_to
from runner.machine.cache import cache_folder
from runner.model.files import ModelFiles
from runner.model.fingerprints import fingerprints
from runner.model.modules import read_tensor
from runner.model.safetensors import StoredTensor
from runner.planning.layouts import Execution
from runner.record import INDUCTOR, OPENVINO

MORE_CONDITIONS = {"time_cond_proj_dim": "the scale", "addition_embed_type": "sizes"}  # by a configuration's keys
EXAMPLE_SIZE = 8  # latents along one side of what the UNet is converted with
FILE = "unet.xml"
CONVERTED_BY = ("openvino", "torch", "diffusers")
FORM = 2  # of the modules that are converted: upsamplers are merged
log = logging.getLogger(__name__)


def compile_unet(unet: Component, model: ModelFiles, execution: Execution) -> None:
    """Lets what `execution` names answer for the UNet; for OpenVINO it is converted, unless it was before.

    Raises:
        FolderUnwritable: the converted UNet can't be kept.
    """
    if execution.compiler == INDUCTOR:
        unet.substitute = Inductor(unet)
    elif execution.compiler == OPENVINO:
        if told := [what for key, what in MORE_CONDITIONS.items() if unet.config.get(key)]:
            raise SettingError(f"compile=openvino: {model.path} has a UNet that is told {told[0]}; set compile=false")
        exact = execution.dtype == "float32"
        precision = "f32" if exact else "bf16"
        lanes = unet.place.count if isinstance(unet.place, Lanes) else 0
        unet.substitute = OpenVino(unet, _converted(unet, model, exact=exact), precision, lanes)


class OpenVino:
    """The UNet as OpenVINO computes it on a CPU, from its file, in `precision` (`f32`, `bf16`).

    Torch's UNet isn't needed for it; what goes in and comes out is float32. `lanes` threads may call it side by side,
    and each has one thread for its call; with 0 one call has all threads. Weights that LoRAs change take the place of
    the file's; it is only where OpenVINO has merged one with another that the UNet is converted again.
    """

    def __init__(self, unet: Component, file: Path, precision: str, lanes: int) -> None:
        import openvino

        self._unet, self._core, self._file = unet, openvino.Core(), file
        self._properties = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": lanes or torch.get_num_threads(),
            **({"NUM_STREAMS": lanes} if lanes else {"PERFORMANCE_HINT": "LATENCY"}),
        }
        self._compiling = threading.Lock()
        self._compiled: OrderedDict[tuple[torch.Size, ...], _Compiled] = OrderedDict()

    def renew(self) -> None:
        """Compiles again, since the UNet has other weights now."""
        self._compiled.clear()

    def __call__(self, latents: Tensor, times: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        """The UNet's prediction [rows, 4, h, w], alone in a tuple."""
        inputs = [tensor.float().contiguous() for tensor in (latents, times, encoder_hidden_states)]
        with self._compiling:
            compiled = self._compile(tuple(tensor.shape for tensor in inputs))
        return (torch.from_numpy(compiled.infer(inputs)),)

    def _compile(self, shapes: tuple[torch.Size, ...]) -> _Compiled:
        if shapes in self._compiled:
            self._compiled.move_to_end(shapes)
            return self._compiled[shapes]
        while len(self._compiled) >= SHAPES_KEPT:
            self._compiled.popitem(last=False)
        try:
            model = self._core.read_model(self._file)
        except RuntimeError as error:
            raise ModelError(f"{self._file.parent}: is damaged; delete it, and the UNet is converted again") from error
        changed = {name: stored for name, stored in self._unet.parking.tensors.items() if stored.changes}
        if not _put_into(model, changed):
            model = _convert(self._unet)
        model.reshape({index: list(shape) for index, shape in enumerate(shapes)})
        self._compiled[shapes] = _Compiled(self._core.compile_model(model, "CPU", self._properties))
        return self._compiled[shapes]


def _put_into(model: Any, changed: Mapping[str, StoredTensor]) -> bool:
    """Puts weights into the places of those that have their names; False where one of them has none."""
    from openvino import opset13

    constants = {each.get_friendly_name(): each for each in model.get_ops() if each.get_type_name() == "Constant"}
    found = {name: constants.get(f"self.unet.{name}") for name in changed}
    if any(each is None or tuple(each.get_output_shape(0)) != changed[name].shape for name, each in found.items()):
        return False
    for name, old in found.items():
        assert old is not None
        weight = read_tensor(changed[name], torch.float32).numpy().astype(old.data.dtype)
        new = opset13.constant(weight, dtype=weight.dtype)
        for place in old.output(0).get_target_inputs():
            place.replace_source_output(new.output(0))
    return True


class _Compiled:
    """A UNet for one shape of its inputs; each thread that calls it has a request of its own."""

    def __init__(self, model: Any) -> None:
        self._model, self._requests = model, threading.local()

    def infer(self, inputs: Sequence[Tensor]) -> Any:
        """The prediction as an array; the inputs are read where they lie."""
        if not hasattr(self._requests, "own"):
            self._requests.own = self._model.create_infer_request()
        return self._requests.own.infer([tensor.numpy() for tensor in inputs], share_inputs=True)[0]


class _Positional(nn.Module):
    """The UNet with nothing but tensors around it."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, times: Tensor, context: Tensor) -> Tensor:
        """Its prediction."""
        return unet_call(latents, times, Conditions(context=context))(self.unet)


def _converted(unet: Component, model: ModelFiles, *, exact: bool) -> Path:
    """The UNet in OpenVINO's format, from the user's cache folder; weights are in float32 if `exact`, else float16."""
    folder = cache_folder() / "openvino" / _key(model, exact)
    if not (folder / FILE).exists():
        log.warning("converting the UNet for OpenVINO; this is done once for a model, and kept in %s", folder)
        with writing_to(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as place:
                new = Path(place, "new")
                _save(_convert(unet), new, exact=exact)
                if not folder.exists():  # another process may have been quicker
                    os.rename(new, folder)
    return folder / FILE


def _key(model: ModelFiles, exact: bool) -> str:
    """A name for all that has a say in the converted UNet."""
    hashes = [sha256 for name, sha256 in fingerprints(model).items() if name.startswith("unet")]
    said = [hashes, dict(model.configs["unet"]), exact, [version(name) for name in CONVERTED_BY], FORM]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def _convert(unet: Component) -> Any:
    import openvino

    rows, channels = 2, int(unet.config["in_channels"])
    example = (
        torch.zeros(rows, channels, EXAMPLE_SIZE, EXAMPLE_SIZE),
        torch.zeros(rows),
        empty(unet.config, rows, EXAMPLE_SIZE).context,
    )
    with unet.visit() as module, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about tracing: that the numbers of a shape become constants
        converted = openvino.convert_model(_Positional(module), example_input=example)
    return converted


def _save(converted: Any, folder: Path, *, exact: bool) -> None:
    """Writes it and looks whether it is whole: OpenVINO doesn't notice a full disk."""
    import openvino

    folder.mkdir()
    try:
        openvino.save_model(converted, folder / FILE, compress_to_fp16=not exact)
        openvino.Core().read_model(folder / FILE)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise FolderUnwritable(f"can't keep the UNet for OpenVINO in '{folder.parents[1]}': {reason}") from error
