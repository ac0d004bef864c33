"""Everything this pack asks of ComfyUI; the only file that imports its modules, inside functions.

ComfyUI's IMAGE is (B, H, W, C) float32 in [0, 1] and its MASK (B, H, W); the core works on (B, 3, H, W).
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..osdface_core.interruption import checked
from .draw import to_picture

FOLDER = "osdface"
RELEASED_VRE = "associate_2.ckpt"  # its presence marks a folder with the three released files
RELEASED_LORA = "pytorch_lora_weights.safetensors"
MINI = "mini"
NONE = "none"
log = logging.getLogger("osdface")


# ------------------------------------------------------------------ model files


def register_folder() -> None:
    """Make models/osdface known. Paths that extra_model_paths.yaml gave stay first."""
    try:
        import folder_paths
    except ImportError:  # imported outside ComfyUI
        return
    place = Path(folder_paths.models_dir) / FOLDER
    folder_paths.add_model_folder_path(FOLDER, str(place))
    # A folder name new to ComfyUI lists every file, readmes included, until it has extensions.
    folder_paths.folder_names_and_paths[FOLDER][1].update({".safetensors", ".ckpt", ".pth", ".pt"})
    with contextlib.suppress(OSError):  # a read-only folder is no reason to refuse the pack
        place.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        _install_examples()


def _install_examples() -> None:
    """Put the photo and clip that the workflows name into ComfyUI's input folder where it lacks them."""
    import folder_paths

    for example in (Path(__file__).parent / "examples").iterdir():
        target = Path(folder_paths.get_input_directory()) / example.name
        if not target.exists():
            shutil.copyfile(example, target)


def _names(folder: str) -> list[str]:
    import folder_paths

    with contextlib.suppress(KeyError):
        return [name.replace("\\", "/") for name in folder_paths.get_filename_list(folder)]
    return []


def checkpoint_names() -> list[str]:
    """List a checkpoint widget's choices: `mini`, files of models/osdface, released folders (end in `/`)."""
    names = _names(FOLDER)
    released = [name[: -len(RELEASED_VRE)] or "./" for name in names if name.endswith(RELEASED_VRE)]
    files = [n for n in names if n.endswith(".safetensors") and not n.endswith(RELEASED_LORA)]
    return [MINI, *sorted(files), *sorted(released)]


def checkpoint_path(name: str) -> str:
    """Return `mini`, or the path of the file or released folder behind a choice of `checkpoint_names`."""
    if name == MINI:
        return name
    if name.endswith("/"):
        return str(Path(_full_path(FOLDER, ("" if name == "./" else name) + RELEASED_VRE)).parent)
    return _full_path(FOLDER, name)


def base_names() -> list[str]:
    """List a base widget's choices: `none`, files of models/checkpoints, folders of models/diffusers."""
    return [NONE, *_names("checkpoints"), *sorted(_diffusers_folders())]


def base_path(name: str) -> str | None:
    if name == NONE:
        return None
    return _diffusers_folders().get(name) or _full_path("checkpoints", name)


def lora_names() -> list[str]:
    """List `none`, files of models/loras, then those of models/osdface with an `osdface/` prefix."""
    return [NONE, *_names("loras"), *(f"{FOLDER}/{n}" for n in _names(FOLDER) if n.endswith(".safetensors"))]


def lora_path(name: str) -> str:
    if name in _names("loras"):
        return _full_path("loras", name)
    return _full_path(FOLDER, name.removeprefix(FOLDER + "/"))


def _full_path(folder: str, name: str) -> str:
    import folder_paths

    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise FileNotFoundError(
            f"{name} is not in models/{folder}: put it there or pick another, then refresh (R)"
        )
    return path


def _diffusers_folders() -> dict[str, str]:
    import folder_paths

    found = {}
    with contextlib.suppress(KeyError):
        for root in folder_paths.get_folder_paths("diffusers"):
            for config in [*Path(root).glob("*/unet/config.json"), *Path(root).glob("*/*/unet/config.json")]:
                folder = config.parents[1]
                found[folder.relative_to(root).as_posix() + "/"] = str(folder)
    return found


def detector_folder(weights: Iterable[str]) -> str:
    """Find the first models folder that holds one of the weight files, else models/facedetection."""
    import folder_paths

    models = Path(folder_paths.models_dir)
    places = [models / "facedetection", models / "facexlib", models / "facerestore_models", models / FOLDER]
    for name in ("facedetection", "facexlib", FOLDER):
        with contextlib.suppress(KeyError):
            places += [Path(p) for p in folder_paths.get_folder_paths(name)]
    for place in places:
        if any((place / weight).is_file() for weight in weights):
            return str(place)
    return str(models / "facedetection")


