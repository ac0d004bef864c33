"""Damage single files of a model by what they are: JSON, safetensors, pickles."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from tests.fuzz.lora_files import changed_lora, restyled
from tests.fuzz.photos import damaged
from tests.fuzz.pickle_files import PICKLES, read_pickle

Tensors = dict[str, Tensor]
NUMBERS = (
    -1, 0, 1, 2, 3, 7, 16, 64, 1000, 65536, 2**31, 2**63, 10**30, 0.5, 1e-30, 1e308, math.nan, math.inf,
)  # fmt: skip
VALUES = (
    *NUMBERS, None, True, "", "x", "a\nb\x1b[2J", "w" * 100_000, [], [1], [[]], {}, [64] * 40,
    {"a": []},
)  # fmt: skip
DTYPES = (
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "I64", "U8", "BOOL", "X",
    None,
)  # fmt: skip
KINDS = (torch.int64, torch.bool, torch.float64, torch.float8_e4m3fn, torch.half)
JUNK = (
    b"", b"\0", bytes(5000), b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    b"<!doctype html><html>Sign in", b'{"error": "Repository not found"}', b"\x89PNG\r\n\x1a\n",
    b"GGUF\3\0\0\0", b"\x1f\x8b\x08" + bytes(90), b"PK\3\4" + bytes(90), b"\x80\2}q\0.",
    b"\x80\4K", b"not a model\n" * 9,
)  # fmt: skip


def change(name: str, data: bytes, draw: random.Random) -> bytes:
    """Damage a file of a model by the kind that its name says."""
    way = draw.random()
    if way < 0.06:
        return draw.choice(JUNK)
    if way < 0.12:
        return data[: draw.randrange(len(data) + 1)]
    if way < 0.25:
        return damaged(data, draw)
    if name.endswith(".json"):
        return json.dumps(changed_values(json.loads(data), draw)).encode()
    if not name.endswith(".safetensors"):
        return draw.choice(PICKLES)(read_pickle(data), draw)
    if way < 0.6 or not data:
        return changed_header(data, draw)
    tensors, metadata = load(data), json.loads(header_of(data)).get("__metadata__")
    ways = (
        (changed_tensors, changed_lora, restyled)
        if any("lora" in key for key in tensors)
        else (changed_tensors,)
    )
    return save(contiguous(draw.choice(ways)(tensors, draw)), metadata)


def contiguous(tensors: Tensors) -> Tensors:
    return {name: value.contiguous().clone() for name, value in tensors.items()}


# --- JSON ---


def changed_values(content: Any, draw: random.Random) -> Any:
    """Change one value somewhere in JSON: another number or kind, gone, twice, nested."""
    if not isinstance(content, (dict, list)) or not content or draw.random() < 0.03:
        return draw.choice(VALUES) if draw.random() < 0.9 else nested(draw)
    key = draw.choice(list(content) if isinstance(content, dict) else range(len(content)))
    way = draw.random()
    if way < 0.05:
        del content[key]
    elif way < 0.1 and isinstance(content, dict):
        content[draw.choice(("new", "", "a\nb", "quantization_config", "_class_name", "auto_map"))] = content[
            key
        ]
    else:
        content[key] = changed_values(content[key], draw)
    return content


def nested(draw: random.Random) -> Any:
    """Lists in lists, deeper than programs like them but not than json.dumps can write."""
    content: Any = []
    for _ in range(draw.choice((5, 100, 900))):
        content = [content]
    return content


# --- safetensors ---


def header_of(data: bytes) -> bytes:
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def changed_header(data: bytes, draw: random.Random) -> bytes:
    """Change the length, an entry or the metadata of a safetensors header; the numbers stay as they are."""
    header, text = json.loads(header_of(data)), header_of(data)
    body, way = data[8 + len(text) :], draw.random()
    if way < 0.1:
        length = int(draw.choice((0, 1, len(text) - 1, len(text) + 1, 10**8, 2**31, 2**63, 2**64 - 1)))
        return length.to_bytes(8, "little") + text + body
    if way < 0.5 and "osdface.config" in header.get("__metadata__", {}):
        config = changed_values(json.loads(header["__metadata__"]["osdface.config"]), draw)
        header["__metadata__"]["osdface.config"] = json.dumps(config)
    elif way < 0.65:
        changed_metadata(header, draw)
    else:
        changed_entry(header, draw)
    text = json.dumps(header).encode()
    if draw.random() < 0.1:  # the same name twice
        first = next(iter(header))
        text = text[:-1] + f", {json.dumps(first)}: {json.dumps(header[first])}}}".encode()
    return len(text).to_bytes(8, "little") + text + body


def changed_metadata(header: dict[str, Any], draw: random.Random) -> None:
    metadata = header.setdefault("__metadata__", {})
    key = draw.choice([*metadata, "osdface.format", "osdface.training", "modelspec.prediction_type", "new"])
    deep = "[" * draw.choice((10, 100_000))
    metadata[key] = draw.choice((*VALUES, "v", "1", "2", "²", "1" * 5000, "{}", "[]", '{"a": "b\\nc"}', deep))
    if draw.random() < 0.1:
        header["__metadata__"] = draw.choice((None, [], "x", {}))


def changed_entry(header: dict[str, Any], draw: random.Random) -> None:
    name = draw.choice([key for key in header if key != "__metadata__"])
    entry, way = header[name], draw.random()
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if way < 0.3:
        entry["dtype"] = draw.choice(DTYPES)
    elif way < 0.5:
        entry["shape"] = draw.choice(
            (shape[::-1], [], [0], [-1], [2**40], [*shape, 1], [1.5], [2**62] * 4, "x")
        )
    elif way < 0.7:
        spans = ([end, begin], [begin, end + 4], [0, end], [-4, end], [2**60, 2**61], [begin, begin], [begin])
        entry["data_offsets"] = draw.choice(spans)
    elif way < 0.85:
        header[strange_name(name, draw)] = header.pop(name)
    elif way < 0.95:
        del header[name]
    else:
        header[name] = draw.choice(VALUES)


def strange_name(name: str, draw: random.Random) -> str:
    return draw.choice((
        "", ".", "a\nb", f"{name}\x1b[31m", f"{name}2", "x" * 5000, "unet.\u2028", name.split(".", 1)[0],
        f"unet.{name}", name.upper(), *(re.sub(r"\d", digits, name) for digits in ("99999999", "-1", "x")),
    ))  # fmt: skip


def changed_tensors(tensors: Tensors, draw: random.Random) -> Tensors:
    """Change one tensor: its name, kind, shape or numbers."""
    name = draw.choice(list(tensors))
    value = tensors[name]
    ways: tuple[Callable[[], Any], ...] = (
        lambda: value.to(draw.choice(KINDS)), lambda: value.reshape(value.shape[::-1]),
        lambda: value.flatten(), lambda: value[None], lambda: value[:0], lambda: value.reshape(-1)[0],
        lambda: torch.zeros_like(value),
        lambda: torch.full_like(value, math.nan), lambda: torch.full_like(value, 6e4),
        lambda: torch.cat((value, value)), lambda: value * -3,
    )  # fmt: skip
    way = draw.random()
    if way < 0.15:
        del tensors[name]
    elif way < 0.35:
        tensors[strange_name(name, draw)] = tensors.pop(name) if draw.random() < 0.6 else value
    elif value.numel() and value.ndim:
        tensors[name] = draw.choice(ways)()
    return tensors
