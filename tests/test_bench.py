"""`osdface bench`: what it counts, compares and writes; on a random model of a handful of channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measure, models, report, work
from osdface_core.cli.main import main
from osdface_core.config import VREConfig


@pytest.fixture(scope="module")
def result(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    target = tmp_path_factory.mktemp("bench") / "out.json"
    what = "--device cpu --size 128 --engine eager --dtype fp32,bf16 --batch-size 1,2 --runs 3 --quiet"
    assert main(["bench", "--model", str(tiny_checkpoint), *what.split(), "--json", str(target)]) == 0
    return json.loads(target.read_text())


def test_every_combination_is_measured(result: dict[str, Any]) -> None:
    found = [(r["dtype"], r["engine"], r["batch_size"]) for r in result["results"]]
    assert found == [(d, e, b) for d in ("float32", "bfloat16") for e in ("eager",) for b in (1, 2)]
    for record in result["results"]:
        assert set(record["ms_per_face"]) == {*models.STAGES, "total"}
        assert len(record["ratio_rounds"]) == len(record["rounds"]["total"]) == 3
        assert record["peak_mib"] > 0


def test_figures_agree_with_each_other(result: dict[str, Any]) -> None:
    for r in result["results"]:
        total = sorted(r["rounds"]["total"])[1]
        assert r["ms_per_face"]["total"] == pytest.approx(total / r["batch_size"], abs=1e-3)
        assert r["faces_per_second"] == pytest.approx(1e3 / r["ms_per_face"]["total"], rel=1e-2)
        flops = 2e9 * result["gmacs"]["total"] * r["faces_per_second"] / 1e12
        assert r["tflops"]["total"] == pytest.approx(flops, rel=0.02, abs=1e-3)


def test_float32_gives_the_plain_pipelines_pixels(result: dict[str, Any]) -> None:
    for r in result["results"]:
        assert r["beside_baseline"]["tokens_kept"] == 1.0
        assert r["beside_baseline"]["max_levels"] <= (2 if r["dtype"] == "float32" else 64)


def test_a_convolution_is_counted_as_by_hand(tiny_checkpoint: Path) -> None:
    parts = models.from_file(tiny_checkpoint, None, torch.device("cpu"))
    side, first = 128, parts.backbone.codec.encoder.layers[0]
    assert measure.gmacs(parts, side)["encode"] > side * side * first.weight.numel() / 1e9
    twice = measure.gmacs(parts, 2 * side)
    assert twice["decode"] == pytest.approx(4 * measure.gmacs(parts, side)["decode"], rel=0.05)
    assert twice["vre"] == measure.gmacs(parts, side)["vre"]  # it always sees its own resolution


def test_plain_codes_are_the_vres(tiny_pipeline: Any) -> None:
    signed = models.random_faces(2, 64, torch.device("cpu")) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(models.plain_codes(tiny_pipeline.vre, signed), tiny_pipeline.vre(signed))


def test_random_weights_keep_activations_finite() -> None:
    layers = torch.nn.Sequential(*(torch.nn.Conv2d(64, 64, 3, padding=1) for _ in range(12)))
    models.fill(layers, 0)
    out = layers.half().float()(torch.randn(1, 64, 16, 16))
    assert 0.05 < out.std() < 5


def test_full_size_has_the_released_work() -> None:
    parts = models.full_size(torch.device("meta"))
    counted = measure.gmacs(parts, 512)
    # Supplement Tab. 1: 99.47 G convolution multiply-adds of the VRE; attention and codebook add 0.3.
    assert counted["vre"] == pytest.approx(99.8, abs=0.1)
    assert counted["total"] == pytest.approx(2317.6, abs=1.0)
    terms = measure.terms(parts, 512)
    assert terms["vre"]["convolutions"] / 1e9 == pytest.approx(99.47, abs=0.01)
    heads = 2 * 2 * 4096**2 * 320  # each of the UNet's five self-attentions of 64 x 64: two products
    assert terms["unet"][measure.PRODUCTS] > 5 * heads / 2
    assert parts.config.vre == VREConfig()


def test_layers_and_their_adapters_are_the_papers_number() -> None:
    layers, adapters = work.by_layers(models.full_size(torch.device("meta")), 512)
    assert (layers + adapters) / 1e9 == pytest.approx(2132, abs=0.5)  # paper, Table 3
    factors = 16 * (320 + 320) * 64 * 64  # of one linear layer of the UNet at full resolution
    assert 100 * factors < adapters < 0.01 * layers


def test_a_folder_that_is_no_checkout_is_named(tiny_checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["bench", "--model", str(tiny_checkpoint), "--device", "cpu", "--reference", str(tmp_path)]
    assert main(command) == 2
    assert "lq_embed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [("--dtype", "fp8"), ("--batch-size", "0"), ("--engine", "magic"), ("--size", "100")]
)
def test_bad_options_are_usage_errors(option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *option])
    assert caught.value.code == 2


def test_the_table_names_every_stage(result: dict[str, Any]) -> None:
    text = report.table(result)
    assert all(stage in text for stage in models.STAGES)
    assert text.count("ms/face") >= len(result["results"])


def test_the_peak_of_one_process(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"bench --peak --device cpu --dtype bf16 --size 128 --runs 2 --quiet --model {tiny_checkpoint}"
    assert main(command.split()) == 0
    line = capsys.readouterr().out
    figures = [float(v.strip(",")) for v in line.split() if v.strip(",").replace(".", "").isdigit()]
    assert len(figures) == 3 and 0 < figures[0] <= figures[1] <= figures[2]


def test_weights_in_half_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda self, **_: self)  # shapes are enough
    parts = models.full_size(torch.device("meta"), torch.bfloat16)
    kinds = {p.dtype for part in (parts.backbone.codec, parts.backbone.predictor) for p in part.parameters()}  # type: ignore[attr-defined]
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in parts.prompt_encoder.parameters()} == {torch.float32}
