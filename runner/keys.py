"""The keys of an item: one row each, with all there is to know of it. Everything that names item keys reads this table.

A value is read from a node of the manifest (`manifest.nodes.Node`), which knows its place, so that an error can name
it. A key without a field in `Item` is kept in `Item.extra`, and is part of a record and of an id only where its value
is not the default: so a new key leaves the ids of older items as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.sampler_names import SAMPLERS

if TYPE_CHECKING:
    from runner.manifest.nodes import Node

Schema = Mapping[str, Any]
SIZE_STEP = 64  # pixels; sizes are multiples of it
MOST_STEPS = 500  # beyond, evenly spaced time steps no longer reach pure noise
LARGEST_SEED = 2**63 - 1  # of torch's generators
RANDOM_SEEDS = ("-1", "random")
LARGEST_SIZE, LARGEST_EDGE = 64 * SIZE_STEP, 10**6  # pixels
FORMATS = ("png", "jpg")
LONG_PROMPTS = ("error", "truncate", "chunk")
TEXT: Schema = {"type": ["string", "number", "boolean", "null"]}
SIZE: Schema = {"type": "integer", "minimum": SIZE_STEP, "maximum": LARGEST_SIZE, "multipleOf": SIZE_STEP}
EDGE: Schema = {"type": "integer", "minimum": 0, "maximum": LARGEST_EDGE}
PAIR: Schema = {"type": "array", "items": EDGE, "minItems": 2, "maxItems": 2}
AUTO, MOST_LAYERS = "auto", 32
LAYER: Schema = {"type": "integer", "minimum": 1, "maximum": MOST_LAYERS}
SPACINGS = (AUTO, "leading", "trailing", "linspace")
PLAIN, A1111 = "plain", "a1111"
SYNTAXES = (PLAIN, A1111)
MOST_STRENGTH = 100  # of a LoRA, in either direction
MOST_BLUR = 256  # pixels
_STRENGTH: Schema = {"type": "number", "minimum": -MOST_STRENGTH, "maximum": MOST_STRENGTH}
_STRENGTHS: Schema = {"unet": _STRENGTH, "text": _STRENGTH}
STRENGTH: Schema = {"anyOf": [_STRENGTH, {"type": "object", "properties": _STRENGTHS, "additionalProperties": False}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A row of the table.

    `read` gives the value of a node, or raises a ManifestError; `schema` is the same as JSON schema, which sees `1984`
    and `NO` as YAML does. `default` is the manifest's built-in one. `aliases` are other names that are read as well.
    `in_id` says whether another value is another picture; `nullable`, whether a record may have null there. `infotext`
    is AUTOMATIC1111's name for it, if it has one.
    """

    read: Callable[[Node], Any]
    schema: Schema
    help: str
    default: Any = None
    aliases: Sequence[str] = ()
    in_id: bool = True
    nullable: bool = False
    infotext: str = ""


def words(node: Node) -> str:
    """The text of a prompt."""
    text = node.text().strip()
    if node.doubtful_comment:
        raise node.error(
            f"a '#' after a space begins a comment, which cuts this text to {node}; "
            "quote the whole text, or put two spaces before the comment"
        )
    return text


def _size(node: Node) -> int:
    value = node.integer(SIZE_STEP, LARGEST_SIZE)
    if rest := value % SIZE_STEP:
        raise node.error(f"{node} is not a multiple of {SIZE_STEP}; {value - rest} and {value - rest + SIZE_STEP} are")
    return value


def _crop(node: Node) -> tuple[int, ...]:
    edges = tuple(edge.integer(0, LARGEST_EDGE) for edge in node.items())
    if len(edges) != 4:
        raise node.error("should be four numbers: [left, top, right, bottom]")
    return edges


def _pair(node: Node) -> tuple[int, ...]:
    numbers = tuple(number.integer(0, LARGEST_EDGE) for number in node.items())
    if len(numbers) != 2:
        raise node.error("should be two numbers")
    return numbers


def _clip_skip(node: Node) -> int | str:
    return AUTO if node.written == AUTO else node.integer(1, MOST_LAYERS)


def read_strength(node: Node) -> tuple[float, float]:
    """How strong a LoRA is in the UNet and in the text encoders: one number for both, or `{unet: 0.8, text: 0.4}`."""
    if not isinstance(node.value, dict):
        return (both := node.number(-MOST_STRENGTH, MOST_STRENGTH)), both
    given = node.mapping(("unet", "text"))
    unet, text = (given[key].number(-MOST_STRENGTH, MOST_STRENGTH) if key in given else 0.0 for key in ("unet", "text"))
    return unet, text


def _loras(node: Node) -> tuple[tuple[Node, Node], ...]:
    """The names with their weights, which `manifest.loras` reads: it knows the files."""
    if not isinstance(node.value, dict):
        raise node.error(f"expected names of LoRAs with their weights ({{ink: 0.8}}), not {node}")
    return tuple(node.value.items())


def refuse_random_seed(node: Node) -> None:
    """Other tools write -1 for a seed that is drawn."""
    if node.written.strip().lower() in RANDOM_SEEDS:
        raise node.error(f"{node}: leave the seed out, and one is drawn, kept in the run folder and used again")


def _seed(node: Node) -> int:
    refuse_random_seed(node)
    return node.integer(0, LARGEST_SEED)


def _sampler(node: Node) -> str:
    return node.choice(tuple(SAMPLERS), likely=node.text().removeprefix("k_"))


