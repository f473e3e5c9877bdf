"""The UNet compiled, by torch's inductor or for OpenVINO's runtime, and called as the module itself would be.

Every shape of a call is compiled by itself: with a fixed shape a row's bits don't depend on what stands in the other
rows. For OpenVINO the UNet is two models then: what attention makes of the prompts alone, once for all steps, and the
rest. Whether and with what to compile is decided in `plan`.

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
from torch.utils.weak import WeakTensorKeyDictionary

from runner.device.component import Component
from runner.device.lanes import Lanes
from runner.engine.inductor import SHAPES_KEPT, Inductor
from runner.errors import FolderUnwritable, ModelError
from runner.files import writing_to
from runner.machine.cache import cache_folder
from runner.model.files import ModelFiles
from runner.model.fingerprints import fingerprints
from runner.planning.layouts import Execution
from runner.record import INDUCTOR, OPENVINO

EXAMPLE_SIZE = 8  # latents along one side of what the UNet is converted with
FILE = "unet.xml"
CONVERTED_BY = ("openvino", "torch", "diffusers")
FORM = 2  # of the modules that are converted: upsamplers are merged
PROMPTS = 2  # among a converted UNet's inputs: latents, times, prompts
ATTENTION = "ScaledDotProductAttention"  # OpenVINO's operator, of queries, keys and values
log = logging.getLogger(__name__)


def compile_unet(unet: Component, model: ModelFiles, execution: Execution) -> None:
    """Lets what `execution` names answer for the UNet; for OpenVINO it is converted, unless it was before.

    Raises:
        FolderUnwritable: the converted UNet can't be kept.
    """
    if execution.compiler == INDUCTOR:
        unet.substitute = Inductor(unet)
    elif execution.compiler == OPENVINO:
        exact = execution.dtype == "float32"
        precision = "f32" if exact else "bf16"
        lanes = unet.place.count if isinstance(unet.place, Lanes) else 0
        unet.substitute = OpenVino(_converted(unet, model, exact=exact), precision, lanes)


class OpenVino:
    """The UNet as OpenVINO computes it on a CPU, from its file, in `precision` (`f32`, `bf16`).

    Torch's UNet isn't needed for it; what goes in and comes out is float32. `lanes` threads may call it side by side,
    and each has one thread for its call; with 0 one call has all threads.
    """

    def __init__(self, file: Path, precision: str, lanes: int) -> None:
        import openvino

        self._core, self._file = openvino.Core(), file
        self._properties = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": lanes or torch.get_num_threads(),
            **({"NUM_STREAMS": lanes} if lanes else {"PERFORMANCE_HINT": "LATENCY"}),
        }
        self._compiling = threading.Lock()
        self._compiled: OrderedDict[tuple[torch.Size, ...], _Compiled] = OrderedDict()

    def __call__(self, latents: Tensor, times: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        """The UNet's prediction [rows, 4, h, w], alone in a tuple."""
        inputs = [tensor.float().contiguous() for tensor in (latents, times, encoder_hidden_states)]
        with self._compiling:
            compiled = self._compile(tuple(tensor.shape for tensor in inputs))
        kept = compiled.kept.get(encoder_hidden_states)
        if kept is None:
            kept = compiled.kept[encoder_hidden_states] = compiled.infer("of_prompts", inputs[PROMPTS:])
        return (torch.from_numpy(compiled.infer("rest", inputs, kept)[0]),)

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
        model.reshape({index: list(shape) for index, shape in enumerate(shapes)})
        parts = zip(("of_prompts", "rest"), _set_apart(model), strict=True)
        compiled = {name: self._core.compile_model(part, "CPU", self._properties) for name, part in parts}
        self._compiled[shapes] = _Compiled(compiled)
        return self._compiled[shapes]


class _Compiled:
    """A UNet for one shape: what is made `of_prompts` alone, and the `rest`, which takes that besides its inputs."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts, self._requests = parts, threading.local()
        self.kept = WeakTensorKeyDictionary()  # what was made of prompts, as long as their tensor is there

    def infer(self, name: str, inputs: Sequence[Tensor], more: Sequence[Any] = ()) -> list[Any]:
        """What a part makes; it reads its inputs where they lie, and returns copies."""
        if not hasattr(self._requests, name):  # each thread has its own
            setattr(self._requests, name, self._parts[name].create_infer_request())
        request: Any = getattr(self._requests, name)
        return list(request.infer([*(tensor.numpy() for tensor in inputs), *more], share_inputs=True).values())


def _set_apart(model: Any) -> tuple[Any, Any]:
    """The keys and values of the prompts as a model of their own, and the UNet that takes them as inputs.

    As in `layers`, they are those of attention with no more tokens of the image than the prompt has; there may be none.
    """
    from openvino import Model, opset13

    prompts = model.inputs[PROMPTS].get_node()
    fixed, apart = set[str](), {prompts.get_name()}  # nodes that depend on nothing, on the prompts alone
    results, inputs = [], []
    for node in model.get_ordered_ops():
        sources = {_source(each) for each in node.inputs()}
        if sources <= fixed and node.get_type_name() != "Parameter":
            fixed.add(node.get_name())
        elif sources and sources <= fixed | apart:
            apart.add(node.get_name())
        elif node.get_type_name() == ATTENTION:
            queries, *others = node.inputs()[:3]
            for each in others:
                if _source(each) in apart and queries.get_shape()[-2] <= each.get_shape()[-2]:
                    results.append(opset13.result(each.get_source_output()))
                    inputs.append(opset13.parameter(each.get_shape(), each.get_element_type()))
                    each.replace_source_output(inputs[-1].output(0))
    rest = Model(model.get_results(), [*model.get_parameters(), *inputs])
    return Model(results, [prompts]), rest


def _source(node_input: Any) -> str:
    name: str = node_input.get_source_output().get_node().get_name()
    return name


class _Positional(nn.Module):
    """The UNet with nothing but tensors around it."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, times: Tensor, context: Tensor) -> Tensor:
        """Its prediction."""
        predicted: Tensor = self.unet(latents, times, encoder_hidden_states=context, return_dict=False)[0]
        return predicted


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
        torch.zeros(rows, 77, int(unet.config["cross_attention_dim"])),
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
