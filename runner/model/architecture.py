"""What a family of models is made of, as plain data: components, fragments, texts, latents, and what memory it takes.

A new family is a new value here, with its tensors' names in `single_file` and, if its UNet is told more than a prompt,
fields in `engine.conditions`. Sizes that differ between models of a family are read from a model's own files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

USUAL_UNITS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A module of the model.

    `module` is the class that diffusers or transformers has for it. `fragments` are its parts with fingerprints of
    their own, each with the beginnings of its tensors' names; a part without any has all the others. `units` says how
    finely its weights are cut where they walk: a unit has at most about one in so many of them.
    """

    module: str
    fragments: Mapping[str, tuple[str, ...]]
    units: int = USUAL_UNITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text encoder: what a single file doesn't say about it, and what of it the UNet is told.

    `pad_token` is what prompts are filled up with, None for the end token. `layer` is the layer whose output is used,
    counted from the last one, which is 1, unless a picture asks for another one. `normed` says whether the last
    layer's norm is applied to it, `pooled` whether the whole prompt as one vector is used too. `tokenizer` is the
    folder of its tokenizer.
    """

    activation: str
    pad_token: str | None = None
    layer: int = 1
    normed: bool = True
    pooled: bool = False
    tokenizer: str = "tokenizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The constants of the formula of memory (`planning.costs`), measured with a model of the family.

    `text_bytes` are those of a call of the text encoder. `unet_held` numbers are held at once for each latent and each
    channel of the UNet's first block, and `widest_layer` by its widest layer alone (a gated feed-forward layer);
    `decoder_held` for each pixel and channel of the decoder's last block.
    """

    text_bytes: int = 24 << 20
    unet_held: int = 30
    widest_layer: int = 16
    decoder_held: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of models.

    `texts` are its text encoders by component; the UNet is told what they say side by side. `sizes` says whether it is
    told sizes as well, `zeros` whether no negative prompt is zeros, where no file says it. `scaling` and `upcast` are
    what a single file doesn't say about the autoencoder: what latents are divided by, and whether it overflows in half
    precision. `latent_channels` and `sample_size` (latents along one side) count where a configuration has no value.
    Every attention in the UNet has `heads` heads, or else heads of `head_size` channels. `prediction` is what a single
    file's UNet predicts, `auto` if there are models of both kinds with the same tensors.
    """

    name: str
    texts: Mapping[str, Text]
    prediction: str
    sizes: bool = False
    zeros: bool = False
    scaling: float = 0.18215
    upcast: bool = False
    heads: int | None = None
    head_size: int = 64
    components: Mapping[str, Component]
    latent_channels: int = 4
    sample_size: int = 64
    memory: Memory = field(default_factory=Memory)

    @property
    def text(self) -> Text:
        """The first text encoder."""
        return next(iter(self.texts.values()))

    @property
    def fragments(self) -> tuple[str, ...]:
        """All fragments, in the order of the record."""
        return tuple(fragment for component in self.components.values() for fragment in component.fragments)

    def fragment_of(self, component: str, tensor: str) -> str:
        """The fragment that a component's tensor belongs to."""
        parts = self.components[component].fragments
        named = (fragment for fragment, beginnings in parts.items() if beginnings and tensor.startswith(beginnings))
        return next(named, next(fragment for fragment, beginnings in parts.items() if not beginnings))


LATENT_DIFFUSION: Mapping[str, Component] = {
    "text_encoder": Component(module="CLIPTextModel", fragments={"text_encoder": ()}),
    "unet": Component(  # cut where the original cut it, after the middle
        module="UNet2DConditionModel",
        fragments={"unet_encode": (), "unet_decode": ("up_blocks.", "conv_norm_out.", "conv_out.")},
    ),
    "vae": Component(module="AutoencoderKL", fragments={"vae": ()}),
}
V1 = Family(
    name="Stable Diffusion v1",
    texts={"text_encoder": Text(activation="quick_gelu")},
    prediction="epsilon",
    heads=8,
    components=LATENT_DIFFUSION,
)
V2 = Family(
    name="Stable Diffusion v2",
    texts={"text_encoder": Text(activation="gelu", pad_token="!")},
    prediction="auto",
    components=LATENT_DIFFUSION,
)
XL = Family(
    name="Stable Diffusion XL",
    texts={
        "text_encoder": Text(activation="quick_gelu", layer=2, normed=False),
        "text_encoder_2": Text(
            activation="gelu", pad_token="!", layer=2, normed=False, pooled=True, tokenizer="tokenizer_2"
        ),
    },
    prediction="epsilon",
    sizes=True,
    zeros=True,
    scaling=0.13025,
    upcast=True,
    components={
        "text_encoder": LATENT_DIFFUSION["text_encoder"],
        "text_encoder_2": Component(module="CLIPTextModelWithProjection", fragments={"text_encoder_2": ()}),
        "unet": Component(  # cut after the middle; a unit is about one of its transformer's layers
            module="UNet2DConditionModel",
            fragments={"unet_in": (), "unet_out": ("up_blocks.", "conv_norm_out.", "conv_out.")},
            units=80,
        ),
        "vae": LATENT_DIFFUSION["vae"],
    },
    sample_size=128,
)


def family_of(activation: str, *, two_encoders: bool) -> Family:
    """The family of a diffusers folder, by the activation of its text encoder, and whether there is a second one."""
    if two_encoders:
        return XL
    return next((family for family in (V1, V2) if family.text.activation == activation), V1)
