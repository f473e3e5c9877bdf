"""Pictures as they are found: texts in every place and encoding, and what other programs write."""

from __future__ import annotations

import io
import json
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from runner.images import foreign, infotext
from runner.images.metadata import EXIF_IFD, USER_COMMENT, read_metadata

TEXT = "a cät 猫, ☕\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512"


def png(*chunks, behind=True):
    """A PNG picture with chunks behind its image data, or before."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    data = file.getvalue()
    place = data.index(b"IEND" if behind else b"IDAT") - 4
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return io.BytesIO(data[:place] + made + data[place:])


def with_exif(kind, tags, comment=None, endian=">"):
    file, exif = io.BytesIO(), Image.Exif()
    exif.endian = endian
    for tag, value in tags.items():
        exif[tag] = value
    if comment is not None:
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
    Image.new("RGB", (64, 64)).save(file, kind, exif=exif.tobytes())
    return io.BytesIO(file.getvalue())


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"parameters\0" + TEXT.encode()),
        (b"zTXt", b"parameters\0\0" + zlib.compress(TEXT.encode())),
        (b"iTXt", b"parameters\0\0\0\0\0" + TEXT.encode()),
        (b"iTXt", b"parameters\0\1\0en\0x\0" + zlib.compress(TEXT.encode())),
    ],
    ids=["tEXt", "zTXt", "iTXt", "iTXt packed"],
)
def test_a_png_text_is_read_wherever_it_stands(chunk, behind):
    assert read_metadata(png(chunk, behind=behind)).parameters == TEXT


def test_latin_1_is_read_where_it_is_no_utf_8():
    assert read_metadata(png((b"tEXt", b"parameters\0" + "a cät".encode("latin-1")))).parameters == "a cät"


def test_exif_in_a_png_is_read():
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + TEXT.encode("utf-16-be")
    assert read_metadata(png((b"eXIf", exif.tobytes()[6:]))).parameters == TEXT


def test_a_bomb_of_text_takes_no_memory():
    packed = zlib.compress(bytes(1 << 28))
    assert len(read_metadata(png((b"zTXt", b"parameters\0\0" + packed))).parameters) <= 1 << 24


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    ("comment", "endian"),
    [
        (b"UNICODE\0" + TEXT.encode("utf-16-be"), ">"),
        (b"UNICODE\0" + TEXT.encode("utf-16-le"), "<"),
        (b"UNICODE\0" + TEXT.encode("utf-16-le"), ">"),
        (b"UNICODE\0" + b"\xff\xfe" + TEXT.encode("utf-16-le"), ">"),
        (b"UNICODE\0" + b"\xfe\xff" + TEXT.encode("utf-16-be"), "<"),
        (b"UNICODE\0" + TEXT.encode(), ">"),
        (b"UNICODE\0" + b"\xef\xbb\xbf" + TEXT.encode(), ">"),
        (b"ASCII\0\0\0" + TEXT.encode(), ">"),
        (bytes(8) + TEXT.encode(), ">"),
        (TEXT.encode(), "<"),
    ],
    ids=["be", "le", "le in be", "bom le", "bom be", "utf-8", "utf-8 bom", "ascii", "nuls", "bare"],
)
def test_a_user_comment_is_read_in_whatever_encoding(kind, comment, endian):
    assert read_metadata(with_exif(kind, {}, comment, endian)).parameters == TEXT


def test_a_comment_of_chinese_alone_is_no_utf_8():
    text = "一只猫坐在垫子上" * 3
    assert read_metadata(with_exif("JPEG", {}, b"UNICODE\0" + text.encode("utf-16-be"))).parameters == text


COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 7, "steps": 25, "cfg": 6.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1,
            "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "toy.safetensors", "model": ["4", 0], "clip": ["4", 1]}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["12", 0], "clip": ["4", 1]}},
    "12": {"class_type": "PrimitiveString", "inputs": {"value": "a red apple"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
}  # fmt: skip
SWARM = {
    "sui_image_params": {
        "prompt": "a red apple", "negativeprompt": "blurry", "seed": 7, "steps": 25, "cfgscale": 6.5, "width": 512,
        "height": 768, "sampler": "dpmpp_2m", "scheduler": "karras", "model": "v1-5", "loras": ["toy"],
    }
}  # fmt: skip
FOOOCUS = {
    "prompt": "a red apple", "negative_prompt": "blurry", "seed": "7", "steps": 25, "guidance_scale": 6.5,
    "resolution": "(512, 768)", "sampler": "dpmpp_2m_gpu", "scheduler": "karras", "base_model": "v1-5",
    "loras": ["toy"],
}  # fmt: skip
NOVELAI = {
    "prompt": "a red apple", "uc": "blurry", "seed": 7, "steps": 25, "scale": 6.5, "width": 512, "height": 768,
    "sampler": "k_dpmpp_2m", "noise_schedule": "karras", "loras": "toy",
}  # fmt: skip
INVOKE = {
    "positive_prompt": "a red apple", "negative_prompt": "blurry", "seed": 7, "steps": 25, "cfg_scale": 6.5,
    "width": 512, "height": 768, "scheduler": "dpmpp_2m_k", "model": {"name": "v1-5"}, "loras": ["toy"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("program", "texts"),
    [
        ("ComfyUI", {"prompt": json.dumps(COMFY), "workflow": "{}"}),
        ("SwarmUI", {"parameters": json.dumps(SWARM)}),
        ("Fooocus", {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"}),
        ("NovelAI", {"Comment": json.dumps(NOVELAI), "Software": "NovelAI", "Source": "v1-5"}),
        ("InvokeAI", {"invokeai_metadata": json.dumps(INVOKE)}),
    ],
)
def test_other_programs_say_what_was_wished_for_and_the_rest_is_named(program, texts):
    file, info = io.BytesIO(), PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    Image.new("RGB", (512, 768)).save(file, "PNG", pnginfo=info)
    found = read_metadata(io.BytesIO(file.getvalue()))
    made = foreign.read(found.texts, found.size)
    assert made.program == program
    wanted = {
        "prompt": "a red apple", "negative": "blurry", "seed": 7, "steps": 25, "scale": 6.5, "width": 512,
        "height": 768, "sampler": "dpmpp_2m_karras",
    }  # fmt: skip
    assert {key: made.record.get(key) for key in wanted} == wanted
    assert "v1-5" in made.model
    assert any("not carried over" in note and "toy" in note for note in made.notes)


def test_the_last_sampler_of_a_graph_counts():
    second = {"class_type": "KSamplerAdvanced", "inputs": COMFY["3"]["inputs"] | {"latent_image": ["9", 0], "steps": 9}}
    graph = {"1": second, "9": {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0]}}, **COMFY}
    made = foreign.read({"prompt": json.dumps(graph)}, (512, 768))
    assert made.record["steps"] == 9 and any("other samplers: 1" in note for note in made.notes)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_comfyuis_graph_in_a_cameras_name(kind):
    tags = {0x0110: "prompt:" + json.dumps(COMFY), 0x010F: "workflow:{}"}
    assert foreign.read(read_metadata(with_exif(kind, tags)).texts, (512, 768)).program == "ComfyUI"


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"3": {"class_type": "KSampler", "inputs": {"positive": ["3", 0], "negative": ["3", 0]}}}', "{}",
     '{"sui_image_params": {"prompt": 5}}', '{"a": ' * 2000 + "1" + "}" * 2000, '{"image": {"prompt": [5]}}'],
)  # fmt: skip
@pytest.mark.parametrize("key", ["prompt", "parameters", "Comment", "invokeai_metadata", "sd-metadata"])
def test_broken_texts_are_nothing_or_refused(key, text):
    try:
        found = foreign.read({key: text, "Software": "NovelAI"}, (64, 64))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert found is None or found.record["prompt"]


def test_a_text_in_one_line_loses_nothing():
    line = (
        "a cat, sitting Negative prompt: blurry, lowres, ugly, Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, odd"
    )
    record, notes, _ = infotext.read(line)
    assert (record["prompt"], record["negative"]) == ("a cat, sitting", "blurry, lowres, ugly")
    assert (record["steps"], record["seed"], record["scale"]) == (20, 5, 7)
    assert "not carried over: odd" in notes
    record, _, _ = infotext.read("Negative prompt: blurry, lowres, ugly, Steps: 20, Seed: 5, Size: 64x64")
    assert (record["prompt"], record["negative"]) == ("", "blurry, lowres, ugly")
