"""Makes inception.npz: features of pytorch-fid's InceptionV3, rebuilt from plain torch layers, on random weights.

    python tests/goldens/make_inception.py        # needs torch

The golden file holds the features, the published names with their shapes, and a resize of torch's `interpolate`.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from inception_arrays import random_array, random_images
from torch import nn


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs, outputs, **options):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def average(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def maximum(x):
    return F.max_pool2d(x, 3, stride=1, padding=1)


def halve(x):
    return F.max_pool2d(x, 3, stride=2)


def tall(inputs, outputs, size):
    return Unit(inputs, outputs, kernel_size=(size, 1), padding=(size // 2, 0))


def wide(inputs, outputs, size):
    return Unit(inputs, outputs, kernel_size=(1, size), padding=(0, size // 2))


def square(inputs, outputs, size):
    return Unit(inputs, outputs, kernel_size=size, padding=size // 2)


class BlockA(nn.Module):
    def __init__(self, inputs, pooled):
        super().__init__()
        self.branch1x1 = square(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = square(inputs, 48, 1), square(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = square(inputs, 64, 1), square(64, 96, 3)
        self.branch3x3dbl_3 = square(96, 96, 3)
        self.branch_pool = square(inputs, pooled, 1)

    def forward(self, x):
        fives = self.branch5x5_2(self.branch5x5_1(x))
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), fives, threes, self.branch_pool(average(x))], 1)


class BlockB(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.branch3x3 = Unit(inputs, 384, kernel_size=3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = square(inputs, 64, 1), square(64, 96, 3)
        self.branch3x3dbl_3 = Unit(96, 96, kernel_size=3, stride=2)

    def forward(self, x):
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), threes, halve(x)], 1)


class BlockC(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.branch1x1 = square(inputs, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = square(inputs, width, 1), wide(width, width, 7)
        self.branch7x7_3 = tall(width, 192, 7)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = square(inputs, width, 1), tall(width, width, 7)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = wide(width, width, 7), tall(width, width, 7)
        self.branch7x7dbl_5 = wide(width, 192, 7)
        self.branch_pool = square(inputs, 192, 1)

    def forward(self, x):
        sevens = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        doubled = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        doubled = self.branch7x7dbl_5(self.branch7x7dbl_4(doubled))
        return torch.cat([self.branch1x1(x), sevens, doubled, self.branch_pool(average(x))], 1)


class BlockD(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = square(inputs, 192, 1), Unit(192, 320, kernel_size=3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = square(inputs, 192, 1), wide(192, 192, 7)
        self.branch7x7x3_3, self.branch7x7x3_4 = tall(192, 192, 7), Unit(192, 192, kernel_size=3, stride=2)

    def forward(self, x):
        threes = self.branch3x3_2(self.branch3x3_1(x))
        sevens = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([threes, sevens, halve(x)], 1)


class BlockE(nn.Module):
    def __init__(self, inputs, pool):
        super().__init__()
        self.pool = pool
        self.branch1x1 = square(inputs, 320, 1)
        self.branch3x3_1 = square(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = wide(384, 384, 3), tall(384, 384, 3)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = square(inputs, 448, 1), square(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = wide(384, 384, 3), tall(384, 384, 3)
        self.branch_pool = square(inputs, 192, 1)

    def forward(self, x):
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(self.pool(x))]
        return torch.cat(parts, 1)


class Inception3(nn.Module):
    """As pytorch-fid uses it, with the classifier that its file carries and the FID does not use."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = square(32, 64, 3)
        self.Conv2d_3b_1x1 = square(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, kernel_size=3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, average), BlockE(2048, maximum)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        x = halve(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


@torch.no_grad()
def main():
    model = Inception3().eval()
    names = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    arrays = {name: random_array(name, shape) for name, shape in names.items() if "num_batches" not in name}
    missing, unexpected = model.load_state_dict({n: torch.tensor(a) for n, a in arrays.items()}, strict=False)
    assert not unexpected and all("num_batches" in name for name in missing)
    images = torch.tensor(random_images())
    picture = ((images[0, :, :24, :36] + 1) * 127.5).round().to(torch.uint8)
    resized = F.interpolate(picture[None] / 255, size=(299, 299), mode="bilinear", align_corners=False)
    np.savez_compressed(
        pathlib.Path(__file__).with_name("inception.npz"),
        features=model(images).numpy(),
        picture=picture.permute(1, 2, 0).numpy(),
        resized=2 * resized[0, :, ::23, ::23].numpy() - 1,
        names=np.array(list(names)),
        shapes=np.array([",".join(map(str, shape)) for shape in names.values()]),
    )


if __name__ == "__main__":
    main()
