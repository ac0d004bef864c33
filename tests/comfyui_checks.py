"""Checks inside a real ComfyUI: `python comfyui_checks.py CHECK BASE`, started by test_comfyui.py.

A process of its own, because ComfyUI reads its options from sys.argv and takes over module names such as
`nodes`, `utils` and `comfy`. Prints one JSON line with what was measured; an assertion ends it with status 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib
import inspect
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMFY = Path(os.environ["COMFYUI_PATH"]).resolve()
NAME = "ComfyUI-OSDFace"


def start(base: Path) -> Any:
    """Lay out a base folder with the pack in custom_nodes and load ComfyUI's node system."""
    for folder in ("custom_nodes", "models", "input", "output", "user", "temp"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / NAME
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
    sys.path.remove(str(ROOT / "tests"))
    sys.path.insert(0, str(COMFY))
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args
    import utils.extra_config  # noqa: F401  # before ComfyUI's nodes.py, as main.py does

    import nodes as comfy_nodes

    assert asyncio.run(comfy_nodes.load_custom_node(str(link))), "ComfyUI could not import the pack"
    for extra in ("nodes_images", "nodes_video", "nodes_mask"):
        asyncio.run(
            comfy_nodes.load_custom_node(
                str(COMFY / "comfy_extras" / f"{extra}.py"), module_parent="comfy_extras"
            )
        )
    return comfy_nodes


def pack_module(base: Path, name: str) -> Any:
    package = str(base / "custom_nodes" / NAME).replace(".", "_x_")
    return importlib.import_module(f"{package}.{name}")


class Server:
    """What the executor tells the server."""

    client_id = "test"
    last_node_id: str | None = None
    last_prompt_id = "test"
    sockets_metadata: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.sent: list[tuple[Any, Any]] = []

    def send_sync(self, event: Any, data: Any, sid: Any = None) -> None:
        self.sent.append((event, data))

    def of(self, kind: str) -> list[Any]:
        return [data for event, data in self.sent if event == kind]


def run(executor: Any, prompt: dict[str, Any]) -> tuple[str, Server]:
    """Validate and execute as the server's worker does; the last status message and what was sent."""
    import execution

    prompt = copy.deepcopy(prompt)  # the executor notes IS_CHANGED in it
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("test", prompt, None))
    assert valid, f"refused: {error} {node_errors}"
    executor.server.sent.clear()
    executor.execute(prompt, "test", {"client_id": "test"}, outputs)
    return executor.status_messages[-1][0], executor.server


def make_executor() -> Any:
    import comfy.model_management
    import comfy.utils
    import execution

    server = Server()

    def hook(value: int, total: int, preview: Any, prompt_id: Any = None, node_id: Any = None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        server.send_sync("progress", {"value": value, "max": total, "preview": preview is not None})

    comfy.utils.set_progress_bar_global_hook(hook)
    newer = "cache_args" in inspect.signature(execution.PromptExecutor).parameters
    sizes = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}  # the keys that main.py gives, all of them needed
    return execution.PromptExecutor(server, **({"cache_args": sizes} if newer else {}))


def api(name: str, **widgets: Any) -> dict[str, Any]:
    """A prompt of tests/api with widgets replaced: `OSDFaceRestore__strength=0.5`."""
    prompt = json.loads((ROOT / "tests" / "api" / f"{name}.json").read_text())
    for target, value in widgets.items():
        kind, _, key = target.partition("__")
        for node in prompt.values():
            if node["class_type"] == kind:
                node["inputs"][key] = value
    return prompt


# ------------------------------------------------------------------ checks


def check_load(base: Path) -> dict[str, Any]:
    """The real loader takes the pack, and nothing leaks out of it."""
    before = set(sys.modules)
    comfy_nodes = start(base)
    own = sorted(
        n
        for n, c in comfy_nodes.NODE_CLASS_MAPPINGS.items()
        if getattr(c, "RELATIVE_PYTHON_MODULE", "").endswith(NAME)
    )
    import folder_paths

    assert folder_paths.folder_names_and_paths["osdface"][0] == [str(base / "models" / "osdface")]
    assert str(ROOT) not in sys.path and "osdface_core" not in set(sys.modules) - before, (
        "the pack leaked its name"
    )
    assert Path(sys.modules["nodes"].__file__).parent == COMFY, "`nodes` is no longer ComfyUI's"
    assert own[0] and all(comfy_nodes.NODE_CLASS_MAPPINGS[n].INPUT_TYPES() for n in own)
    assert (base / "input" / "osdface_example.jpg").is_file()
    with contextlib.suppress(ImportError):  # before 0.3.67
        from app.subgraph_manager import SubgraphManager

        found = asyncio.run(SubgraphManager().get_custom_node_subgraphs({}))
        assert [entry["name"] for entry in found.values()] == ["Restore faces"]
    return {"nodes": own, "docs": comfy_nodes.EXTENSION_WEB_DIRS}


