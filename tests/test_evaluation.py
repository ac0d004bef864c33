"""Intervals, groups, summaries and the reports that people read."""

import io
import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from osdface_core.errors import ConfigError
from osdface_trainer.evaluation import gallery, table
from osdface_trainer.evaluation.gallery import thumbnail
from osdface_trainer.evaluation.intervals import mean_interval, ratio_interval, read_groups
from osdface_trainer.evaluation.scores import Report, Row, finite_values, summarise, to_json, worst_first
from osdface_trainer.metrics.base import Column

PERCEPTUAL = Column("perceptual", "lower", "a distance", digits=4)
IDENTITY = Column("identity_cos", "higher", "a cosine")
PSNR = Column("psnr", "higher", "a ratio", "dB", 2)
DETAIL = Column("hf_energy", "one", "a ratio")
COLUMNS = (PERCEPTUAL, IDENTITY, PSNR, DETAIL)


def picture(value: float) -> bytes:
    return thumbnail(torch.full((3, 64, 64), value))


def row(name: str, profile: str = "", scale: float = 1.0, **groups: str) -> Row:
    before = {"perceptual": 0.5 * scale, "identity_cos": 0.5, "psnr": 22.0, "hf_energy": 0.2}
    after = {"perceptual": 0.2 * scale, "identity_cos": 0.6, "psnr": 23.0, "hf_energy": 0.9}
    thumbs = {"input": picture(0.1), "restored": picture(0.5), "reference": picture(0.9)}
    return Row(name, profile, after, before, dict(groups), thumbs)


def report(*rows: Row) -> Report:
    return Report(COLUMNS, rows=list(rows), settings={"seed": 3})


def test_bootstrap_interval_covers_the_mean_and_repeats() -> None:
    values = np.random.default_rng(0).normal(5, 2, 200)
    first, again, other = (mean_interval(values, seed) for seed in (1, 1, 2))
    assert first == again and first != other
    assert first.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / math.sqrt(200)  # the normal approximation
    assert first.low == pytest.approx(values.mean() - half, abs=0.06)
    assert first.high == pytest.approx(values.mean() + half, abs=0.06)


def test_intervals_skip_missing_values_and_say_how_many_are_left() -> None:
    found = mean_interval([1.0, math.nan, 3.0])
    assert (found.mean, found.n) == (2.0, 2)
    assert mean_interval([math.nan]).n == 0
    assert finite_values(vars(mean_interval([]))) == {"mean": None, "low": None, "high": None, "n": 0}


def test_ratio_of_means_resamples_pairs() -> None:
    baseline = np.linspace(1, 9, 50)
    found = ratio_interval(0.6 * baseline, baseline)
    assert (found.mean, found.low, found.high) == pytest.approx((0.6, 0.6, 0.6), rel=1e-5)
    assert ratio_interval([1.0, 2.0, math.nan], [4.0, 4.0, 1.0]).mean == pytest.approx(0.375)
    assert ratio_interval([1.0], [0.0]).n == 0


def test_groups_come_from_the_manifest_by_stem_and_numbers_in_quarters(tmp_path) -> None:
    lines = [f"faces/f{i}.jpg,{'dark' if i % 2 else ''},{20 + i}" for i in range(12)]
    (tmp_path / "m.csv").write_text("\n".join(["file,tone,age", *lines]), encoding="utf-8")
    groups = read_groups(tmp_path / "m.csv", ["tone", "age"])
    assert groups["f0"]["tone"] == "unknown" and groups["f1"]["tone"] == "dark"
    assert len({entry["age"] for entry in groups.values()}) == 4
    assert groups["f0"]["age"].startswith("20–") and groups["f11"]["age"].endswith("–31")


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [("file,a\nx,1", ["b"], "no column 'b'"), ("path,a\nx,1", ["a"], "one must be 'file'")],
)
def test_a_manifest_without_the_column_is_refused(text, columns, message, tmp_path) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_groups(tmp_path / "m.csv", columns)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_groups(tmp_path / "none.csv", columns)


def test_summary_compares_with_the_input() -> None:
    summary = summarise("mild", None, [row("a"), row("b", scale=2.0)], COLUMNS, 0)
    line = summary.line("perceptual")
    assert line is not None and line.input is not None and line.ratio is not None
    assert (line.restored.mean, line.input.mean, line.ratio.mean) == pytest.approx((0.3, 0.75, 0.4))
    assert line.improved == 1.0
    assert summary.line("lmd") is None


