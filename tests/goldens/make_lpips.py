"""Makes lpips.npz: LPIPS as of the lpips package 0.1 with VGG16, rebuilt from plain torch layers, random weights.

    python tests/goldens/make_lpips.py        # needs torch

The golden file holds the distances and their gradients at narrow widths, and the published names with their shapes.
"""

import pathlib

import numpy as np
import torch
from lpips_arrays import SIZES, WIDTHS, random_array, random_pair
from torch import nn

CONVOLUTIONS = (2, 2, 3, 3, 3)
TAPS = (3, 8, 15, 22, 29)
PUBLISHED_WIDTHS = (64, 128, 256, 512, 512)


class Vgg(nn.Module):
    """torchvision's vgg16 up to its last ReLU: `features` counts convolutions, ReLUs and poolings in turn."""

    def __init__(self, widths):
        super().__init__()
        layers, inputs = [], 3
        for count, width in zip(CONVOLUTIONS, widths):
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)

    def forward(self, x):
        seen = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in TAPS:
                seen.append(x)
            if index == TAPS[-1]:
                return seen


class Linear(nn.Module):
    """A dropout, which is off, and a 1x1 convolution without bias."""

    def __init__(self, inputs):
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(inputs, 1, 1, bias=False))

    def forward(self, x):
        return self.model(x)


class Lpips(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.net = Vgg(widths)
        for index, width in enumerate(widths):
            setattr(self, f"lin{index}", Linear(width))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None], persistent=False)

    def forward(self, a, b):
        total = 0
        features = zip(self.net((a - self.shift) / self.scale), self.net((b - self.shift) / self.scale))
        for index, (of_a, of_b) in enumerate(features):
            units = [x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + 1e-10) for x in (of_a, of_b)]
            weighted = getattr(self, f"lin{index}")((units[0] - units[1]) ** 2)
            total = total + weighted.mean([2, 3], keepdim=True)
        return total[:, 0, 0, 0]


def published_names(module):
    """Names and shapes in the two published files: the network's `features`, and the linear weights."""
    names = {name.removeprefix("net."): tuple(value.shape) for name, value in module.state_dict().items()}
    return list(names), [",".join(map(str, shape)) for shape in names.values()]


def main():
    module = Lpips(WIDTHS).eval()
    arrays = {
        name: torch.tensor(random_array(name.removeprefix("net."), tuple(value.shape)))
        for name, value in module.state_dict().items()
    }
    module.load_state_dict(arrays)
    out = {}
    for size in SIZES:
        a, b = (torch.tensor(part) for part in random_pair(size))
        a.requires_grad_(True)
        distance = module(a, b)
        distance.sum().backward()
        out[f"distance_{size[0]}x{size[1]}"] = distance.detach().numpy()
        out[f"gradient_{size[0]}x{size[1]}"] = a.grad.permute(0, 2, 3, 1).numpy()
    with torch.device("meta"):
        names, shapes = published_names(Lpips(PUBLISHED_WIDTHS))
    path = pathlib.Path(__file__).with_name("lpips.npz")
    np.savez_compressed(path, names=np.array(names), shapes=np.array(shapes), **out)


if __name__ == "__main__":
    main()
