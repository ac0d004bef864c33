"""The released files, read as ours.

The release is three files: `associate_2.ckpt` (stage 1: HQ and LQ branches), `embedding_change_weights.pth`
and `pytorch_lora_weights.safetensors`.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import Checkpoint
from .config import LoRAConfig, OSDFaceConfig
from .errors import CheckpointError
from .file_kinds import kind_of_file
from .models.lora import lora_config, parse_lora
from .pickles import read_pickle, tensors_by_name

VRE_FILE = "associate_2.ckpt"
PROJECTION_FILE = "embedding_change_weights.pth"
LORA_FILE = "pytorch_lora_weights.safetensors"
RELEASED_FILES = (VRE_FILE, PROJECTION_FILE, LORA_FILE)
BRANCH = "vqvae_LQ."
# In the file and without use here: the HQ branch, both decoders, discriminators and losses of stage 1.
IGNORED = (
    "vqvae.", "vqvae_HQ.", "vqvae_LQ.decoder.", "vqvae_LQ.post_quant_conv.",
    "loss.", "loss_LQ.", "loss_HQ.", "discriminator.", "logit_scale",
)  # fmt: skip


def is_released_folder(path: str | Path) -> bool:
    """Tell whether a folder holds at least one of the three released files."""
    return any((Path(path) / name).is_file() for name in RELEASED_FILES)


def read_released(folder: str | Path) -> Checkpoint:
    """Read the three released files as a checkpoint of ours, tensors unchanged.

    Raises:
        CheckpointError: a file is missing, truncated, unsafe, or holds a tensor that nobody expects.
    """
    folder = Path(folder).expanduser()
    if (folder / "unet" / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is a Stable Diffusion folder; it goes to `base`, beside an OSDFace model"
        )
    for name in RELEASED_FILES:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} lacks {name}; a released folder holds {', '.join(RELEASED_FILES)}"
            )
    vre = _lq_branch(read_tensors(folder / VRE_FILE))
    projection = read_tensors(folder / PROJECTION_FILE)
    try:
        lora = load_file(folder / LORA_FILE)
    except (SafetensorError, OSError) as error:
        known = kind_of_file(folder / LORA_FILE)
        raise CheckpointError(
            f"{LORA_FILE} is {known or f'truncated or no safetensors file ({error}); download it again'}"
        ) from error
    adapters = parse_lora(lora)
    config = OSDFaceConfig(name="osdface-released", lora=lora_config(adapters, LoRAConfig().alpha))
    tensors = {f"vre.{k}": v for k, v in vre.items()}
    tensors |= {f"projection.{k}": v for k, v in projection.items()}
    # The key style is kept: the way back to the released layout gives the same names.
    tensors |= {f"lora.{k.removeprefix('unet.')}": v for k, v in lora.items()}
    return Checkpoint(config, tensors, {"source": "released files"})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a .ckpt or .pth as tensors by name; refuse objects other than plain data.

    Raises:
        CheckpointError: missing, truncated, or a pickle that would run code.
    """
    if not path.is_file():
        raise CheckpointError(f"no file {path}")
    try:
        content = read_pickle(path)
    except ValueError as error:
        what = kind_of_file(path) or f"{error}; get it again from its authors"
        raise CheckpointError(f"{path.name} is {what}") from error
    try:
        return tensors_by_name(content, path.stat().st_size)
    except ValueError as error:
        raise CheckpointError(f"{path.name} {error}; give the released file") from error


def _lq_branch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    branch: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(IGNORED):
            continue
        if not key.startswith(BRANCH):
            raise CheckpointError(
                f"{VRE_FILE}: unexpected tensor {key}; this file is not the released OSDFace stage 1"
            )
        branch[key.removeprefix(BRANCH)] = value
    if not branch:
        raise CheckpointError(
            f"{VRE_FILE} has no {BRANCH}* tensors; this file is not the released OSDFace stage 1"
        )
    return branch