def check_validate(base: Path) -> dict[str, Any]:
    """Every workflow passes validation as the server does it."""
    start(base)
    import execution

    results = {}
    for path in sorted((ROOT / "tests" / "api").glob("*.json")):
        prompt = json.loads(path.read_text())
        for node in prompt.values():
            if node["class_type"] == "CheckpointLoaderSimple":
                (base / "models" / "checkpoints").mkdir(exist_ok=True)
                (base / "models" / "checkpoints" / node["inputs"]["ckpt_name"]).touch()
        valid, error, _, node_errors = asyncio.run(execution.validate_prompt("test", prompt, None))
        results[path.stem] = [bool(valid), error, node_errors]
    assert all(valid for valid, *_ in results.values()), results
    bad = api("restore_photo", OSDFaceRestorePhoto__strength=1.5)
    assert not asyncio.run(execution.validate_prompt("test", bad, None))[0], (
        "an out-of-range widget was accepted"
    )
    return {"workflows": sorted(results)}


def check_execute(base: Path) -> dict[str, Any]:
    """Run, run again (cached), turn a dial (models stay), replace the model file (noticed), step by step."""
    start(base)
    import comfy.model_management as mm

    executor = make_executor()
    file = tiny_checkpoint(base)
    photo = api("restore_photo", OSDFaceRestorePhoto__checkpoint=file.name, OSDFaceRestorePhoto__upscale=1.0)
    status, server = run(executor, photo)
    assert status == "execution_success", executor.status_messages[-1]
    progress = server.of("progress")
    first = [id(m.model.model) for m in mm.current_loaded_models]
    assert len(first) == 3 and progress and any(p["preview"] for p in progress), (first, progress)
    run(executor, photo)
    assert set(executor.server.of("execution_cached")[0]["nodes"]) == set(photo), (
        "an unchanged graph ran again"
    )
    photo["2"]["inputs"]["strength"] = 0.5
    began = time.monotonic()
    run(executor, photo)
    assert [id(m.model.model) for m in mm.current_loaded_models] == first, "a dial reloaded the models"
    seconds = time.monotonic() - began
    os.utime(file)
    run(executor, photo)
    assert "2" not in executor.server.of("execution_cached")[0]["nodes"], (
        "a replaced model file went unnoticed"
    )
    widgets = {"OSDFaceLoadVRE__vre": file.name, "OSDFaceLoadRestorer__checkpoint": file.name}
    status, _ = run(executor, api("group_step_by_step", **widgets))
    assert status == "execution_success", executor.status_messages[-1]
    file.write_bytes(file.read_bytes()[:5000])
    status, _ = run(executor, photo)
    assert status == "execution_error"
    shown = executor.status_messages[-1][1]["exception_type"]
    assert shown == "osdface_core.CheckpointError", shown
    return {"dial_seconds": round(seconds, 2), "loaded": len(first), "progress": len(progress)}


def check_landscape(base: Path) -> dict[str, Any]:
    """A picture without a face goes through every workflow that needs no download."""
    start(base)
    from PIL import Image

    executor = make_executor()
    Image.linear_gradient("L").resize((320, 200)).convert("RGB").save(base / "input" / "sky.png")
    ran = {}
    for path in sorted((ROOT / "tests" / "api").glob("*.json")):
        prompt = api(path.stem)
        if any(node["class_type"] in ("CheckpointLoaderSimple", "LoadVideo") for node in prompt.values()):
            continue
        for node in prompt.values():
            if node["class_type"] == "LoadImage":
                node["inputs"]["image"] = "sky.png"
        status, server = run(executor, prompt)
        assert status == "execution_success", (path.stem, executor.status_messages[-1])
        ran[path.stem] = sum(len(d["output"].get("images", [])) for d in server.of("executed") if d["output"])
    return {"pictures": ran}


def check_interrupt(base: Path) -> dict[str, Any]:
    """Cancel between two batches stops the run, and the next run works."""
    start(base)
    import comfy.model_management as mm
    import comfy.utils

    executor = make_executor()
    file = tiny_checkpoint(base)
    told = comfy.utils.PROGRESS_BAR_HOOK

    def cancel(value: int, total: int, preview: Any, **more: Any) -> None:
        told(value, total, preview, **more)
        if preview is not None:
            mm.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(cancel)
    photo = api("restore_photo", OSDFaceRestorePhoto__checkpoint=file.name, OSDFaceRestorePhoto__batch_size=1)
    status, server = run(executor, photo)
    assert status == "execution_interrupted", executor.status_messages[-1]
    previews = sum(p["preview"] for p in server.of("progress"))
    assert previews == 1, f"{previews} batches ran before the stop"
    comfy.utils.set_progress_bar_global_hook(told)
    status, _ = run(executor, photo)
    assert status == "execution_success", executor.status_messages[-1]
    return {"previews": previews}


