"""The fields of a form, as Gradio shows them: built, read as a form's values, filled with others, and marked as wrong.

form = build_form("txt2img", usual, choices, devices)
form.read(values)["prompt"], form.fill({"prompt": "a cat"}), form.mark({"steps": "should be at least 1"})
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from runner.item import EXTRA, MASK, MASK_BLUR
from runner.keys import AUTO, FORMATS, KEYS, LONG_PROMPTS, MOST_BLUR, SIZE_STEP, SPACINGS, SYNTAXES
from runner.manifest.loras import ONE
from runner.sampler_names import SAMPLERS
from runner.web.axes import AXES, COLUMNS, KEYS_OF_AXES, NONE, ROWS, example
from runner.web.choices import Choices
from runner.web.fitting import LARGEST_SIZE, OWN, WAYS
from runner.web.forms import IMG2IMG, INPAINT, MATRIX, TXT2IMG
from runner.web.text import plain

LARGEST_SCALE, USUAL_STEPS, MOST_WEIGHT = 30, 150, 2
OF_MASKS = (MASK, MASK_BLUR)  # which have a tab of their own
PICTURE_FIELD, PAINTED, BESIDE = "picture", "painted", "beside"  # fields of a form that hold pictures
PICTURES = (PICTURE_FIELD, PAINTED, BESIDE)
WHITE = "#ffffff"
MOST_LORAS = 5
MOST_EDITED, MOST_LAYERS = 8, 16  # pictures of editors that are on their way here, and layers of each
NO_LORA = "none"
MARK = "wrong-field"
CHOSEN = {"spacing": SPACINGS, "prompt_syntax": SYNTAXES}  # keys beyond the usual ones that are a choice
OWN_FIELDS = {"loras", "axes"}  # values of a form that are made of several fields


@dataclass(slots=True, kw_only=True)
class Form:
    """The fields by their names, most used first, each with the accordion that it may hide in, and the buttons."""

    fields: dict[str, Any] = field(default_factory=dict)
    homes: dict[str, Any] = field(default_factory=dict)
    groups: list[Any] = field(default_factory=list)  # the rows of LoRAs
    make: Any = None
    check: Any = None
    cancel: Any = None
    told: Any = None
    state: Any = None
    file: Any = None

    def all(self) -> list[Any]:
        """The fields, the accordions and the rows, in a fixed order."""
        return [*self.fields.values(), *dict.fromkeys(self.homes.values()), *self.groups]

    def add(self, found: Mapping[str, Any], home: Any = None) -> None:
        """Takes fields in, which lie in an accordion perhaps."""
        self.fields |= found
        if home is not None:
            self.homes |= dict.fromkeys(found, home)

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields' values as those of a form."""
        given = dict(zip(self.fields, values, strict=True))
        form = {name: value for name, value in given.items() if "/" not in name}
        chosen = ((given[f"lora/{n}"], given[f"weight/{n}"]) for n in range(MOST_LORAS))
        form["loras"] = {name: weight for name, weight in chosen if name not in (None, NO_LORA)}
        if f"{ROWS}/key" in given:
            form["axes"] = [(given[f"{axis}/key"], given[f"{axis}/values"] or "") for axis in AXES]
        return form

    def fill(self, form: Mapping[str, Any]) -> dict[Any, Any]:
        """The updates that show these values; what a field can't show is left as it is."""
        spread = {name: value for name, value in form.items() if name not in OWN_FIELDS}
        spread |= dict(_spread_loras(form)) if "loras" in form else {}
        spread |= dict(_spread_axes(form)) if "axes" in form else {}
        updates = {}
        for name, value in spread.items():
            if name in self.fields and name not in PICTURES and _fits(self.fields[name], value):
                updates[self.fields[name]] = _update(self.fields[name], value)
        if "loras" in form:
            shown = len(form["loras"]) + 1
            updates |= {group: gr.update(visible=n < shown) for n, group in enumerate(self.groups)}
        return updates

    def mark(self, wrong: Mapping[str, str]) -> dict[Any, Any]:
        """The updates that show what is wrong beside each field, and open the accordions that hide one."""
        updates: dict[Any, Any] = {}
        for name, message in wrong.items():
            if name in self.fields and hasattr(self.fields[name], "info"):
                updates[self.fields[name]] = gr.update(info=plain(message), elem_classes=[MARK])
            if name in self.homes:
                updates[self.homes[name]] = gr.update(open=True)
        return updates

    def unmark(self, names: Sequence[str]) -> dict[Any, Any]:
        """The updates that take marks away again."""
        marked = [self.fields[name] for name in names if hasattr(self.fields.get(name), "info")]
        return {each: gr.update(info=each.info, elem_classes=each.elem_classes) for each in marked}

    def choose_from(self, choices: Choices) -> dict[Any, Any]:
        """The updates that show what there is to choose from now."""
        updates = {self.fields["model"]: gr.update(choices=list(choices.models))}
        updates[self.fields["vae"]] = gr.update(choices=list(choices.vaes))
        for n in range(MOST_LORAS):
            updates[self.fields[f"lora/{n}"]] = gr.update(choices=[NO_LORA, *choices.loras])
        for axis in AXES if f"{ROWS}/key" in self.fields else ():
            updates[self.fields[f"{axis}/key"]] = gr.update(choices=axis_keys(choices))
        return updates


