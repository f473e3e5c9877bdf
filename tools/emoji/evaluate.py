"""Measures the embedded model: does it draw what it is asked for? `python evaluate.py --artwork SVG_FOLDER`.

Two runs of the runner itself, over the same 200 names and one seed each. First the plain names: the nearest training
pictures of the result (Euclidean distance of the pixels, after 2x2 averaging) are looked up, and names are ranked by
their nearest one. Then the names on a coloured background: the colour that most of the border has, against the one
that was asked for. Everything is drawn from fixed seeds, so the same weights give the same numbers. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pictures
from PIL import Image

NAMES = 200
VIEWS = 128  # training pictures of each name
SETTINGS = {"width": 64, "height": 64, "steps": 30, "scale": 4.0, "sampler": "dpmpp_2m"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artwork", type=Path, required=True, help="Twemoji's folder of SVG files")
    parser.add_argument("--model", default="builtin:emoji")
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    names = pictures.names()
    chosen = [names[index] for index in sorted(random.choice(len(names), NAMES, replace=False))]
    colours = [list(pictures.COLOURS)[index % len(pictures.COLOURS)] for index in range(NAMES)]
    out = args.out or Path(tempfile.mkdtemp())
    plain = render(chosen, args.model, out / "plain")
    coloured = render(
        [pictures.caption(name, colour) for name, colour in zip(chosen, colours, strict=True)],
        args.model,
        out / "coloured",
    )
    ranks = rank_names(plain, chosen, names, pictures.load_artwork(args.artwork), random)
    seen = [border_colour(picture) for picture in coloured]
    result = {
        "names": NAMES,
        "of": len(names),
        **SETTINGS,
        "nearest": float(np.mean(ranks == 0)),
        "among_five_nearest": float(np.mean(ranks < 5)),
        "background": float(np.mean([a == b for a, b in zip(seen, colours, strict=True)])),
    }
    wrong = [name for name, rank in zip(chosen, ranks, strict=True) if rank >= 5]
    print(f"not among the five nearest: {', '.join(wrong) or 'none'}")
    print(json.dumps(result))


def render(prompts: list[str], model: str, folder: Path) -> np.ndarray:
    """One picture of each prompt, uint8 [n, 64, 64, 3], each with its own seed."""
    folder.mkdir(parents=True, exist_ok=True)
    items = folder / "items.jsonl"
    lines = [json.dumps({"prompt": prompt, "seed": seed, **SETTINGS}) for seed, prompt in enumerate(prompts)]
    items.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "runner", "run", str(items), f"model.path={model}", f"out={folder / 'run'}"]
    subprocess.run(command, check=True)
    records = [json.loads(line) for line in (folder / "run/records.jsonl").read_text().splitlines()]
    files = {record["item"]["number"]: folder / "run" / record["image"] for record in records}
    return np.stack([np.asarray(Image.open(files[number]).convert("RGB")) for number in range(len(prompts))])


def rank_names(
    made: np.ndarray, wanted: list[str], names: list[str], artwork: list[Image.Image], random: np.random.Generator
) -> np.ndarray:
    """For each picture the place of its name, 0 being the nearest, when names are ordered by their nearest picture."""
    queries = small(made)  # [n, 32 * 32 * 3]
    distances = np.empty((len(made), len(names)), dtype=np.float32)
    for column, art in enumerate(artwork):
        places = [pictures.random_place(random) for _ in range(VIEWS)]
        views = small(np.stack([pictures.draw(art, place, pictures.COLOURS["white"]) for place in places]))
        squares = (queries**2).sum(1)[:, None] + (views**2).sum(1)[None] - 2 * queries @ views.T
        distances[:, column] = squares.min(1)
    order = distances.argsort(1)
    return np.array([list(order[row]).index(names.index(name)) for row, name in enumerate(wanted)])


def small(images: np.ndarray) -> np.ndarray:
    """Pictures averaged over 2x2 pixels, one row of numbers each."""
    halved = images.reshape(len(images), 32, 2, 32, 2, 3).astype(np.float32).mean((2, 4))
    return halved.reshape(len(images), -1)


def border_colour(picture: np.ndarray) -> str:
    """The name of the colour that is nearest to most of the outermost pixels."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]).astype(int)
    colours = np.array(list(pictures.COLOURS.values()))
    nearest = ((border[:, None] - colours[None]) ** 2).sum(-1).argmin(1)
    return list(pictures.COLOURS)[np.bincount(nearest).argmax()]


if __name__ == "__main__":
    main()