def find_file(name: str) -> str | None:
    """Find a file of that name in models/osdface or one of its subfolders."""
    return next((_full_path(FOLDER, n) for n in _names(FOLDER) if n.rsplit("/", 1)[-1] == name), None)


def changed(checkpoint: str | None, base: str | None = NONE) -> str | float:
    """Answer a loader's IS_CHANGED: the files' stamp; always new when a name comes through a link (None)."""
    if checkpoint is None or base is None:
        return float("nan")
    return stamp(checkpoint_path(checkpoint), base_path(base))


def stamp(*paths: str | None) -> str:
    """Size and time of files (of the weight files in a folder): changes when a model is replaced."""
    parts = []
    for path in paths:
        if path is None or path == MINI:
            continue
        root = Path(path)
        kinds = {".safetensors", ".ckpt", ".pth", ".bin", ".json"}
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in kinds)
        parts += [f"{p.name}:{(s := p.stat()).st_size}:{s.st_mtime_ns}" for p in files]
    return "|".join(parts)


# ------------------------------------------------------------------ devices and memory


def compute_device() -> torch.device:
    import comfy.model_management as mm

    return mm.get_torch_device()


def result_device() -> torch.device:
    import comfy.model_management as mm

    return mm.intermediate_device()


def free_bytes(device: torch.device) -> int:
    import comfy.model_management as mm

    return int(mm.get_free_memory(device))


def auto_dtype(device: torch.device) -> torch.dtype | None:
    """Choose half precision where ComfyUI deems the device good at it; None leaves it to the core (CPU)."""
    import comfy.model_management as mm

    if device.type == "cpu":
        return None
    if mm.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if mm.should_use_fp16(device) else torch.float32


class Managed:
    """A module that ComfyUI's memory manager owns: loaded when used, evicted when others need the room."""

    def __init__(self, module: nn.Module, device: torch.device | None = None) -> None:
        import comfy.model_management as mm
        import comfy.model_patcher

        holder = nn.Module()  # some libraries' modules have a read-only .device, which the patcher must set
        holder.add_module("held", module)
        self.module = module
        self.patcher = comfy.model_patcher.ModelPatcher(
            holder, load_device=device or mm.get_torch_device(), offload_device=mm.unet_offload_device()
        )

    def load(self, activations: int) -> torch.device:
        """Bring the whole module to its device, leaving room for `activations` bytes. Returns the device."""
        import comfy.model_management as mm

        # Only ComfyUI's own layer classes can be loaded in part; ours go as a whole.
        mm.load_models_gpu([self.patcher], memory_required=activations, force_full_load=True)
        self.module.to(self.patcher.load_device)  # --novram loads layer by layer, which plain layers can't
        return self.patcher.load_device


def load_model(patcher: Any, activations: float) -> torch.device:
    """Load a MODEL socket's model as a sampler would: in part (`--lowvram`), cast (fp8) or whole."""
    import comfy.model_management as mm

    mm.load_models_gpu([patcher], memory_required=activations)
    return patcher.load_device


def transformer_options(patcher: Any) -> dict[str, Any]:
    """Collect a MODEL's options for one call, with the wrappers of other nodes (torch.compile, ...)."""
    options = dict(patcher.model_options.get("transformer_options", {}))
    with contextlib.suppress(ImportError, AttributeError):  # older ComfyUI has no wrappers
        from comfy.patcher_extension import merge_nested_dicts

        options["wrappers"] = merge_nested_dicts(options.get("wrappers", {}), patcher.wrappers)
    return options


def load_lora(model: Any, state: dict[str, Tensor], strength: float) -> tuple[Any, int]:
    """Put a LoRA on a clone of MODEL; return it and how many layers of the LoRA found their weight."""
    import comfy.lora

    patches = comfy.lora.load_lora(state, comfy.lora.model_lora_keys_unet(model.model, {}))
    clone = model.clone()
    return clone, len(clone.add_patches(patches, strength))


# ------------------------------------------------------------------ videos


