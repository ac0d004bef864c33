"""Say what a file is that is not what its place asks for, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from .pickles import read_pickle

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv"),
    *(".flv", ".3gp", ".ogv", ".vob", ".mxf"),
)
"""Suffixes of video files."""
HEAD = 512  # bytes that tell a file's kind
_WEB_PAGE = (
    "a web page; download the file itself (Hugging Face: the download arrow, or /resolve/ instead of /blob/ "
    "in the address)"
)
_ARCHIVE = "an archive; unpack it and give the file inside"
_PICTURE = "a picture; give a model here"
# Beginning of a file -> what it is, and what helps.
HEADS = {
    b"version https://git-lfs": "a Git LFS pointer and not the file itself; run git lfs pull, or download "
    "the file from its web page",
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"GGUF": "a GGUF file, which holds quantised weights; get the model as .safetensors",
    b"\x89PNG": _PICTURE,
    b"\xff\xd8\xff": _PICTURE,
    b"7z\xbc\xaf": _ARCHIVE,
    b"Rar!": _ARCHIVE,
    b"\x1f\x8b": _ARCHIVE,
}
# Beginnings of tensors' names that only one family has -> what the model is; the first match counts.
TENSORS = {
    ("stylegan_decoder.",): "a GFPGAN model",
    ("position_emb", "fuse_convs_dict.", "feat_emb."): "a CodeFormer model",
    ("quantize.embedding.weight",): "a vector-quantised autoencoder, perhaps RestoreFormer's",
    ("conv_first.", "model.0.weight", "RRDB_trunk."): "an upscaling model; it goes to `upscale_model`",
    ("model.diffusion_model.", "first_stage_model."): "a Stable Diffusion checkpoint; `base` takes 2.1-base",
    (
        "lora_unet_",
        "lora_te_",
        "unet.down_blocks.",
        "unet.mid_block.",
    ): "a LoRA without the rest of OSDFace; the released one goes as its folder, with the other two files",
    ("down_blocks.", "time_embedding."): "the UNet of a diffusers folder; give the folder, as `base`",
    ("encoder.down_blocks.", "post_quant_conv."): "the VAE of a diffusers folder; give the folder, as `base`",
    ("BboxHead.", "ClassHead.", "body.stage1."): "a face detector; it goes to `detector_dir`",
    ("vqvae_LQ.", "vqvae_HQ."): "one of the released OSDFace files; give their folder",
}
WRAPPERS = ("params_ema", "params", "state_dict", "model", "g_ema", "generator")


def kind_of_file(path: Path) -> str:
    """Say what a file is by its first bytes.

    Returns:
        "a Git LFS pointer …; run git lfs pull, …", or "" for what is not known.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return ""
    if not head:
        return "truncated: it is empty; download it again"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for mark, kind in HEADS.items():
        if start[: len(mark)].lower() == mark.lower():
            return kind
    if start.startswith(b"{") and len(head) < HEAD:
        return "a JSON text, perhaps a server's error message; download the file itself"
    return ""


def kind_of_tensors(names: Iterable[str]) -> str:
    """Name the family of models that has tensors of these names; "" where none is known."""
    names = list(names)
    for marks, kind in TENSORS.items():
        if any(name.startswith(marks) for name in names):
            return kind
    return ""


def kind_of_weights(path: Path) -> str:
    """Say what a file of weights is: by its first bytes, else by the names of its tensors.

    Nothing is executed: a pickle is opened with `weights_only=True`.
    """
    return kind_of_file(path) or kind_of_tensors(_tensor_names(path))


def _tensor_names(path: Path) -> list[str]:
    """The names in a .safetensors header or a pickle of tensors, wrappers removed; [] for anything else."""
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                return list(json.loads(file.read(min(length, 100_000_000))))
        content = read_pickle(path)
    except Exception:  # a damaged file fails in as many ways as there are readers; its kind is then unknown
        return []
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return [str(name) for name in content] if isinstance(content, dict) else []