def check_native(base: Path) -> dict[str, Any]:
    """MODEL's noise equals the diffusers backbone's on the same weights, bare and with a whole LoRA."""
    import torch

    start(base)
    native, lora, host = (pack_module(base, f"nodes.{n}") for n in ("native", "lora", "host"))
    backbone, core_lora = (pack_module(base, f"osdface_core.{n}") for n in ("models.backbone", "models.lora"))
    model, unet = sd_shaped(base)
    native.check_model(model)
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(3, 4, 32, 32, generator=generator)
    prompt = torch.randn(3, 77, 1024, generator=generator)
    measured: dict[str, Any] = {}
    with torch.inference_mode():
        ours, theirs = native.SocketPredictor(model), backbone.UNetPredictor(unet)
        for step in (0, 200, 399, 999):
            worst = (ours(latent, step, prompt) - theirs(latent, step, prompt)).abs().max()
            measured[f"eps_{step}"] = float(worst)
        factors, alpha = lora.read_lora(str(released_lora(base, unet)))
        patched, count = host.load_lora(model, lora.to_comfyui(factors, alpha), 0.7)
        core_lora.merge_lora(unet, factors, alpha, 0.7)
        change = native.SocketPredictor(patched)(latent, 399, prompt) - theirs(latent, 399, prompt)
        base_change = ours(latent, 399, prompt) - theirs(latent, 399, prompt)
    measured |= {"eps_lora": float(change.abs().max()), "layers": count, "of": len(factors)}
    assert count == len(factors) and measured["eps_lora"] < 1e-3, measured
    assert all(v < 1e-3 for k, v in measured.items() if k.startswith("eps_")), measured
    assert base_change.abs().max() > 0.05, "the LoRA changes nothing, so the test says nothing"
    return measured


# ------------------------------------------------------------------ small models


def tiny_checkpoint(base: Path) -> Path:
    """A random self-contained checkpoint in models/osdface."""
    sys.path.append(str(ROOT / "tests"))
    from tiny_model import write_tiny

    sys.path.remove(str(ROOT / "tests"))
    target = base / "models" / "osdface" / "tiny.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    return write_tiny(target)


def sd_shaped(base: Path) -> tuple[Any, Any]:
    """Random weights of SD 2.1's shape, small, as ComfyUI's MODEL and as diffusers' UNet."""
    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    width = 64
    unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=(width,) * 4, layers_per_block=1, cross_attention_dim=1024,
        attention_head_dim=(1,) * 4, use_linear_projection=True,
    ).eval()  # fmt: skip
    shape = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": width,
        "channel_mult": [1] * 4,
        "num_res_blocks": [1] * 4, "transformer_depth": [1, 1, 1, 0], "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * 6 + [0] * 2, "context_dim": 1024, "use_linear_in_transformer": True,
        "adm_in_channels": None, "use_temporal_attention": False, "use_spatial_transformer": True,
        "legacy": False,
        "dtype": torch.float32,
    }  # fmt: skip
    names = comfy.utils.unet_to_diffusers(shape)
    state = {names[k]: v.clone() for k, v in unet.state_dict().items()}
    config = comfy.supported_models.SD20(shape)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(state, "")
    model.load_model_weights(state, "")
    return comfy.model_patcher.ModelPatcher(model, mm.get_torch_device(), mm.unet_offload_device()), unet


def released_lora(base: Path, unet: Any) -> Path:
    """A LoRA file in the released mixture of key styles."""
    import torch
    from safetensors.torch import save_file

    state = {}
    for key, weight in unet.state_dict().items():
        module = key.removesuffix(".weight")
        if module == key or weight.ndim < 2:
            continue
        attention = ".attn1.to_" in module or ".attn2.to_" in module
        if not attention and not module.endswith(
            ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "downsamplers.0.conv")
        ):
            continue
        down, up = (".lora.down", ".lora.up") if attention else (".lora_A", ".lora_B")
        tail = (1, 1) if weight.ndim == 4 else ()
        state[f"unet.{module}{down}.weight"] = torch.randn(16, *weight.shape[1:]) * 0.05
        state[f"unet.{module}{up}.weight"] = torch.randn(weight.shape[0], 16, *tail) * 0.2
    path = base / "pytorch_lora_weights.safetensors"
    save_file(state, path)
    return path


if __name__ == "__main__":
    import torch

    torch.set_num_threads(2)
    print("RESULT " + json.dumps(globals()[f"check_{sys.argv[1]}"](Path(sys.argv[2]))))
