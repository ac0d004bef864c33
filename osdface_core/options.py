"""The table of options: each with its choices, range, unit, default and what it does, said once.

The command line, the ComfyUI nodes, the web UI extension and the Python calls are made from it. It imports
nothing that is slow, so that `osdface restore --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from .choices import (
    Codec,
    ColorFix,
    DetectorName,
    Dtype,
    Effort,
    EngineName,
    LoRAMode,
    Order,
    PasteMode,
    VideoCodec,
)
from .errors import OptionError

Host = Literal["cli", "comfyui", "webui"]

WORDS = ("all", "largest", "center")
"""What `faces` may say besides numbers."""


@dataclass(frozen=True)
class Option:
    """One option. `options_of` fills in what the dataclass's field says: name, default, kind and choices.

    Attributes:
        help: what it does, in full sentences; units included.
        low, high: range, ends included; None: no bound.
        step: by how much a dial turns.
        unit: "px" or nothing.
        metavar: what `--help` shows for a text.
        flags: the command line's names, where they are not the field's.
        widget: ComfyUI's name, where it is not the field's.
        label: the web UI's name, where it is not the field's.
        none: what None stands for.
        unset: what a number's widget shows for None.
        syntax: reads a text and raises OptionError if it cannot.
        aliases: further spellings of choices.
        optional: whether None is a value: up to the program.
    """

    help: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    unit: str = ""
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    widget: str = ""
    label: str = ""
    none: str = ""
    unset: int = 0
    syntax: Callable[[str], object] | None = None
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str = ""
    default: Any = None
    kind: type = str
    choices: tuple[str, ...] = ()
    optional: bool = False

    @property
    def span(self) -> str:
        """What is allowed, for messages: "0..1", "at least 1", "none, adain"; empty: anything."""
        if self.choices:
            return ", ".join(self.choices)
        if self.high is not None:
            return f"{self.low:g}..{self.high:g}"
        return "" if self.low is None else f"at least {self.low:g}"

    def called(self, host: Host) -> str:
        """Return the name that people know it by in `host`."""
        if host == "cli":
            return self.flags[0] if self.flags else "--" + self.name.replace("_", "-")
        if host == "webui":
            return self.label or self.name.replace("_", " ").capitalize()
        return (self.widget if host == "comfyui" else "") or self.name

    def parse(self, text: str) -> Any:
        """Turn what a person typed into a checked value.

        Raises:
            OptionError: it is no number, or out of range.
        """
        try:
            value = self.kind(text) if self.kind in (int, float) else text
        except ValueError:
            raise OptionError(self.name, text, self._expected()) from None
        return self.check(value)

    def check(self, value: Any) -> Any:
        """Return `value`, or the choice that it is another spelling of.

        Raises:
            OptionError: another type, no choice, or out of range (NaN is).
        """
        if value is None and self.optional:
            return None
        if isinstance(value, str):
            value = self.aliases.get(value, value)
        if not self._fits(value):
            raise OptionError(self.name, value, self._expected())
        if self.syntax is not None and isinstance(value, str):
            self.syntax(value)
        return value

    def _fits(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.kind not in (int, float):
            return True
        if isinstance(value, bool) or not isinstance(value, Integral if self.kind is int else Real):
            return False
        low = float("-inf") if self.low is None else self.low
        return low <= float(value) <= (float("inf") if self.high is None else self.high)

    def _expected(self) -> str:
        number = {int: "a whole number", float: "a number"}.get(self.kind, "")
        return ("one of " if self.choices else "") + (self.span or number)


class Options:
    """A set of options; building one checks every value.

    Raises:
        OptionError: a value that the table does not allow.
    """

    def __post_init__(self) -> None:
        for name, option in options_of(type(self)).items():
            object.__setattr__(self, name, option.check(getattr(self, name)))


def parse_faces(which: str) -> list[int] | None:
    """Parse the numbers in a selection such as "0,2" or "1-3", each once; None for a word.

    Raises:
        OptionError: if it is neither.
    """
    if which.strip().lower() in WORDS:
        return None
    numbers: list[int] = []
    for part in filter(None, re.split(r"[,;\s]+", which.strip())):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            numbers = []
            break
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not numbers:
        raise OptionError("faces", which, f"{', '.join(WORDS)} or numbers such as 0,2 or 1-3")
    return list(dict.fromkeys(numbers))


@dataclass(frozen=True)
class LoadOptions(Options):
    """Which model, and where and how it runs; see `OSDFacePipeline.from_pretrained`."""

    source: Annotated[
        str | Path,
        Option(
            "The model: mini (comes with this program), a checkpoint .safetensors, or a folder with the "
            "three released files.",
            flags=("--model",),
            metavar="mini|PATH",
            widget="checkpoint",
            label="Model",
        ),
    ] = "mini"
    base: Annotated[
        str | Path | None,
        Option(
            "Stable Diffusion 2.1-base, for checkpoints that are a LoRA of it: a diffusers folder or one "
            ".safetensors file. Self-contained checkpoints such as mini need none.",
            metavar="PATH",
            label="Stable Diffusion 2.1-base",
        ),
    ] = None
    lora_scale: Annotated[
        float,
        Option(
            "Strength of the LoRA, for checkpoints that are one: 0 is the bare base model, 1 as trained.",
            low=-100.0,
            high=100.0,
            step=0.01,
            widget="lora_strength",
            label="LoRA strength",
        ),
    ] = 1.0
    lora: Annotated[
        LoRAMode,
        Option("How the LoRA is applied: merged into the weights, or live beside them (needs peft)."),
    ] = "merged"
    codec: Annotated[
        Codec,
        Option("The autoencoder: the model's own, or taesd for quicker, softer previews with a base model."),
    ] = "own"
    codec_dir: Annotated[
        str | Path | None,
        Option(
            "Folder with taesd_encoder.safetensors and taesd_decoder.safetensors.",
            none="PyTorch's cache",
            metavar="DIR",
        ),
    ] = None
    device: Annotated[str, Option("Where it runs: auto, cpu, cuda, cuda:1 or mps.", metavar="D")] = "auto"
    dtype: Annotated[
        Dtype,
        Option(
            "Precision of everything but the VRE, which is float32 always. auto: half precision where the "
            "device is good at it."
        ),
    ] = "auto"
    engine: Annotated[
        EngineName,
        Option(
            "How it runs. auto: native on a CPU where osdface-cpu is installed, else eager. eager: PyTorch "
            "as it comes. native: osdface-cpu's compiled layers. graphs: CUDA graphs, one launch per batch. "
            "compile: torch.compile, which takes minutes at the first face of a size."
        ),
    ] = "auto"


@dataclass(frozen=True)
class DetectOptions(Options):
    """Which faces of a photo are restored; see `faces.detect` and `faces.select`."""

    detector: Annotated[
        DetectorName,
        Option(
            "What finds the faces. auto: RetinaFace if its weights are on this machine, else MTCNN, which "
            "needs no download. A RetinaFace chosen by name is fetched once; not by ComfyUI, which never "
            "fetches."
        ),
    ] = "auto"
    detector_dir: Annotated[
        str | Path | None, Option("Folder with RetinaFace weights.", none="PyTorch's cache", metavar="DIR")
    ] = None
    threshold: Annotated[
        float,
        Option(
            "Least certainty of the detector; lower finds more, also wrong ones.",
            low=0.0,
            high=1.0,
            step=0.05,
        ),
    ] = 0.9
    effort: Annotated[
        Effort,
        Option(
            "auto: look again, turned or in tiles, where the first look leaves doubts (tilted faces, "
            "crowds). fast: look once. thorough: do all of it always."
        ),
    ] = "auto"
    faces: Annotated[
        Any,
        Option(
            "Which faces: all; the largest; center, the one nearest the middle; or numbers from 0 in the "
            "chosen order, such as 0,2 or 1-3.",
            metavar="WHICH",
            syntax=parse_faces,
            widget="selection",
        ),
    ] = "all"
    min_face: Annotated[
        float,
        Option(
            "Leave faces smaller than this alone: longer side of the box in pixels. 0: no limit.",
            low=0,
            step=1,
            unit="px",
            label="Leave faces below [px] alone",
        ),
    ] = 0
    max_face: Annotated[
        float | None,
        Option(
            "Leave faces larger than this alone: longer side of the box in pixels.",
            none="no limit",
            low=0,
            step=1,
            unit="px",
        ),
    ] = None
    max_faces: Annotated[
        int | None,
        Option("At most so many faces, the first in the chosen order.", none="no limit", low=1),
    ] = None
    order: Annotated[
        Order,
        Option(
            "Order of the faces, which numbers them and decides who stays when their count is limited: size "
            "(largest first), left_to_right, top_to_bottom or score.",
            aliases={"area": "size"},
        ),
    ] = "size"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_face and self.min_face > self.max_face:  # 0 is no limit
            raise OptionError("min_face", self.min_face, f"at most `max_face`, {self.max_face:g}")


@dataclass(frozen=True)
class RestoreOptions(Options):
    """How aligned faces are restored; see `OSDFacePipeline.restore`."""

    strength: Annotated[
        float,
        Option(
            "How much of the restoration to keep: 0 returns the input, 1 the restored face.",
            low=0.0,
            high=1.0,
            step=0.05,
        ),
    ] = 1.0
    fidelity: Annotated[
        float,
        Option(
            "How much of the input the decoder may take over: 1 keeps what is good in it, 0 paints from the "
            "model's own picture of the face alone. Only models trained with this dial have it, as mini is; "
            "the released model takes 1 only.",
            low=0.0,
            high=1.0,
            step=0.05,
        ),
    ] = 1.0
    timestep: Annotated[
        int | None,
        Option(
            "The one diffusion step's timestep, 0 to 999: lower keeps more of the input, higher invents "
            "more.",
            none="as the checkpoint was trained, 399 for the released model and mini",
            low=0,
            high=999,
            unset=-1,
        ),
    ] = None
    color_fix: Annotated[
        ColorFix,
        Option(
            "Take the colours from the input: none; adain (mean and spread); wavelet (all large-scale "
            "colour); luma (restored brightness, original colour). A grey face stays grey.",
            label="Colour fix",
        ),
    ] = "none"
    batch_size: Annotated[
        int | None,
        Option(
            "Faces at once; halved when memory runs out.",
            none="as many as free memory allows",
            low=1,
        ),
    ] = None


@dataclass(frozen=True)
class PasteOptions(Options):
    """How restored faces return into the photo; see `faces.paste` and `upscale.enlarge`."""

    upscale: Annotated[
        float,
        Option(
            "Enlarge the photo so many times first, so that small faces show their detail.",
            low=1.0,
            high=16.0,
            step=0.25,
        ),
    ] = 1.0
    upscale_model: Annotated[
        str | Path | None,
        Option(
            "A super-resolution model file for enlarging, read by spandrel.", none="Lanczos", metavar="FILE"
        ),
    ] = None
    feather: Annotated[
        float,
        Option(
            "Width of the soft border as a part of half the crop: 0.05 is hard, 1 fades from the centre.",
            low=0.001,
            high=1.0,
            step=0.01,
        ),
    ] = 0.2
    paste_mode: Annotated[
        PasteMode,
        Option(
            "residual: add what the restoration changed, so that an unchanged face leaves no trace and "
            "detail finer than 512 pixels survives. replace: cover the face with the restored crop.",
            flags=("--paste-mode", "--paste"),
        ),
    ] = "residual"


@dataclass(frozen=True)
class VideoOptions(Options):
    """How a restored video is written; see `video.restore_video`."""

    video_codec: Annotated[
        VideoCodec,
        Option(
            "The codec of the result. auto: the input's where it can be written, else h264 (vp9 in .webm)."
        ),
    ] = "auto"
    crf: Annotated[
        int | None,
        Option(
            "Quality of the video, lower is better and larger: constant rate factor of the codec.",
            none="16 for h264, 18 for hevc, 24 for vp9 and av1",
            low=0,
            high=63,
            unset=-1,
        ),
    ] = None
    pixel_format: Annotated[
        str | None,
        Option(
            "FFmpeg's name of a pixel format, such as yuv420p or yuv420p10le.",
            none="the input's, or the nearest that the codec has",
            metavar="NAME",
        ),
    ] = None
    fps: Annotated[
        float,
        Option(
            "Frames per second of an image sequence that is read; videos keep their own times.",
            low=0.001,
            high=1000.0,
            step=1.0,
        ),
    ] = 25.0


Chosen = TypeVar("Chosen", bound=Options)
SETS: tuple[type[Options], ...] = (LoadOptions, DetectOptions, RestoreOptions, PasteOptions, VideoOptions)


@cache
def options_of(cls: type[Options]) -> dict[str, Option]:
    """Return the table of one set of options, by field name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        field.name: _complete(field.name, field.default, hints[field.name])
        for field in dataclasses.fields(typing.cast(Any, cls))
    }


