"""Make `osdface_core/assets/mtcnn.safetensors` from the weights inside the wheel of `mtcnn` 1.0.0.

    pip download --no-deps mtcnn==1.0.0 && pip install joblib lz4
    python tools/convert_mtcnn.py mtcnn-1.0.0-py3-none-any.whl osdface_core/assets/mtcnn.safetensors

The wheel stores pickled lists of arrays. Pickle can run code, so the wheel must be the known
one, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from osdface_core.faces.mtcnn import Mtcnn

SHA256 = "0a96b4868e56db9ae984449519642be6dba03240e608a67e928ebb47833e9144"
NOTICE = "mtcnn-1.0.0.dist-info/LICENSE"
METADATA = {
    "source": "mtcnn 1.0.0, https://pypi.org/project/mtcnn/1.0.0/",
    "sha256": SHA256,
    "license": "MIT",
}


def read_wheel(wheel: Path) -> tuple[dict[str, list[np.ndarray]], str]:
    """Read the three weight lists and the licence text of the wheel.

    Raises:
        ValueError: if it is another wheel; nothing was unpickled then.
    """
    import joblib  # pyright: ignore[reportMissingImports] # asked for by this script alone

    data = wheel.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise ValueError(f"{wheel}: got sha256 {found[:12]}..., expected {SHA256[:12]}... (mtcnn 1.0.0)")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        lists = {
            name: joblib.load(io.BytesIO(archive.read(f"mtcnn/assets/weights/{name}.lz4")))
            for name in ("pnet", "rnet", "onet")
        }
        return lists, archive.read(NOTICE).decode("utf-8")


def to_state_dict(lists: dict[str, list[np.ndarray]]) -> dict[str, Tensor]:
    """Give the arrays, which lie in layer order, the names and the layout of `Mtcnn`'s parameters.

    Args:
        lists: per net its arrays: kernels (h, w, in, out), PReLU slopes (1, 1, out), dense (in, out), biases.
    Raises:
        ValueError: if number or shapes do not fit.
    """
    net = Mtcnn()
    state: dict[str, Tensor] = {}
    for name, arrays in lists.items():
        targets = dict(net.get_submodule(name).named_parameters())  # in the order in which they run
        if len(targets) != len(arrays):
            raise ValueError(f"{name}: got {len(arrays)} arrays, expected {len(targets)}")
        for (key, target), array in zip(targets.items(), arrays, strict=True):
            value = _torch_layout(array)
            if value.shape != target.shape:
                raise ValueError(
                    f"{name}.{key}: got shape {tuple(value.shape)}, expected {tuple(target.shape)}"
                )
            state[f"{name}.{key}"] = value
    return state


def _torch_layout(array: np.ndarray) -> Tensor:
    value = torch.from_numpy(np.array(array, dtype=np.float32))
    value = value.permute(3, 2, 0, 1) if value.dim() == 4 else value.squeeze()
    return (value.T if value.dim() == 2 else value).contiguous()


def main() -> int:
    """Convert; exit status 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(description="MTCNN's weights from the mtcnn wheel to safetensors.")
    parser.add_argument("wheel", type=Path, help="mtcnn-1.0.0-py3-none-any.whl")
    parser.add_argument("out", type=Path, help="the .safetensors file; its licence text is written beside it")
    args = parser.parse_args()
    try:
        lists, notice = read_wheel(args.wheel)
        save_file(to_state_dict(lists), args.out, metadata=METADATA)
    except (OSError, ValueError, ImportError) as error:
        print(f"convert_mtcnn: {error}", file=sys.stderr)
        return 1
    args.out.with_name(f"{args.out.stem}_license.txt").write_text(notice, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
