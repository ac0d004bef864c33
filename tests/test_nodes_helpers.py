"""Blend, compare, preview and the identity guard."""

import json

import pytest
import torch

from tests.comfy_stub import install, load_pack

NODES = load_pack().NODE_CLASS_MAPPINGS
import osdface_pack.nodes.identity as identity  # type: ignore[import-not-found]  # noqa: E402


@pytest.fixture(autouse=True)
def comfy(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "models")


def run(name, **inputs):
    node = NODES[name]()
    return getattr(node, node.FUNCTION)(**inputs)


def test_blend_by_mask_keeps_the_originals_bits():
    before, after = torch.rand(2, 20, 30, 3), torch.rand(2, 20, 30, 3)
    mask = torch.zeros(1, 20, 30)
    mask[:, :, 10:20] = 1.0
    (out,) = run("OSDFaceBlendByMask", original=before, restored=after, mask=mask, strength=1.0)
    assert torch.equal(out[:, :, :10], before[:, :, :10]) and torch.equal(out[:, :, 20:], before[:, :, 20:])
    assert torch.allclose(out[:, :, 10:20], after[:, :, 10:20])
    (other,) = run(
        "OSDFaceBlendByMask", original=before, restored=after, mask=mask, strength=1.0, invert=True
    )
    assert torch.equal(other[:, :, 10:20], before[:, :, 10:20])
    (half,) = run("OSDFaceBlendByMask", original=before, restored=after, mask=mask, strength=0.5)
    assert torch.allclose(half[:, :, 10:20], (before + after)[:, :, 10:20] / 2)


def test_blend_scales_the_original_and_the_mask():
    before, after = torch.rand(1, 20, 30, 3), torch.rand(2, 40, 60, 3)
    empty = torch.zeros(1, 64, 64)  # what LoadImage gives for a photo without alpha
    (out,) = run("OSDFaceBlendByMask", original=before, restored=after, mask=empty, strength=1.0, invert=True)
    assert out.shape == after.shape and torch.allclose(out, after, atol=1e-6)
    with pytest.raises(ValueError, match="differ in shape"):
        run("OSDFaceBlendByMask", original=before, restored=after[:, :, :40], mask=empty, strength=1.0)
    with pytest.raises(ValueError, match="one mask"):
        run("OSDFaceBlendByMask", original=after, restored=after, mask=empty.repeat(3, 1, 1), strength=1.0)


@pytest.mark.parametrize(
    ("layout", "size"), [("side_by_side", (20, 68)), ("stacked", (48, 30)), ("split", (20, 30))]
)
def test_before_after_layouts(layout, size):
    before, after = torch.zeros(2, 20, 30, 3), torch.ones(2, 20, 30, 3)
    (out,) = run(
        "OSDFaceBeforeAfter", before=before, after=after, layout=layout, position=0.5, gap=8, labels=False
    )
    assert out.shape == (2, *size, 3)
    assert out[:, 0, 0].max() == 0 and out[:, -1, -1].min() == 1


def test_before_after_labels_and_sizes():
    before, after = torch.full((1, 100, 150, 3), 0.5), torch.full((1, 200, 300, 3), 0.5)
    options = {"before": before, "after": after, "layout": "side_by_side", "position": 0.5, "gap": 0}
    (plain,) = run("OSDFaceBeforeAfter", labels=False, **options)
    (labelled,) = run("OSDFaceBeforeAfter", labels=True, **options)
    assert plain.shape == labelled.shape == (1, 200, 600, 3)
    changed = (plain - labelled).abs().amax(-1)[0] > 0.1
    assert changed[150:].any() and not changed[:100].any(), "captions belong into the lower corner"


def test_alpha_survives_blending():
    before, after = torch.rand(1, 20, 30, 4), torch.rand(2, 40, 60, 3)
    (out,) = run(
        "OSDFaceBlendByMask", original=before, restored=after, mask=torch.zeros(1, 8, 8), strength=1.0
    )
    assert out.shape == (2, 40, 60, 4)
    assert (out[0, ::2, ::2, 3] - before[0, ..., 3]).abs().mean() < 0.2
    both = torch.rand(1, 20, 30, 4)
    (out,) = run("OSDFaceBlendByMask", original=before, restored=both, mask=torch.ones(1, 8, 8), strength=1.0)
    assert torch.equal(out[..., 3], both[..., 3]), "the restored photo's own alpha comes first"


