"""Decides how items will be made, without torch: device, precision, where the weights are, which items go together.

A layout says how pictures of one size are made. Layouts are tried from the fastest to the one that needs the least
memory, and the first that keeps the ceiling is taken. What may change a picture's rounding, `unet_bs` above all, is
the last thing to be changed, and is planned by the settings, the machine, the model and a picture's size alone: never
by how many items there are or which of them are still missing, by what is free or what was measured. These can only
lower it, and the record says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from runner.errors import SettingError
from runner.planning.costs import STAYS, VISITS, WALKS, Costs
from runner.record import NONE
from runner.text import show_size

CALL_PIXELS = {"cpu": 8192, "mps": 32768, "cuda": 65536}  # latent pixels in one UNet call
CARD_PIXELS = ((40, 16384), (100, 32768))  # the same for cards with fewer multiprocessors than this, which fewer fill
LEAST_ROWS, MOST_ROWS = 1, 32
LANE_PIXELS = 2048  # the same for a call that has one thread
SMALL_LATENTS = 1024  # latent pixels; a wave of pictures up to this size is several UNet calls long
CALLS_IN_SMALL_WAVE = 2
STREAMED_ROWS = 16  # in a wave whose weights are streamed: enough to hide the transfer
FAST_PROCESSORS, FAST_STREAMED_ROWS = 100, 48  # a card with so many multiprocessors needs more to do for that
LEAST_KEPT = 32 << 20  # bytes of units that stay; less makes no difference
MIB = 1 << 20

# What text encoders, the UNet and the autoencoder do.
ALL_STAY, UNET_STAYS, ALL_LEAVE = (STAYS, STAYS, STAYS), (VISITS, STAYS, VISITS), (WALKS, WALKS, VISITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How pictures of one size are made.

    `modes` says of each component whether it stays, visits or walks; a UNet call has `unet_bs` rows, a wave up to
    `wave_rows`; of a UNet that walks, units of up to `kept` bytes stay. `peak` is the memory in bytes that this should
    take, on a CPU that of the whole process.
    """

    modes: Mapping[str, str]
    unet_bs: int
    wave_rows: int
    peak: int
    kept: int = 0

    @property
    def turbo(self) -> bool:
        """Whether the UNet stays on the device."""
        return self.modes["unet"] == STAYS

    @property
    def way(self) -> tuple[object, ...]:
        """What it is, without what it should take and what may stay."""
        return *self.modes.items(), self.unet_bs, self.wave_rows

    def keeping(self, size: int) -> Layout:
        """The same, with units of up to so many bytes that stay."""
        size = size if size >= LEAST_KEPT else 0
        return replace(self, kept=size, peak=self.peak - self.kept + size)

    def __str__(self) -> str:
        kept = f" but for {show_size(self.kept)}" if self.kept else ""
        way = "the UNet on the device" if self.turbo else f"the UNet streamed{kept}"
        return f"{way}, unet_bs={self.unet_bs} and up to {self.wave_rows} rows a wave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How pictures are made on this machine. `turbo`, `unet_bs` and `limit` are None where they are free.

    `processors` are a card's multiprocessors, None where they aren't known. `limit` is the ceiling in bytes; where it
    is only `advice`, less than everything is done to keep it, but no error is made of it.
    """

    dtype: str
    costs: Costs
    turbo: bool | None = None
    unet_bs: int | None = None
    limit: int | None = None
    advice: bool = False
    processors: int | None = None

    @property
    def device(self) -> str:
        return self.costs.device

    @property
    def compiler(self) -> str:
        return self.costs.compiler

    @property
    def lanes(self) -> int:
        return self.costs.lanes

    def layouts(self, width: int, height: int) -> Iterator[Layout]:
        """The ways to make pictures of a size, from the fastest to the one that needs the least memory."""
        rows = self.unet_bs or self._most_rows(width, height)
        while rows:
            for modes in self._modes():
                for wave_rows in _wave_sizes(self._wave_rows(width, height, rows, modes), rows):
                    peak = self.costs.peak(modes, width, height, rows, wave_rows)
                    layout = Layout(modes=modes, unet_bs=rows, wave_rows=wave_rows, peak=peak)
                    yield layout.keeping(self._kept(layout))
            rows = 0 if self.unet_bs else rows // 2

    def planned_rows(self, width: int, height: int) -> int:
        """The rows of a UNet call as they should be in every run with these settings: `unet_bs` unless it's lowered."""
        asked = replace(self, limit=None if self.advice else self.limit, costs=replace(self.costs, measured={}))
        layout = asked._fastest(asked.layouts(width, height))
        return layout.unet_bs if layout else self.unet_bs or LEAST_ROWS

    def layout(self, width: int, height: int) -> Layout:
        """The fastest layout that keeps the ceiling.

        Raises:
            SettingError: none does; it names the least that one can.
        """
        planned = self.planned_rows(width, height)
        layouts = [layout for layout in self.layouts(width, height) if layout.unet_bs <= planned]
        if layout := self._fastest(layouts):
            return layout
        least = min(layouts, key=lambda layout: layout.peak)
        if self.advice:
            return least
        raise SettingError(
            f"memory={show_size(self.limit or 0)}: pictures of {width}x{height} need at least "
            f"memory={-(-least.peak // MIB)}MiB here" + (" with these settings" if self.unet_bs or self.turbo else "")
        )

    def _fastest(self, layouts: Iterable[Layout]) -> Layout | None:
        return next((layout for layout in layouts if self.limit is None or layout.peak <= self.limit), None)

    def _kept(self, layout: Layout) -> int:
        """How much of a UNet that walks may stay: what the ceiling leaves, unless little memory is asked for itself."""
        if layout.modes["unet"] != WALKS or self.limit is None or (self.advice and self.turbo is False):
            return 0
        return max(0, min(self.limit - layout.peak, self.costs.weights["unet"]))

    def _modes(self) -> Sequence[Mapping[str, str]]:
        if self.compiler != NONE:
            ways = [ALL_STAY, UNET_STAYS]
        elif self.turbo is None:
            ways = [ALL_STAY, UNET_STAYS, ALL_LEAVE]
        else:
            ways = [ALL_STAY, UNET_STAYS] if self.turbo else [ALL_LEAVE]
        return [self.modes(way) for way in ways]

    def modes(self, way: tuple[str, str, str]) -> Mapping[str, str]:
        """What each component does."""
        texts, unet, vae = way
        return {name: {"unet": unet, "vae": vae}.get(name, texts) for name in self.costs.weights}

    def _most_rows(self, width: int, height: int) -> int:
        pixels = LANE_PIXELS if self.lanes else CALL_PIXELS[self.device.partition(":")[0]]
        if self.processors:
            pixels = next((fewer for below, fewer in CARD_PIXELS if self.processors < below), pixels)
        fitting = pixels // self._latents(width, height)
        return min(MOST_ROWS, max(2, 1 << (fitting.bit_length() - 1) if fitting else 0))

    def _wave_rows(self, width: int, height: int, rows: int, modes: Mapping[str, str]) -> int:
        """How many rows fill a wave: few, so that pictures come early, but enough for what is done once a wave."""
        if modes["unet"] == WALKS:
            fast = (self.processors or 0) >= FAST_PROCESSORS
            return max(rows * max(1, self.lanes), FAST_STREAMED_ROWS if fast else STREAMED_ROWS)
        small = self._latents(width, height) <= SMALL_LATENTS
        return rows * max(CALLS_IN_SMALL_WAVE if small else 1, self.lanes)

    def _latents(self, width: int, height: int) -> int:
        return (width // self.costs.latent_factor) * (height // self.costs.latent_factor)


def _wave_sizes(most: int, rows: int) -> Iterator[int]:
    """Rows in a wave, from the most that is wanted down to one call's."""
    while most > rows:
        yield most
        most = max(rows, 1 << (most - 1).bit_length() - 1)  # the next lower power of two
    yield rows