def axis_keys(choices: Choices) -> list[str]:
    """What an axis may be."""
    return [NONE, *KEYS_OF_AXES, *(f"{ONE}{name}" for name in choices.loras)]


def _spread_loras(form: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    named = [*form["loras"].items(), *[(NO_LORA, 1)] * MOST_LORAS][:MOST_LORAS]
    for n, (name, weight) in enumerate(named):
        yield f"lora/{n}", name
        yield f"weight/{n}", weight


def _spread_axes(form: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for axis, (key, text) in zip(AXES, [*form["axes"], (NONE, ""), (NONE, "")], strict=False):
        yield f"{axis}/key", key
        yield f"{axis}/values", text


def _fits(component: Any, value: Any) -> bool:
    """Whether a component can show a value at all."""
    if isinstance(component, gr.Number | gr.Slider):
        return type(value) in (int, float)
    return value is not None


def _update(component: Any, value: Any) -> Any:
    if isinstance(component, gr.Slider):
        return gr.update(
            value=value, minimum=min(component.minimum, value), maximum=max(component.maximum or value, value)
        )
    return gr.update(value=value if isinstance(component, gr.Number) else str(value))


# ---- how they are built


def build_form(kind: str, usual: Mapping[str, Any], choices: Choices, devices: list[str]) -> Form:
    """All fields of a kind of form."""
    form = Form()
    if kind in (IMG2IMG, INPAINT):
        form.add(_build_editor(kind))
    form.add(_build_texts(usual, kind))
    _build_buttons(form)
    if kind == MATRIX:
        form.add(_build_axes(choices))
    if kind in (IMG2IMG, INPAINT):
        form.add(_build_of_picture(usual))
    if kind == INPAINT:
        form.add({MASK_BLUR: slider("Soft edge", 0, MOST_BLUR, usual[MASK_BLUR], 1, info="pixels")})
    form.add(_build_usual_fields(usual))
    form.add(_build_model(usual, choices))
    if kind == MATRIX:
        with gr.Accordion("Begin with a picture", open=False) as home:
            form.add(_build_beside() | _build_of_picture(usual), home)
    with gr.Accordion("LoRAs", open=False) as home:
        form.add(_build_loras(choices, form.groups), home)
    with gr.Accordion("More about the picture", open=False) as home:
        form.add(_build_more_fields(usual), home)
    with gr.Accordion("How it is made", open=False) as home:
        form.add(_build_settings(usual, choices, devices), home)
    form.file = gr.File(
        label="Drop a picture to read its settings", file_types=["image"], type="filepath", height=110,
        elem_classes="drop",
    )  # fmt: skip
    return form


def _build_editor(kind: str) -> dict[str, Any]:
    """The picture to begin with; for inpainting it is painted over where it is to be made anew."""
    more: dict[str, Any] = {"label": "Picture"}
    if kind == INPAINT:
        brush = gr.Brush(default_size="auto", colors=[WHITE], default_color=WHITE, color_mode="fixed")
        more = {"label": "Paint the new area", "brush": brush}
    editor = gr.ImageEditor(
        type="pil", sources=["upload", "clipboard"], transforms=["crop"], layers=False, format="png", height=380,
        elem_classes="editor", **more,
    )  # fmt: skip
    _bound(editor)
    return {PAINTED if kind == INPAINT else PICTURE_FIELD: editor}


def _bound(editor: gr.ImageEditor) -> None:
    """Lets an editor keep few of the pictures that are sent to it until a button is pressed, with few layers each."""
    accept, kept = editor.accept_blobs, editor.blob_storage

    @functools.wraps(accept)  # with the mark that the browser may call it
    def accept_few(data: Any) -> Any:
        index = data.data.get("index") or "null"  # as the browser writes that there is none
        if index != "null" and not 0 <= int(index) < MOST_LAYERS:
            raise gr.Error(f"a picture has at most {MOST_LAYERS} layers")
        while len(kept) >= MOST_EDITED and data.data.get("id") not in kept:
            kept.pop(next(iter(kept)), None)
        return accept(data)

    editor.__dict__["accept_blobs"] = accept_few


def _build_texts(usual: Mapping[str, Any], kind: str) -> dict[str, Any]:
    prompt = gr.Textbox(
        usual["prompt"], label="Prompt", lines=3, max_lines=8, autofocus=kind == TXT2IMG,
        placeholder="a red apple    (or weighted: tabby cat:0.25 white duck:0.75)",
    )  # fmt: skip
    negative = gr.Textbox(
        usual["negative"], label="Negative prompt", lines=1, max_lines=4, placeholder="what should not be seen"
    )
    return {"prompt": prompt, "negative": negative}


def _build_buttons(form: Form) -> None:
    """The buttons, and below them what became of pressing one. None makes pictures before a visit has its form."""
    with gr.Row(elem_classes="buttons"):
        form.make = gr.Button(
            "Make pictures", variant="primary", scale=2, min_width=130, elem_classes="make", interactive=False
        )
        form.check = gr.Button("Check", scale=1, min_width=70)
        form.cancel = gr.Button("Cancel", interactive=False, scale=1, min_width=70)
    form.told = gr.HTML("", elem_classes="told", padding=False)
    form.state = gr.HTML("", elem_classes="how-far", padding=False)


def _build_of_picture(usual: Mapping[str, Any]) -> dict[str, Any]:
    strength = slider("Strength", 0, 1, usual["strength"], 0.01, info="0 keeps the picture, 1 forgets it")
    fit = gr.Radio(
        list(WAYS), value=usual["fit"], label="A picture of another shape",
        info=f"'{OWN}' leaves width and height to it",
    )  # fmt: skip
    return {"strength": strength, "fit": fit}


def _build_beside() -> dict[str, Any]:
    return {BESIDE: gr.Image(type="pil", sources=["upload", "clipboard"], label="Picture", height=220, buttons=[])}


def _build_axes(choices: Choices) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for axis, first in ((ROWS, "scale"), (COLUMNS, "steps")):
        with gr.Row():
            fields[f"{axis}/key"] = gr.Dropdown(
                axis_keys(choices), value=first, label=axis.capitalize(), scale=1, min_width=120
            )
            fields[f"{axis}/values"] = gr.Textbox(
                "", label=f"Values of the {axis}", info=example(first), lines=1, max_lines=8, scale=3, min_width=180
            )
    return fields


def _build_usual_fields(usual: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    with gr.Row():
        fields["n_samples"] = gr.Number(usual["n_samples"], precision=0, label="Pictures", min_width=80)
        fields["n_iter"] = gr.Number(usual["n_iter"], precision=0, label="Rounds", min_width=80)
        fields["seed"] = gr.Textbox(
            str(usual["seed"]), label="Seed", placeholder="random", min_width=120, max_length=1000
        )
    with gr.Row():
        fields["steps"] = slider("Steps", 1, max(USUAL_STEPS, usual["steps"]), usual["steps"], 1)
        fields["scale"] = slider("Scale", 1, LARGEST_SCALE, usual["scale"], 0.1)
    with gr.Row():
        for key in ("width", "height"):
            fields[key] = slider(key.capitalize(), SIZE_STEP, LARGEST_SIZE, usual[key], SIZE_STEP)
    return fields


def _build_model(usual: Mapping[str, Any], choices: Choices) -> dict[str, Any]:
    with gr.Row():
        sampler = gr.Dropdown(list(SAMPLERS), value=usual["sampler"], label="Sampler", min_width=140)
        model = gr.Dropdown(list(choices.models), value=usual["model"], label="Model", min_width=140)
    return {"sampler": sampler, "model": model}


def _build_loras(choices: Choices, groups: list[Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for n in range(MOST_LORAS):
        with gr.Row(visible=n == 0) as group:
            name = gr.Dropdown(
                [NO_LORA, *choices.loras], value=NO_LORA, label=f"LoRA {n + 1}", min_width=160, scale=2,
                info="files of the folder that web.loras= names" if n == 0 else None,
            )  # fmt: skip
            weight = gr.Number(1, label=f"Weight {n + 1}", step=0.05, min_width=80, scale=1)
        groups.append(group)
        fields |= {f"lora/{n}": name, f"weight/{n}": weight}
    return fields


def _build_more_fields(usual: Mapping[str, Any]) -> dict[str, Any]:
    """Item keys that few people change; a key without a field of its own kind is a text."""
    fields: dict[str, Any] = {}
    fields["long_prompts"] = gr.Radio(
        list(LONG_PROMPTS), value=usual["long_prompts"], label="A prompt that is too long",
        info="refused, cut off, or read in pieces",
    )  # fmt: skip
    with gr.Row():
        fields["eta"] = slider("Eta", 0, 1, usual["eta"], 0.05, info="of ddim and tcd only")
        fields["format"] = gr.Radio(list(FORMATS), value=usual["format"], label="Format", min_width=150)
    for key in (each for each in EXTRA if each not in OF_MASKS):
        shown = "" if usual[key] is None else str(usual[key])
        if key in CHOSEN:
            fields[key] = gr.Radio(list(CHOSEN[key]), value=shown or AUTO, label=key, info=KEYS[key].help)
        else:
            fields[key] = gr.Textbox(shown, label=key, info=KEYS[key].help)
    return fields


def _build_settings(usual: Mapping[str, Any], choices: Choices, devices: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    fields["vae"] = gr.Dropdown(list(choices.vaes), value=usual["vae"], label="Autoencoder (VAE)")
    with gr.Row():
        fields["precision"] = gr.Radio(["autocast", "full"], value=usual["precision"], label="Precision")
        fields["turbo"] = gr.Radio(
            ["auto", "true", "false"], value=usual["turbo"], label="Turbo", info="the UNet stays on the device"
        )
    with gr.Row():
        fields["unet_bs"] = gr.Textbox(
            usual["unet_bs"], label="unet_bs", info="rows in one UNet call, or auto", min_width=150
        )
        if len(devices) > 1:
            known = ["auto", *devices]
            fields["device"] = gr.Dropdown(known, value=usual["device"], label="Device", min_width=150)
    return fields


def slider(label: str, low: float, high: float, value: float, step: float, info: str | None = None) -> gr.Slider:
    """A slider without the buttons and numbers that take room."""
    return gr.Slider(
        low, high, value, step=step, label=label, info=info, min_width=150, buttons=[], elem_classes="slider"
    )