def test_alpha_survives_comparing():
    before, after = torch.rand(1, 100, 150, 4), torch.rand(1, 100, 150, 3)
    options = {"layout": "side_by_side", "position": 0.5, "gap": 8, "labels": True}
    (out,) = run("OSDFaceBeforeAfter", before=before, after=after, **options)
    assert out.shape == (1, 100, 308, 4)
    assert torch.equal(out[:, :50, :150, 3], before[:, :50, :, 3]), "above the caption nothing changes"
    assert (out[:, :, 150:, 3] == 1).all(), "the gap and a picture without alpha are opaque"
    assert (out[0, -12:, 12:30, 3] == 1).all(), "the caption can be read"


class Brightness:
    """In place of the recognition network: who a face is, is how bright its left and right half are."""

    def vectors(self, crops):
        halves = torch.stack(
            [crops[..., :256].mean(dim=(1, 2, 3)), crops[..., 256:].mean(dim=(1, 2, 3))], dim=1
        )
        return torch.nn.functional.normalize(halves, dim=1)


@pytest.fixture
def faces():
    before = torch.zeros(2, 3, 512, 512)
    before[..., :256] = 0.8
    before[..., 256:] = 0.1
    after = before.clone()
    after[1] = before[1].flip(-1)  # the second one became somebody else
    return before, after


def test_guard_lowers_the_strength_of_the_face_that_drifted(faces):
    before, after = faces
    out, kept = identity.guard(Brightness(), before, after, threshold=0.9)
    scores = [s for _, s in identity.scores(Brightness(), before, out)]
    assert kept[0] == 1.0 and torch.equal(out[0], after[0]), "a face above the threshold is not touched"
    assert 0.2 < kept[1] < 0.6 and 0.9 <= scores[1] < 0.93, "the most strength that the threshold allows"


def test_guard_against_a_reference(faces):
    before, after = faces
    reference = after[1:]  # the photo was wrong, the restoration right
    out, kept = identity.guard(Brightness(), before, after, threshold=0.95, reference=reference)
    assert kept.tolist() == [1.0, 1.0] and torch.equal(out, after)
    hopeless = torch.ones(1, 3, 512, 512)
    hopeless[..., 256:] = 0.0
    hopeless[..., :256] = 0.05
    out, kept = identity.guard(Brightness(), before[1:], after[1:], threshold=0.999999, reference=hopeless)
    assert kept.tolist() == [0.0], "below the threshold both ways: the one that scores higher stays"


def test_guard_node(faces, monkeypatch):
    import osdface_pack.nodes.restore as restore  # type: ignore[import-not-found]

    monkeypatch.setattr(restore, "load_scorer", lambda required: Brightness())
    before, after = (t.permute(0, 2, 3, 1) for t in faces)
    crops, first, second, text = run("OSDFaceIdentityGuard", before=before, after=after, threshold=0.9)
    assert crops.shape == after.shape and first == pytest.approx([1.0, 1.0]) and second[1] >= 0.9
    assert [row["strength_kept"] < 1 for row in json.loads(text)] == [False, True]
    untouched, _, scores, _ = run("OSDFaceIdentityGuard", before=before, after=after, threshold=0.0)
    assert torch.equal(untouched, after) and scores[1] < 0.5


def test_guard_without_weights_says_where_to_put_them(faces, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    before, after = (t.permute(0, 2, 3, 1) for t in faces)
    with pytest.raises(Exception, match=r"mobilefacenet\.pt into models/osdface"):
        run("OSDFaceIdentityGuard", before=before, after=after, threshold=0.5)
    assert identity.load_scorer(required=False) is None
    crops, first, second, text = run("OSDFaceIdentityGuard", before=before, after=after, threshold=0.0)
    assert torch.equal(crops, after) and len(first) == len(second) == 2 and text == "[]"
    assert all(score != score for score in first + second), "a read-out without weights is nan"


def test_validation_without_a_guard_reads_and_says_nothing(comfy, monkeypatch, tmp_path, caplog):
    """ComfyUI validates each prompt whole before it runs: a line there would come twice."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with caplog.at_level("INFO"):
        assert identity.check_guard(0.0) is True and identity.check_guard(None) is True
    assert not caplog.records
    assert "mobilefacenet.pt" in str(identity.check_guard(0.5))


def test_real_recognition_network(comfy, shared):
    """With the real weights a face scores 1 against itself and low against another person."""
    import numpy as np
    from PIL import Image

    comfy.add_file("osdface", "mobilefacenet.pt", (shared / "weights" / "mobilefacenet.pt").read_bytes())
    files = sorted((shared / "faces" / "val").glob("*.jpg"))[:2]
    crops = torch.stack(
        [torch.from_numpy(np.asarray(Image.open(f)) / np.float32(255)).permute(2, 0, 1) for f in files]
    )
    scorer = identity.load_scorer(required=True)
    same, other = identity.scores(scorer, crops, torch.stack([crops[0], crops[0]]))
    assert same == pytest.approx((1.0, 1.0), abs=1e-4) and other[1] < 0.6
