"""Sizes like 4MiB and times like 30s, as people write them."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_BINARY = "KMGTPE"
_SIZES: dict[str, int] = {"": 1, "b": 1}
for _power, _letter in enumerate(_BINARY, start=1):
    _SIZES[_letter.lower()] = _SIZES[f"{_letter.lower()}ib"] = 1 << (10 * _power)
    _SIZES[f"{_letter.lower()}b"] = 1000**_power
_TIMES = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Bytes of ``4MiB``, ``4M``, ``10GB`` (10^10) or ``512``. ValueError says what is accepted."""
    number, unit = _split(text)
    scale = _SIZES.get(unit.lower())
    if scale is None:
        raise ValueError(f"{text!r} is not a size: write it like 4MiB, 10GB or 512")
    value = int(number) * scale if number.isdigit() else round(float(number) * scale)
    if value >= 1 << 63:
        raise ValueError(f"{text!r} is more than 8EiB")
    return value


def format_size(size_bytes: int) -> str:
    """``4MiB`` where that is exact, else one decimal of the largest unit: ``1.5GiB``."""
    assert size_bytes >= 0, size_bytes
    power = 0
    while power < len(_BINARY) and size_bytes >= 1 << (10 * (power + 1)):
        power += 1
    if power == 0:
        return f"{size_bytes}B"
    scale = 1 << (10 * power)
    unit = f"{_BINARY[power - 1]}iB"
    return f"{size_bytes // scale}{unit}" if size_bytes % scale == 0 else f"{size_bytes / scale:.1f}{unit}"


def parse_duration(text: str) -> float:
    """Seconds of ``30s``, ``250ms``, ``5m``, ``1h``, ``2d`` or ``30``. ValueError says what is accepted."""
    number, unit = _split(text)
    scale = _TIMES.get(unit)
    if scale is None:
        raise ValueError(f"{text!r} is not a time: write it like 30s, 250ms, 5m or 1h")
    seconds = float(number) * scale
    if not math.isfinite(seconds):
        raise ValueError(f"{text!r} is too long")
    return seconds


def format_duration(seconds: float) -> str:
    """``250ms``, ``1.5s``, ``5m``, ``1h``: the largest unit that is exact, else seconds."""
    assert seconds >= 0, seconds
    for unit in ("d", "h", "m"):
        if seconds and seconds % _TIMES[unit] == 0:
            return f"{int(seconds // _TIMES[unit])}{unit}"
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    return f"{seconds:g}s"


def _split(text: str) -> tuple[str, str]:
    match = _NUMBER.fullmatch(text)
    return (match[1], match[2]) if match else ("", "?")
