"""Font files that tests make: bitmaps of one size with a few characters, each a filled box with a notch of its own."""

from __future__ import annotations

from pathlib import Path

NONE_SUCH = 0xE000  # stands for what a font lacks


def write_font(path: Path, characters: str, pixels: int = 32, *, blank: bool = False) -> Path:
    """A BDF font; a `blank` one says that it has the characters, and draws nothing."""
    codes = sorted({*map(ord, characters), NONE_SUCH})
    lines = ["STARTFONT 2.1", "FONT -t-t-medium-r-normal--0-0-75-75-c-0-iso10646-1", f"SIZE {pixels} 75 75"]
    lines += [f"FONTBOUNDINGBOX {pixels} {pixels} 0 0", "STARTPROPERTIES 5", f"PIXEL_SIZE {pixels}"]
    lines += [f"FONT_ASCENT {pixels}", "FONT_DESCENT 0", f"DEFAULT_CHAR {NONE_SUCH}", 'CHARSET_REGISTRY "ISO10646"']
    lines += ["ENDPROPERTIES", f"CHARS {len(codes)}"]
    for code in codes:
        full = (1 << pixels) - 1 ^ code % 0xFFFF
        row = f"{0 if blank or code == NONE_SUCH else full:0{pixels // 4}X}"
        lines += [f"STARTCHAR c{code:X}", f"ENCODING {code}", "SWIDTH 1000 0", f"DWIDTH {pixels} 0"]
        lines += [f"BBX {pixels} {pixels} 0 0", "BITMAP", *[row] * pixels, "ENDCHAR"]
    path.write_text("\n".join([*lines, "ENDFONT", ""]))
    return path
