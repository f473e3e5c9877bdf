"""Measures the embedded model: does it draw what it is asked for? `python evaluate.py --artwork SVG_FOLDER`.

Two runs of the runner itself, over the same 200 names and one seed each. First the plain names: the nearest training
pictures of the result (Euclidean distance of the pixels, after 2x2 averaging) are looked up, and names are ranked by
their nearest one. How sharp the result is, is how alike its edges are to those of the nearest picture of its own name:
the cosine between the differences of neighbouring pixels, 1 for the same picture, less for a blurred one. Then the
names on a coloured background: the colour that most of the border has, against the one that was asked for. Everything
is drawn from fixed seeds, so the same weights give the same numbers. The last line is JSON.
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
from PIL import Image, ImageDraw

NAMES = 200
SHOWN = 100  # on the sheet
SETTINGS = {"width": pictures.SIZE, "height": pictures.SIZE, "steps": 30, "scale": 4.0, "sampler": "dpmpp_2m"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artwork", type=Path, required=True, help="Twemoji's folder of SVG files")
    parser.add_argument("--model", default="builtin:emoji")
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    parser.add_argument("--seed", type=int, default=0, help="which names, and the first picture's seed")
    parser.add_argument("--sheet", type=Path, help="write the first hundred pictures with their names to this PNG")
    args = parser.parse_args()
    names = pictures.names()
    chosen = [names[i] for i in sorted(np.random.default_rng(args.seed).choice(len(names), NAMES, replace=False))]
    colours = [list(pictures.COLOURS)[index % len(pictures.COLOURS)] for index in range(NAMES)]
    captions = [pictures.caption(name, colour) for name, colour in zip(chosen, colours, strict=True)]
    out = args.out or Path(tempfile.mkdtemp())
    plain = render(chosen, args.model, out / "plain", args.seed)
    coloured = render(captions, args.model, out / "coloured", args.seed)
    ranks, edges = compare(plain, chosen, names, pictures.Artwork(args.artwork))
    seen = [border_colour(picture) for picture in coloured]
    result = {
        "names": NAMES,
        "of": len(names),
        **SETTINGS,
        "nearest": float(np.mean(ranks == 0)),
        "among_five_nearest": float(np.mean(ranks < 5)),
        "background": float(np.mean([a == b for a, b in zip(seen, colours, strict=True)])),
        "edges": round(float(np.mean(edges)), 3),
    }
    if args.sheet:
        write_sheet(plain[:: NAMES // SHOWN], chosen[:: NAMES // SHOWN], args.sheet)
    wrong = [name for name, rank in zip(chosen, ranks, strict=True) if rank >= 5]
    print(f"not among the five nearest: {', '.join(wrong) or 'none'}")
    print(json.dumps(result))


def render(prompts: list[str], model: str, folder: Path, first_seed: int) -> np.ndarray:
    """One picture of each prompt, uint8 [n, 128, 128, 3], each with its own seed."""
    folder.mkdir(parents=True, exist_ok=True)
    items = folder / "items.jsonl"
    lines = [
        json.dumps({"prompt": prompt, "seed": seed, **SETTINGS}) for seed, prompt in enumerate(prompts, first_seed)
    ]
    items.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "runner", "run", str(items), f"model.path={model}", f"out={folder / 'run'}"]
    subprocess.run(command, check=True)
    records = [json.loads(line) for line in (folder / "run/records.jsonl").read_text().splitlines()]
    files = {record["item"]["number"]: folder / "run" / record["image"] for record in records}
    return np.stack([np.asarray(Image.open(files[number]).convert("RGB")) for number in range(len(prompts))])


def compare(
    made: np.ndarray, wanted: list[str], names: list[str], artwork: pictures.Artwork
) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers for each picture: the place of its name, 0 being the nearest, and how alike its edges are."""
    queries = small(made)  # [n, 64 * 64 * 3]
    distances = np.empty((len(made), len(names)), dtype=np.float32)
    edges = np.zeros(len(made))
    for number, name in enumerate(names):
        views = np.stack([artwork.draw(number, place, pictures.COLOURS["white"]) for place in pictures.PLACES])
        rows = small(views)
        squares = (queries**2).sum(1)[:, None] + (rows**2).sum(1)[None] - 2 * queries @ rows.T
        distances[:, number] = squares.min(1)
        if name in wanted:
            picture = wanted.index(name)
            edges[picture] = edge_likeness(made[picture], views[squares[picture].argmin()])
    order = distances.argsort(1)
    return np.array([list(order[row]).index(names.index(name)) for row, name in enumerate(wanted)]), edges


def small(images: np.ndarray) -> np.ndarray:
    """Pictures averaged over 2x2 pixels, one row of numbers each."""
    half = pictures.SIZE // 2
    halved = images.reshape(len(images), half, 2, half, 2, 3).astype(np.float32).mean((2, 4))
    return halved.reshape(len(images), -1)


def edge_likeness(made: np.ndarray, wanted: np.ndarray) -> float:
    """The cosine between the differences of neighbouring pixels of two pictures, uint8 [128, 128, 3]."""
    a, b = (
        np.concatenate([np.diff(picture.astype(np.float32), axis=axis).ravel() for axis in (0, 1)])
        for picture in (made, wanted)
    )
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9))


def border_colour(picture: np.ndarray) -> str:
    """The name of the colour that is nearest to most of the outermost pixels."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]).astype(int)
    colours = np.array(list(pictures.COLOURS.values()))
    nearest = ((border[:, None] - colours[None]) ** 2).sum(-1).argmin(1)
    return list(pictures.COLOURS)[np.bincount(nearest).argmax()]


def write_sheet(shown: np.ndarray, names: list[str], file: Path) -> None:
    """Ten pictures in a row, each above its name."""
    side, text = pictures.SIZE, 14
    sheet = Image.new("RGB", (10 * side, -(-len(shown) // 10) * (side + text)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (picture, name) in enumerate(zip(shown, names, strict=True)):
        left, top = number % 10 * side, number // 10 * (side + text)
        sheet.paste(Image.fromarray(picture), (left, top))
        pen.text((left + 2, top + side), name[:20], fill="black")
    sheet.save(file)


if __name__ == "__main__":
    main()
