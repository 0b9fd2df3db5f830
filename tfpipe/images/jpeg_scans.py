"""Checks the entropy-coded data of a JPEG's scans: every block to its end, without its pixels.

    check(scan, data[start:end], {})     # raises ScanDamage("Corrupt JPEG data: premature end of data segment, ...")

What libjpeg-turbo, the decoder inside TensorFlow, only warns of ("Corrupt JPEG data: ...") is an
error here, and so is a run that leads out of its block, which it ignores. Damage that leaves a
valid stream of as many blocks cannot be seen by any decoder. Pillow, which has the same decoder,
discards its warnings; so this is T.81 (09/92), annexes F and G.

Design: Python looks up 16 bits at a time. An entry of a table gives the bits of all the codes that
begin in them, and how far they lead into the block: 2 to 3 codes at once, the extra bits of each
skipped unread. Entries are made on first use, and kept for the next file with that table; in an
array, which stays in the processor's cache (a dict of as many takes 2.6 times as long).
"""

from __future__ import annotations

import functools
import re
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from tfpipe.common.text import plural

_END_OF_BLOCK = 64  # the index after a block's last coefficient
_EOB = 64  # the flag of an entry
_WINDOW = 16  # bits; no code is longer
_NEAR_BITS = 64  # more than two steps take
_KEPT_TABLES = 32  # of 256 KiB each; those of the usual files are 8
_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
_STUFFED = re.compile(rb"\xff+\x00")


class ScanDamage(Exception):
    """Damage of the data, in libjpeg's words where it has some, and its place."""

    def __init__(self, what: str, where: str = "") -> None:
        self.what = what
        super().__init__(f"Corrupt JPEG data: {what}{where}")


class ScanComponent(NamedTuple):
    """One component of a scan.

    Attributes:
        place: in the frame.
        blocks: in one unit of a scan of several components.
        width: of the component, in blocks.
        height: of the component, in blocks.
        dc_table: lengths and symbols of the Huffman table (T.81 B.2.4.2); b"" where none is used.
        ac_table: the same for the other coefficients.
    """

    place: int
    blocks: int
    width: int
    height: int
    dc_table: bytes
    ac_table: bytes


class Scan(NamedTuple):
    """Parameters of a scan, from its header and the frame.

    Attributes:
        components: in the scan's order.
        units: of the scan, if it has several components (T.81 A.2.3).
        restart_interval: in units; 0 for none.
        progressive: whether scans refine each other.
        band: first and last coefficient, and the bit positions high and low; (0, 63, 0, 0) in a
            sequential frame.
    """

    components: Sequence[ScanComponent]
    units: int
    restart_interval: int
    progressive: bool
    band: tuple[int, int, int, int]


Coefficients = dict[int, list[int]]
"""By component: for each block, a bit for each coefficient that is not 0 so far. They determine how long a refinement is."""