def _complete(name: str, default: Any, hint: Any) -> Option:
    kind, option = typing.get_args(hint)
    optional = False
    if typing.get_origin(kind) in (Union, types.UnionType):
        parts = typing.get_args(kind)
        optional, kind = type(None) in parts, parts[0]
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    kind = kind if kind in (int, float) else str
    return dataclasses.replace(
        option, name=name, default=default, kind=kind, choices=choices, optional=optional
    )


def pick(cls: type[Chosen], values: Mapping[str, Any]) -> Chosen:
    """Build the set `cls` from those of `values` that belong to it.

    Raises:
        OptionError: a value that the table does not allow.
    """
    return cls(**{name: values[name] for name in options_of(cls) if name in values})


def check(cls: type[Options], **values: Any) -> None:
    """Check some values of the set `cls`.

    Raises:
        OptionError: a value that the table does not allow.
    """
    for name, value in values.items():
        options_of(cls)[name].check(value)


def in_words_of(host: Host, message: str) -> str:
    """Name the options in a message as `host` calls them.

    Messages write an option as its field between backticks: "give `base`" becomes "give --base" on the
    command line, and "give base" in ComfyUI, where `lora_scale` becomes lora_strength.
    """
    table = {name: option for cls in SETS for name, option in options_of(cls).items()}
    return re.sub(r"`(\w+)`", lambda m: table[m[1]].called(host) if m[1] in table else m[0], message)