def test_groups_are_summarised_apart() -> None:
    whole = report(
        row("a", tone="dark"), row("b", scale=2.0, tone="light"), row("c", scale=4.0, tone="light")
    )
    found = {summary.group: summary for summary in whole.summaries()}
    assert found[None].n == 3
    assert found["tone", "light"].n == 2
    line = found["tone", "light"].line("perceptual")
    assert line is not None and line.restored.mean == pytest.approx(0.6)


def test_worst_first_follows_the_direction_of_the_column() -> None:
    rows = [row("a"), row("b"), row("c"), row("d")]
    for one, (p, d) in zip(rows, [(0.1, 1.0), (0.4, 0.5), (0.2, 3.0), (math.nan, 0.9)], strict=True):
        one.restored |= {"perceptual": p, "hf_energy": d, "psnr": -p}
    assert [one.name for one in worst_first(rows, PERCEPTUAL)] == ["b", "c", "a", "d"]
    assert [one.name for one in worst_first(rows, PSNR)] == ["b", "c", "a", "d"]
    assert [one.name for one in worst_first(rows, DETAIL)] == ["c", "b", "d", "a"]


def test_json_is_strict_and_complete() -> None:
    whole = report(row("a", "mild"), row("b", "mild"))
    whole.rows[0].restored["psnr"] = math.nan
    whole.missing["dists"] = "vgg16 not found"
    whole.sets = {"mild": {"fid": {"restored": 12.0, "input": math.nan}}}
    document = json.loads(to_json(whole), parse_constant=pytest.fail)
    assert document["missing"] == {"dists": "vgg16 not found"}
    assert document["images"][0]["restored"]["psnr"] is None
    assert document["summary"][0]["metrics"]["psnr"]["restored"]["n"] == 1
    assert document["sets"]["mild"]["fid"] == {"restored": 12.0, "input": None}
    assert document["columns"]["perceptual"]["about"] == "a distance"


def test_table_names_what_is_missing_unmatched_and_failed() -> None:
    whole = report(row("a", "severe"))
    whole.missing["dists"] = "vgg16-397923af.pth not found"
    whole.unmatched["reference"] = [f"{i}.png" for i in range(12)]
    whole.failed["z"] = "z.png: truncated"
    text = table.to_text(whole)
    assert text.startswith("severe: 1 image\n")
    for part in ("dists: vgg16-397923af.pth", "12 unmatched (reference)", "and 4 more", "z.png: truncated"):
        assert part in text
    assert re.search(r"perceptual +lower is better +0\.2000 .* 0\.400 .*100 %", text)


def test_gallery_needs_nothing_from_outside() -> None:
    whole = report(row("a<b>", "mild", tone="dark"), row("</script>", "severe"))
    whole.missing["dists"] = "get it from https://download.pytorch.org/models <now>"
    page = gallery.render(whole, heading="A & B", verdict="x < y")
    assert "http" not in page and "//" not in _without_data(page)
    assert not re.search(r"<(link|iframe|img|script)[^>]*\s(src|href)=", page)
    assert page.count("</script>") == 2  # the data and the code: a name cannot close them
    assert "A &amp; B" in page and "x &lt; y" in page and "%DATA%" not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert [one["name"] for one in data["rows"]] == ["a<b>", "</script>"]
    assert data["rank"] == "perceptual"


def _without_data(page: str) -> str:
    return re.sub(r'id="data">.*?</script>', "", page, flags=re.S)


def test_gallery_embeds_the_worst_images_of_each_profile_when_there_are_many(monkeypatch) -> None:
    monkeypatch.setattr(gallery, "LIMIT", 4)
    rows = [row(f"{profile}{i}", profile, scale=i + 1) for profile in ("mild", "severe") for i in range(5)]
    page = gallery.render(report(*rows))
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert [one["name"] for one in data["rows"]] == ["mild4", "mild3", "severe4", "severe3"]
    assert "4 of 10 images are shown" in page


def test_thumbnails_are_small_and_round() -> None:
    data = thumbnail(torch.full((3, 800, 400), 0.5))
    small = Image.open(io.BytesIO(data))
    assert (small.format, small.size) == ("JPEG", (192, 384))
    assert np.asarray(small).mean() == pytest.approx(128, abs=1)
