"""The grey-scale ArcFace ResNet-18 whose angle the face restoration papers report as "Deg."."""

from torch import Tensor, nn


class _Block(nn.Module):
    """BN, conv, BN, PReLU, strided conv, BN, plus the (projected) input; one PReLU serves both places."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(self.bn0(x))))))
        return self.prelu(out + (x if self.downsample is None else self.downsample(x)))


class ArcFaceResNet18(nn.Module):
    """(B,1,128,128) grey in [-1,1] -> (B,512) embedding, not normalised.

    Tensor names are those of ronghuaiyang/arcface-pytorch (`resnet18_110.pth`), which VQFR's Deg. script
    loads.
    Source: ArcFace (arXiv 1801.07698) section 3.1, improved residual blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU()
        self.maxpool = nn.MaxPool2d(2)
        widths = (64, 64, 128, 256, 512)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                _Block(widths[i], widths[i + 1], 1 if i == 0 else 2),
                _Block(widths[i + 1], widths[i + 1], 1),
            )
            for i in range(4)
        )
        self.bn4 = nn.BatchNorm2d(512)
        self.fc5 = nn.Linear(512 * 8 * 8, 512)
        self.bn5 = nn.BatchNorm1d(512)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.prelu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.bn5(self.fc5(self.bn4(x).flatten(1)))
