"""Face recognition networks: MobileFaceNet and ArcFace's IResNet, laid out as their weight files."""

from torch import Tensor, nn


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class _DepthwiseSeparable(nn.Module):
    """Depthwise 3×3 and pointwise 1×1, each with BatchNorm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.depthwise(x)).relu()
        return self.bn2(self.pointwise(x)).relu()


class _GlobalDepthwise(nn.Module):
    """A 7×7 depthwise convolution that reduces the 7×7 map to one position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.depthwise(x))


class MobileFaceNet(nn.Module):
    """(B, 3, 112, 112), RGB in ImageNet mean/std units → (B, 128), not normalised.

    Names and order of the tensors are those of foamliu/MobileFaceNet (Apache-2.0), 307 in its file.
    Source: MobileFaceNets (arXiv 1804.07573), Table 1.
    """

    STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
    """(expansion, channels, repeats, stride of the first)."""

    def __init__(self) -> None:
        from torchvision.models.mobilenetv2 import InvertedResidual  # late: a second of start-up

        super().__init__()
        self.conv1 = nn.Sequential(*_conv_norm(3, 64, 3, 2), nn.ReLU6())
        self.dw_conv = _DepthwiseSeparable(64)
        blocks: list[nn.Module] = []
        inputs = 64
        for expansion, channels, repeats, stride in self.STAGES:
            for index in range(repeats):
                blocks.append(InvertedResidual(inputs, channels, stride if index == 0 else 1, expansion))
                inputs = channels
        self.features = nn.Sequential(*blocks)
        self.conv2 = nn.Sequential(*_conv_norm(inputs, 512, 1), nn.ReLU6())
        self.gdconv = _GlobalDepthwise(512)
        self.conv3 = nn.Conv2d(512, 128, 1)
        self.bn = nn.BatchNorm2d(128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.features(self.dw_conv(self.conv1(x))))
        return self.bn(self.conv3(self.gdconv(x))).flatten(1)


class _IResBlock(nn.Module):
    """BN, conv 3×3, BN, PReLU, conv 3×3 (strided), BN, plus the (projected) input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, eps=1e-5)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(*_conv_norm(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """(B, 3, 112, 112), RGB in [-1, 1] → (B, 512), not normalised.

    Tensor names are those of InsightFace's `arcface_torch` backbones (r18, r34, r50, r100), so their
    `backbone.pth` loads as it is. Those weights are for non-commercial research; the code here is not theirs.

    Args:
        repeats: blocks per stage: r18 (2,2,2,2), r34 (3,4,6,3), r50 (3,4,14,3), r100 (3,13,30,3).
    Source: ArcFace (arXiv 1801.07698), §3.1.
    """

    def __init__(self, repeats: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=1e-5)
        self.prelu = nn.PReLU(64)
        inputs = 64
        stages = []
        for channels, count in zip((64, 128, 256, 512), repeats, strict=True):
            blocks = [
                _IResBlock(inputs if index == 0 else channels, channels, 2 if index == 0 else 1)
                for index in range(count)
            ]
            stages.append(nn.Sequential(*blocks))
            inputs = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(512, eps=1e-5)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))
