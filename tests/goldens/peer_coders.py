"""VQGAN's encoder and decoder in plain torch layers, named as VAR or as TokenFlow names them (for make_peers.py)."""

import torch
import torch.nn.functional as F
from torch import nn

STYLES = {
    "var": {"levels": {"encoder": "down", "decoder": "up"}, "block": "block"},
    "tokenflow": {"levels": {"encoder": "conv_blocks", "decoder": "conv_blocks"}, "block": "res"},
}


def group_norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.conv1 = group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = group_norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        hidden = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return hidden + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all channels of all cells."""

    def __init__(self, channels, style):
        super().__init__()
        self.norm, self.proj_out = group_norm(channels), nn.Conv2d(channels, channels, 1)
        if style == "var":
            self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        else:
            self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))

    def forward(self, x):
        normed = self.norm(x)
        parts = self.qkv(normed).chunk(3, 1) if hasattr(self, "qkv") else (m(normed) for m in (self.q, self.k, self.v))
        q, k, v = (part.flatten(2).transpose(1, 2) for part in parts)
        weights = torch.softmax(q @ k.transpose(1, 2) / x.shape[1] ** 0.5, dim=-1)
        return x + self.proj_out((weights @ v).transpose(1, 2).reshape(x.shape))


class Coder(nn.Module):
    """An encoder or a decoder.

    Args:
      style: a key of STYLES.
      role: "encoder" or "decoder".
      widths: channels of each level, fine to coarse.
      blocks: residual blocks a level.
      inputs, outputs: channels.
    """

    def __init__(self, style, role, base, widths, blocks, inputs, outputs):
        super().__init__()
        self.style, self.role = style, role
        order = list(range(len(widths)))[:: 1 if role == "encoder" else -1]
        width = base if role == "encoder" else widths[-1]
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        middle = [Residual(widths[-1], widths[-1]), Attention(widths[-1], style), Residual(widths[-1], widths[-1])]
        names = ("block_1", "attn_1", "block_2")
        self.mid = nn.ModuleDict(zip(names, middle)) if style == "var" else nn.ModuleList(middle)
        levels = {}
        for level in order:
            parts = {STYLES[style]["block"]: nn.ModuleList(), "attn": nn.ModuleList()}
            for _ in range(blocks):
                parts[STYLES[style]["block"]].append(Residual(width, widths[level]))
                width = widths[level]
                if level == len(widths) - 1:
                    parts["attn"].append(Attention(width, style))
            if level != order[-1]:
                stride = 2 if role == "encoder" else 1
                conv = nn.Conv2d(width, width, 3, stride=stride, padding=2 - stride)
                parts["downsample" if role == "encoder" else "upsample"] = nn.ModuleDict({"conv": conv})
            levels[level] = nn.ModuleDict(parts)
        # VAR numbers levels fine to coarse, TokenFlow in the order in which they run
        numbered = sorted(levels) if style == "var" else order
        setattr(self, STYLES[style]["levels"][role], nn.ModuleList(levels[level] for level in numbered))
        self.run = [numbered.index(level) for level in order]
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        middle = list(self.mid.values() if isinstance(self.mid, nn.ModuleDict) else self.mid)
        steps = [] if self.role == "encoder" else list(middle)
        for index in self.run:
            level = getattr(self, STYLES[self.style]["levels"][self.role])[index]
            for number, block in enumerate(level[STYLES[self.style]["block"]]):
                steps += [block, *level["attn"][number : number + 1]]
            if "downsample" in level:
                steps += [lambda x: F.pad(x, (0, 1, 0, 1)), level["downsample"]["conv"]]
            if "upsample" in level:
                steps += [lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), level["upsample"]["conv"]]
        for step in steps + (middle if self.role == "encoder" else []):
            x = step(x)
        return self.conv_out(F.silu(self.norm_out(x)))