def has_video() -> bool:
    """Tell whether this ComfyUI has the VIDEO type, which came in 2025; outside of ComfyUI it need not."""
    try:
        import folder_paths  # noqa: F401
    except ImportError:
        return True
    try:
        import comfy_api.input_impl  # noqa: F401
    except ImportError:
        log.warning("Restore Video is left out: this ComfyUI has no VIDEO type; update ComfyUI to have it")
        return False
    return True


def temp_folder() -> Path:
    """Make ComfyUI's folder for files that its next start removes."""
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def video_file(video: Any) -> Iterator[str]:
    """Give the path of a file with a VIDEO in it: its own, else one that ComfyUI writes for this long.

    It writes one where the video is images in memory, or a part of a file.
    """
    path = _whole_file(video)
    if path is not None:
        yield path
        return
    handle, path = tempfile.mkstemp(".mp4", "osdface_", temp_folder())
    os.close(handle)
    try:
        video.save_to(path)
        yield path
    finally:
        Path(path).unlink(missing_ok=True)


def _whole_file(video: Any) -> str | None:
    """Return the file that a VIDEO is, unless it is a part of one: cut, cropped, otherwise edited."""
    from comfy_api.input_impl import VideoFromFile

    if not isinstance(video, VideoFromFile) or not hasattr(video, "get_stream_source"):
        return None
    source = video.get_stream_source()
    if not isinstance(source, str) or getattr(video, "has_pending_frame_edits", bool)():
        return None
    whole = VideoFromFile(source)  # versions differ in how they say what was cut off; what is left tells
    same = video.get_dimensions() == whole.get_dimensions() and video.get_duration() == whole.get_duration()
    return source if same else None


def video_of(path: Path) -> Any:
    """Make a VIDEO of a file."""
    from comfy_api.input_impl import VideoFromFile

    return VideoFromFile(str(path))


# ------------------------------------------------------------------ progress and interruption


class Progress:
    """ComfyUI's progress bar; each step also stops the run when the user pressed Cancel."""

    def __init__(self, total: int) -> None:
        import comfy.utils

        self._bar = comfy.utils.ProgressBar(max(total, 1))
        self._done = 0

    def step(self, count: int = 1, preview: Tensor | None = None) -> None:
        """Advance by `count`; `preview` is one (3, H, W) image in [0, 1] to show on the node."""
        self._done += count
        self.show(self._done, None, preview)

    def show(self, done: int, total: int | None, preview: Tensor | None = None) -> None:
        """Say how far it is; `total` replaces the one from the beginning."""
        check_interrupt()
        shown = None if preview is None else ("JPEG", to_picture(preview), 512)
        self._bar.update_absolute(done, total, shown)


def cancellable() -> contextlib.AbstractContextManager[None]:
    """Let Cancel stop what runs inside before its next layer, so within one face."""
    return checked(check_interrupt)


def check_interrupt() -> None:
    import comfy.model_management as mm

    mm.throw_exception_if_processing_interrupted()


# ------------------------------------------------------------------ tensors


def from_image(image: Tensor) -> Tensor:
    """Convert IMAGE (B, H, W, C) to (B, 3, H, W), float32, read-only; grey is repeated, alpha left out."""
    pixels = image.detach().float()
    pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].expand(*pixels.shape[:-1], 3)
    return pixels.permute(0, 3, 1, 2)


def to_image(pixels: Tensor) -> Tensor:
    """Convert (B, 3, H, W) to IMAGE: float32, clamped, contiguous, on the device between nodes."""
    image = pixels.detach().permute(0, 2, 3, 1).to(result_device(), torch.float32)
    return image.clamp(0.0, 1.0).contiguous()


def to_crops(pixels: Tensor) -> Tensor:
    """Convert face crops (N, 3, H, W) to IMAGE; no face becomes one black picture, since core's nodes for
    previews, saving and scaling fail on an empty batch."""
    return to_image(pixels if len(pixels) else pixels.new_zeros(1, *pixels.shape[1:]))


def from_crops(crops: Tensor) -> Tensor:
    """Convert IMAGE to face crops (N, 3, H, W); the black picture of `to_crops` is no face."""
    pixels = from_image(crops)
    return pixels if len(pixels) != 1 or pixels.any() else pixels[:0]


def to_mask(mask: Tensor) -> Tensor:
    """Convert (B, 1, H, W) or (B, H, W) to MASK."""
    return (
        mask.detach()
        .reshape(-1, *mask.shape[-2:])
        .to(result_device(), torch.float32)
        .clamp(0.0, 1.0)
        .contiguous()
    )