def check(scan: Scan, data: bytes, coefficients: Coefficients) -> None:
    """Walks over every code of a scan.

    Args:
        scan: coded by Huffman tables.
        data: from the end of its header to the next marker other than a restart.
        coefficients: of the frame, empty before its first scan; updated.

    Raises:
        ScanDamage: the data end too early or too late, or hold a code that no table has.
    """
    single = len(scan.components) == 1
    total = scan.components[0].width * scan.components[0].height if single else scan.units
    interval = scan.restart_interval or total
    pieces = _RESTART.split(data)  # data, restart's code, data, restart's code, ...
    walk = _walker(scan, coefficients)
    for number, start in enumerate(range(0, total, interval)):
        if number and 2 * number >= len(pieces):
            raise ScanDamage("premature end of data segment", f", in unit {start:,} of {total:,}")
        if number and pieces[2 * number - 1][0] & 7 != (number - 1) & 7:
            raise ScanDamage(f"found marker 0x{pieces[2 * number - 1][0]:02x} instead of RST{(number - 1) & 7}")
        _check_piece(walk, pieces[2 * number], start, min(start + interval, total), total)
    rest = b"".join(pieces[2 * -(-total // interval) :: 2])
    if rest:
        raise ScanDamage(plural(len(rest), "extraneous byte"), " after the last unit")


class _Bits:
    """Data as 32 bits from every other byte on, so that 16 from any bit on are one look-up away."""

    def __init__(self, piece: bytes, unit: int) -> None:
        data = _STUFFED.sub(b"\xff", piece.rstrip(b"\xff"))
        self.num_bits = 8 * len(data)
        count, data = len(data) // 4 + 1, data + bytes(8)
        self.words = [0] * (2 * count)
        self.words[::2] = struct.unpack_from(f">{count}I", data)
        self.words[1::2] = struct.unpack_from(f">{count}I", data, 2)
        self.position = 0
        self.unit = unit


Walk = Callable[[_Bits, int], None]  # over the units before this one


def _check_piece(walk: Walk, piece: bytes, start: int, stop: int, total: int) -> None:
    bits = _Bits(piece, start)
    try:
        walk(bits, stop)
    except IndexError:  # no words are left
        bits.position = bits.num_bits + 1
    except ScanDamage as error:
        if bits.position + _NEAR_BITS <= bits.num_bits:
            raise ScanDamage(error.what, f", in unit {bits.unit:,} of {total:,}") from None
        bits.position = bits.num_bits + 1  # the zeros after the end may be the cause
    if bits.position > bits.num_bits:
        raise ScanDamage("premature end of data segment", f", in unit {min(bits.unit, stop - 1):,} of {total:,}")
    if left := (bits.num_bits - bits.position) // 8:
        raise ScanDamage(plural(left, "extraneous byte"), f" after unit {stop:,} of {total:,}")


def _walker(scan: Scan, coefficients: Coefficients) -> Walk:
    """Returns what walks over the units of a scan, by its kind (T.81 F.2.2, G.1.2 and G.2)."""
    component, (first, last, high, _) = scan.components[0], scan.band
    if not scan.progressive:
        blocks = [(_steps(c.ac_table, c.dc_table), _steps(c.ac_table), _codes(c.ac_table)) for c in _blocks(scan)]
        return functools.partial(_sequential, blocks)
    if first == 0:
        if high:
            return functools.partial(_dc_refinement, len(_blocks(scan)))
        coefficients.update({c.place: [0] * (c.width * c.height) for c in scan.components})
        return functools.partial(_dc_first, [_codes(c.dc_table) for c in _blocks(scan)])
    masks = coefficients.get(component.place)
    if masks is None:
        raise ScanDamage(f"inconsistent progression: coefficients {first} to {last} come before coefficient 0")
    band = _Band(_codes(component.ac_table), masks, first, last)
    return band.refine if high else band.walk


def _blocks(scan: Scan) -> list[ScanComponent]:
    """Returns the component of each block of a unit."""
    if len(scan.components) == 1:
        return list(scan.components)
    return [component for component in scan.components for _ in range(component.blocks)]


def _sequential(blocks: Sequence[tuple[_Steps, _Steps, array[int]]], bits: _Bits, stop: int) -> None:
    unpacked = [(start.entries, start.fill, step.entries, step.fill, codes) for start, step, codes in blocks]
    words, p, unit = bits.words, 0, bits.unit
    try:
        while unit < stop:
            for starts, fill_starts, steps, fill_steps, codes in unpacked:
                window = words[p >> 4] >> 16 - (p & 15) & 0xFFFF
                step = starts[window] or fill_starts(window)
                p += step & 63
                if step & _EOB:
                    continue
                k = 1 + (step >> 7)
                while True:
                    window = words[p >> 4] >> 16 - (p & 15) & 0xFFFF
                    step = steps[window] or fill_steps(window)
                    k += step >> 7
                    if k >= _END_OF_BLOCK:  # a full block has no end-of-block code: this step may reach into the next one
                        p = _finish_block(codes, words, p, k - (step >> 7))
                        break
                    p += step & 63
                    if step & _EOB:
                        break
            unit += 1
    finally:
        bits.unit, bits.position = unit, p


def _finish_block(codes: array[int], words: Sequence[int], p: int, k: int) -> int:
    while k < _END_OF_BLOCK:
        code = codes[words[p >> 4] >> 16 - (p & 15) & 0xFFFF] or _no_code()
        run, size = code >> 9, code >> 5 & 15
        p += (code & 31) + size
        if not size and run != 15:
            return p
        k += run + 1
    if k > _END_OF_BLOCK:
        raise ScanDamage("a run of coefficients that leads out of its block")
    return p


def _dc_first(blocks: Sequence[array[int]], bits: _Bits, stop: int) -> None:
    words, p, unit = bits.words, 0, bits.unit
    try:
        while unit < stop:
            for codes in blocks:
                code = codes[words[p >> 4] >> 16 - (p & 15) & 0xFFFF] or _no_code()
                p += (code & 31) + (code >> 5)
            unit += 1
    finally:
        bits.unit, bits.position = unit, p


def _dc_refinement(num_blocks: int, bits: _Bits, stop: int) -> None:
    available = bits.num_bits // num_blocks
    bits.position, bits.unit = (stop - bits.unit) * num_blocks, min(stop, bits.unit + available)


class _Band(NamedTuple):
    """A band of coefficients of a progressive frame's blocks; for the masks see `Coefficients`."""

    codes: array[int]
    masks: list[int]
    first: int
    last: int

    def walk(self, bits: _Bits, stop: int) -> None:
        """Reads a band for the first time (T.81 G.1.2.2)."""
        codes, masks, words, p, block = self.codes, self.masks, bits.words, 0, bits.unit
        try:
            while block < stop:
                k, mask = self.first, masks[block]
                while k <= self.last:
                    code = codes[words[p >> 4] >> 16 - (p & 15) & 0xFFFF] or _no_code()
                    run, size = code >> 9, code >> 5 & 15
                    p += (code & 31) + size
                    if size:
                        k += run
                        mask |= 1 << k
                    elif run != 15:
                        more, p = _run_of_blocks(words, p, run)
                        masks[block] = mask
                        block += more  # that many blocks more, this one included, have nothing else in the band
                        break
                    else:
                        k += 15
                    k += 1
                else:
                    if k > self.last + 1:
                        raise ScanDamage("a run of coefficients that leads out of its band")
                    masks[block] = mask
                    block += 1
            if block > stop:
                raise ScanDamage("a run of empty blocks that leads out of the scan")
        finally:
            bits.unit, bits.position = block, p

    def refine(self, bits: _Bits, stop: int) -> None:
        """Reads one bit more of each coefficient of a band (T.81 G.1.2.3)."""
        band = (1 << self.last + 1) - (1 << self.first)
        codes, masks, words, p, block, empty = self.codes, self.masks, bits.words, 0, bits.unit, 0
        try:
            for block in range(bits.unit, stop):
                k, known, new = self.first, masks[block] & band, 0
                while not empty and k <= self.last:
                    code = codes[words[p >> 4] >> 16 - (p & 15) & 0xFFFF] or _no_code()
                    run, size = code >> 9, code >> 5 & 15
                    p += code & 31
                    if size > 1:
                        _no_code()
                    if not size and run != 15:
                        empty, p = _run_of_blocks(words, p, run)
                        break
                    p += size
                    while k <= self.last:  # past the known ones, a bit for each, and as many others as the run has
                        if known >> k & 1:
                            p += 1
                        elif run:
                            run -= 1
                        else:
                            break
                        k += 1
                    if size and k > self.last:
                        raise ScanDamage("a run of coefficients that leads out of its band")
                    new |= size << k
                    k += 1
                if empty:
                    p += (known >> k).bit_count()
                    empty -= 1
                masks[block] |= new
            if empty:
                raise ScanDamage("a run of empty blocks that leads out of the scan")
        finally:
            bits.unit, bits.position = block, p


def _run_of_blocks(words: Sequence[int], p: int, size: int) -> tuple[int, int]:
    """Returns the number of blocks, this one included, without further codes, and the next bit."""
    extra = words[p >> 4] >> 16 - (p & 15) & 0xFFFF
    return (1 << size) + (extra >> _WINDOW - size), p + size


@functools.lru_cache(_KEPT_TABLES)
def _codes(table: bytes) -> array[int]:
    """Returns the code at the start of all 16 bits: symbol << 5 | length (T.81 C.2), or 0."""
    entries, code, symbols = array("I", bytes(4 << _WINDOW)), 0, iter(table[16:])
    for length, count in enumerate(table[:16], start=1):
        size = 1 << _WINDOW - length
        for _ in range(count):
            entries[code * size : (code + 1) * size] = array("I", [next(symbols) << 5 | length]) * size
            code += 1
        code <<= 1
    return entries


class _Steps:
    """For 16 bits, all the codes that end in them, up to one that ends a block.

    An entry is coefficients << 7 | `_EOB` | bits, and 0 until it is filled in. `first`: the codes
    of the first coefficient, if the bits are those of the start of a block.
    """

    def __init__(self, codes: array[int], first: array[int] | None) -> None:
        self.entries = array("I", bytes(4 << _WINDOW))
        self._codes, self._first = codes, first

    def fill(self, window: int) -> int:
        """Returns the entry of 16 bits, and keeps it."""
        codes, used, coefficients, flag = self._codes, 0, 0, 0
        if self._first is not None:
            code = self._first[window] or _no_code()
            used = (code & 31) + (code >> 5)
        while used < _WINDOW and not flag:
            code = codes[window << used & 0xFFFF]
            run, size, length = code >> 9, code >> 5 & 15, code & 31
            if not code or used + length > _WINDOW or (used and coefficients + run + 1 >= _END_OF_BLOCK - 1):
                break
            used += length + size
            if size or run == 15:
                coefficients += run + 1
            else:
                flag = _EOB
        self.entries[window] = entry = coefficients << 7 | flag | used or _no_code()
        return entry


def _no_code() -> NoReturn:
    raise ScanDamage("bad Huffman code")


@functools.lru_cache(_KEPT_TABLES)
def _steps(table: bytes, first: bytes | None = None) -> _Steps:
    return _Steps(_codes(table), None if first is None else _codes(first))