def whole_number(low: int, high: int, help: str, **more: Any) -> Key:
    """A key whose values are whole numbers, `low` and `high` included."""
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Key(read=lambda node: node.integer(low, high), schema=schema, help=help, **more)


def real_number(low: float, high: float, help: str, **more: Any) -> Key:
    """A key whose values are numbers, `low` and `high` included."""
    schema = {"type": "number", "minimum": low, "maximum": high}
    return Key(read=lambda node: node.number(low, high), schema=schema, help=help, **more)


def choice(known: Sequence[str], help: str, **more: Any) -> Key:
    """A key whose values are names."""
    return Key(read=lambda node: node.choice(known), schema={"enum": list(known)}, help=help, **more)


KEYS: dict[str, Key] = {
    "prompt": Key(
        read=words, schema=TEXT, help="What the picture shows; `words:number` makes a weighted part.", in_id=False
    ),
    "seed": Key(
        read=_seed, schema={"type": "integer", "minimum": 0, "maximum": LARGEST_SEED}, infotext="Seed",
        help="The seed of the picture's noise; without one it is drawn, and kept.",
    ),
    "negative": Key(
        read=words, schema=TEXT, help="What the picture should not show; a plain text.", default=""
    ),
    "width": Key(
        read=_size, schema=SIZE, help="Pixels; by default the init picture's own, or else 512.", aliases=["W"]
    ),
    "height": Key(
        read=_size, schema=SIZE, help="Pixels; by default the init picture's own, or else 512.", aliases=["H"]
    ),
    "steps": whole_number(
        1, MOST_STEPS, "Denoising steps.", default=50, aliases=["ddim_steps"], infotext="Steps"
    ),
    "scale": real_number(
        0, 100, "Guidance: how closely the prompt is followed; 1 switches it off, twice as fast.", default=7.5,
        infotext="CFG scale",
    ),
    "sampler": Key(
        read=_sampler, schema={"enum": list(SAMPLERS)}, help="The method of denoising.", default="ddim"
    ),
    "eta": real_number(
        0, 1, "Noise added in each step of ddim and tcd; other samplers don't know it.", default=0.0,
        aliases=["ddim_eta"], infotext="Eta DDIM",
    ),
    "format": choice(FORMATS, "The kind of the picture's file.", default="png"),
    "long_prompts": choice(
        LONG_PROMPTS, "What is done with more than 75 tokens: refused, cut, or read in pieces.", default="error"
    ),
    "init": Key(
        read=lambda node: node.text(), schema=TEXT,
        help="A picture to begin with (img2img); relative to this file. A job may list several, or name a pattern.",
        in_id=False, nullable=True,
    ),
    "mask": Key(
        read=lambda node: node.text(), schema=TEXT, in_id=False, nullable=True,
        help="A picture of the size of `init`: what is white in it is made anew (inpainting), all else is kept.",
    ),
    "mask_blur": whole_number(
        0, MOST_BLUR, "Pixels over which what is made anew fades into what is kept.", default=4, infotext="Mask blur"
    ),
    "crop": Key(
        read=_crop, schema={"type": "array", "items": EDGE, "minItems": 4, "maxItems": 4}, nullable=True,
        help="What is cut out of `init`, in pixels: [left, top, right, bottom].",
    ),
    "strength": real_number(
        0, 1, "How much of `init` is made anew: 0 gives it back, 1 begins with noise alone.", default=0.75,
        nullable=True,
    ),
    "fixed_code": Key(
        read=lambda node: node.flag(), schema={"type": "boolean"}, default=False, nullable=True,
        help="Every iteration begins with the noise of the first one's seeds.",
    ),
    "clip_skip": Key(
        read=_clip_skip, schema={"anyOf": [{"const": AUTO}, LAYER]}, default=AUTO, infotext="Clip skip",
        help="Which layer of the text encoder speaks, counted from the last one, which is 1; auto: the model's own.",
    ),
    "rescale": real_number(
        0, 1, "Guidance rescale: how much of the spread without guidance is kept; 0.7 for models of zero SNR.",
        default=0.0, infotext="CFG rescale phi",
    ),
    "spacing": choice(
        SPACINGS, "Which of the training steps are taken; auto: as the model's files say, or the sampler's own.",
        default=AUTO,
    ),
    "prompt_syntax": choice(
        SYNTAXES, "How the texts are read: weighted prompts (plain), or as AUTOMATIC1111 reads them.", default=PLAIN
    ),
    "loras": Key(
        read=_loras, schema={"type": "object", "additionalProperties": STRENGTH}, default=(), in_id=False,
        help="LoRAs by their names in the manifest's `loras`, with their weights; or {unet: 0.8, text: 0.4}.",
    ),
    "original_size": Key(
        read=_pair, schema=PAIR, nullable=True,
        help="Stable Diffusion XL: the size [width, height] of the picture that it should seem cut from; its own.",
    ),
    "target_size": Key(
        read=_pair, schema=PAIR, nullable=True,
        help="Stable Diffusion XL: the size [width, height] that it is told to make; the picture's own.",
    ),
    "crop_origin": Key(
        read=_pair, schema=PAIR, nullable=True,
        help="Stable Diffusion XL: where [left, top] the picture should seem cut out; [0, 0].",
    ),
    "model": Key(
        read=lambda node: node.text(), schema=TEXT, help="Whose weights: a name in `models`, or a file of conf/model/.",
        in_id=False,
    ),
}  # fmt: skip
