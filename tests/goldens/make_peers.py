"""Makes tests/goldens/peers.npz: tiny VAR and TokenFlow models in plain torch layers, their names and their results.

Needs torch only:  python -m tests.goldens.make_peers

Definitions are those of FoundationVision/VAR (models/), ByteVisionLab/TokenFlow (tokenflow/tokenizer/), OpenAI's CLIP,
timm's ViTamin and transformers' SigLIP, written anew with layers of torch and the published names of the weights.
"""

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.goldens.peer_arrays import random_pictures, random_weights
from tests.goldens.peer_coders import Coder

FILE = pathlib.Path(__file__).parent / "peers.npz"


def module(**parts):
    """A module with these parts; nested names as in a state dict."""
    built = nn.Module()
    for name, part in parts.items():
        setattr(built, name, part)
    return built


def interpolate(x, side, mode):
    return F.interpolate(x, size=(side, side), mode=mode)


class Var(nn.Module):
    """VAR's VQVAE: 32 and 64 channels, 64 codes of 8 dimensions, four convolutions over five scales."""

    size, ladder, base, widths, latent, codes = 10, (1, 2, 3, 4, 5), 32, (32, 64), 8, 64

    def __init__(self):
        super().__init__()
        self.encoder = Coder("var", "encoder", self.base, self.widths, 1, 3, self.latent)
        self.decoder = Coder("var", "decoder", self.base, self.widths, 2, self.latent, 3)
        self.quant_conv, self.post_quant_conv = (nn.Conv2d(self.latent, self.latent, 3, padding=1) for _ in range(2))
        phis = nn.ModuleList(nn.Conv2d(self.latent, self.latent, 3, padding=1) for _ in range(4))
        self.quantize = module(embedding=nn.Embedding(self.codes, self.latent), quant_resi=module(qresi_ls=phis))
        self.quantize.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.ladder), self.codes))

    def forward(self, pictures):
        features = self.quant_conv(self.encoder(pictures))
        table, ticks = self.quantize.embedding.weight, np.linspace(1 / 3 / 4, 1 - 1 / 3 / 4, 4)
        rest, total, codes = features, torch.zeros_like(features), []
        for k, side in enumerate(self.ladder):
            vectors = interpolate(rest, side, "area").permute(0, 2, 3, 1)
            chosen = torch.cdist(vectors.reshape(-1, self.latent), table).argmin(1).reshape(vectors.shape[:3])
            step = interpolate(table[chosen].permute(0, 3, 1, 2), self.ladder[-1], "bicubic")
            phi = int(np.argmin(np.abs(ticks - k / (len(self.ladder) - 1))))
            step = 0.5 * step + 0.5 * self.quantize.quant_resi.qresi_ls[phi](step)
            rest, total = rest - step, total + step
            codes.append(chosen.flatten(1))
        return {
            "features": features,
            "codes": torch.cat(codes, 1),
            "total": total,
            "picture": self.decoder(self.post_quant_conv(total)),
        }


class TokenFlow(nn.Module):
    """TokenFlow with one of the teachers; 16 codes of 6 and 4 dimensions."""

    base, latent, codes, semantic_dim, pixel_dim = 32, 12, 16, 6, 4
    decoder_width, decoder_heads, decoder_layers, teacher_width = 12, 3, 2, 10

    def __init__(self, teacher, widths, ladder, size, enhanced=False):
        super().__init__()
        self.ladder, self.size = ladder, size
        self.encoder = Coder("tokenflow", "encoder", self.base, widths, 1, 3, self.latent)
        wider = [width * (2 if enhanced else 1) for width in widths]
        self.decoder = Coder("tokenflow", "decoder", 0, wider, 3 if enhanced else 2, self.latent, 3)
        self.quant_conv = nn.Conv2d(self.latent, self.pixel_dim, 1)
        self.post_quant_conv = nn.Conv2d(self.pixel_dim, self.latent, 1)
        self.quantize = module(
            embedding_vqkd=nn.Embedding(self.codes, self.semantic_dim),
            embedding_vqgan=nn.Embedding(self.codes, self.pixel_dim),
        )
        self.quantize.register_buffer("codebook_used", torch.zeros(8))
        self.encoder_vqkd = teacher
        if not isinstance(teacher, Clip):
            self.scaling_layer = nn.Module()
            for name in ("shift", "scale"):
                self.scaling_layer.register_buffer(name, torch.ones(1, 3, 1, 1))
        width, code_width = teacher.width, self.decoder_width
        self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, self.semantic_dim))
        self.decoder_vqkd = Beit(
            self.semantic_dim, code_width, self.decoder_heads, self.decoder_layers, ladder[-1] ** 2
        )
        self.decode_task_layer = nn.Sequential(
            nn.Linear(code_width, code_width), nn.Tanh(), nn.Linear(code_width, self.teacher_width)
        )

    def forward(self, pictures):
        side, seen, resized = self.ladder[-1], pictures, pictures
        if hasattr(self, "scaling_layer"):
            seen = ((pictures + 1) * 127.5).clamp(0, 255) / 255
            seen = (seen - self.scaling_layer.shift) / self.scaling_layer.scale
        teacher = self.encoder_vqkd(seen)
        semantic = self.encode_task_layer(teacher).transpose(1, 2).reshape(len(pictures), -1, side, side)
        if isinstance(self.encoder_vqkd, Siglip):
            resized = interpolate(pictures, side * 2 ** (len(self.encoder.conv_blocks) - 1), "bicubic")
        features = torch.cat([semantic, self.quant_conv(self.encoder(resized))], 1)
        tables = self.quantize.embedding_vqkd.weight, self.quantize.embedding_vqgan.weight
        table = torch.cat([F.normalize(half, dim=-1) for half in tables], 1)
        rest, total, codes = features, torch.zeros_like(features), []
        for scale in self.ladder:
            halves = interpolate(rest, scale, "area").permute(0, 2, 3, 1).split([self.semantic_dim, self.pixel_dim], -1)
            vectors = torch.cat([F.normalize(half, dim=-1) for half in halves], -1)
            chosen = torch.cdist(vectors.flatten(0, 2), table).argmin(1).reshape(vectors.shape[:3])
            step = interpolate(table[chosen].permute(0, 3, 1, 2), side, "bicubic")
            rest, total = rest - step, total + step
            codes.append(chosen.flatten(1))
        semantic, pixel = total.split([self.semantic_dim, self.pixel_dim], 1)
        picture = self.decoder(self.post_quant_conv(pixel))
        if isinstance(self.encoder_vqkd, Siglip):
            picture = interpolate(picture, self.size, "bicubic")
        predicted = self.decode_task_layer(self.decoder_vqkd(semantic))
        return {
            "teacher": teacher,
            "features": features,
            "codes": torch.cat(codes, 1),
            "total": total,
            "picture": picture,
            "semantic": predicted,
        }


def attend(q, k, v, heads):
    """Attention [B, E, D] with the plain formula."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Beit(nn.Module):
    """The semantic decoder: fused projections with biases of queries and values only, norm over the patches."""

    def __init__(self, inputs, width, heads, layers, patches):
        super().__init__()
        self.heads = heads
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.patch_embed = module(proj=nn.Conv2d(inputs, width, 1))
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            attention = module(qkv=nn.Linear(width, 3 * width, bias=False), proj=nn.Linear(width, width))
            attention.q_bias, attention.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
            mlp = module(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width))
            norms = {name: nn.LayerNorm(width, eps=1e-6) for name in ("norm1", "norm2")}
            self.blocks.append(module(attn=attention, mlp=mlp, **norms))
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            attention = block.attn
            bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
            qkv = F.linear(block.norm1(x), attention.qkv.weight, bias)
            x = x + attention.proj(attend(*qkv.chunk(3, -1), self.heads))
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        return self.fc_norm(x[:, 1:])


class Clip(nn.Module):
    """OpenAI's image tower: patches without bias, class token, a norm before the blocks, QuickGELU."""

    def __init__(self, width=16, heads=2, layers=2, patch=4, patches=16):
        super().__init__()
        self.width = width
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(patches + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        blocks = nn.ModuleList()
        for _ in range(layers):
            mlp = module(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width))
            attention = nn.MultiheadAttention(width, heads, batch_first=True)
            blocks.append(module(attn=attention, mlp=mlp, ln_1=nn.LayerNorm(width), ln_2=nn.LayerNorm(width)))
        self.transformer = module(resblocks=blocks)

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            normed = block.ln_1(x)
            x = x + block.attn(normed, normed, normed, need_weights=False)[0]
            hidden = block.mlp.c_fc(block.ln_2(x))
            x = x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
        return self.ln_post(x[:, 1:])


class Siglip(nn.Module):
    """transformers' image tower; its last layer, norm and pooling head are there and unused."""

    def __init__(self, width=16, heads=2, layers=3, patch=3, patches=16, mlp_width=20):
        super().__init__()
        self.width, self.heads = width, heads
        blocks = nn.ModuleList()
        for _ in range(layers):
            attention = module(**{f"{name}_proj": nn.Linear(width, width) for name in ("q", "k", "v", "out")})
            mlp = module(fc1=nn.Linear(width, mlp_width), fc2=nn.Linear(mlp_width, width))
            norms = {name: nn.LayerNorm(width, eps=1e-6) for name in ("layer_norm1", "layer_norm2")}
            blocks.append(module(self_attn=attention, mlp=mlp, **norms))
        embeddings = module(
            patch_embedding=nn.Conv2d(3, width, patch, stride=patch), position_embedding=nn.Embedding(patches, width)
        )
        self.vision_model = module(
            embeddings=embeddings, encoder=module(layers=blocks), post_layernorm=nn.LayerNorm(width, eps=1e-6),
            head=module(layernorm=nn.LayerNorm(width, eps=1e-6)),
        )  # fmt: skip

    def forward(self, x):
        embeddings = self.vision_model.embeddings
        x = embeddings.patch_embedding(x).flatten(2).transpose(1, 2) + embeddings.position_embedding.weight
        for block in self.vision_model.encoder.layers[:-1]:
            normed, attention = block.layer_norm1(x), block.self_attn
            q, k, v = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
            x = x + attention.out_proj(attend(q, k, v, self.heads))
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.layer_norm2(x)), approximate="tanh"))
        return x


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of maps."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-6)

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Vitamin(nn.Module):
    """timm's ViTamin: convolutional stem, blocks with gated MLPs that have a norm of their own; no positions."""

    def __init__(self, width=16, heads=2, layers=2, channels=(4, 8), blocks=(2, 2)):
        super().__init__()
        self.width, self.heads = width, heads
        stages, inputs = nn.ModuleList(), channels[0]
        for outputs, count in zip(channels, blocks):
            stage = nn.ModuleList()
            for number in range(count):
                stage.append(self.bottleneck(inputs, outputs, 1 if number else 2))
                inputs = outputs
            stages.append(stage)
        first = channels[0]
        stem = module(
            conv1=nn.Conv2d(3, first, 3, 2, 1), norm1=ChannelNorm(first), conv2=nn.Conv2d(first, first, 3, 1, 1)
        )
        pool = module(norm=ChannelNorm(inputs), proj=nn.Conv2d(inputs, width, 3, 2, 1))
        self.patch_embed = module(backbone=module(stem=stem, stages=stages, pool=pool))
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            attention = module(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
            mlp = module(
                norm=nn.LayerNorm(width, eps=1e-6), w0=nn.Linear(width, 24), w1=nn.Linear(width, 24),
                w2=nn.Linear(24, width),
            )  # fmt: skip
            norms = {name: nn.LayerNorm(width, eps=1e-6) for name in ("norm1", "norm2")}
            self.blocks.append(module(attn=attention, mlp=mlp, **norms))

    @staticmethod
    def bottleneck(inputs, outputs, stride):
        inner = 4 * outputs
        shortcut = module(expand=nn.Conv2d(inputs, outputs, 1)) if inputs != outputs else nn.Module()
        return module(
            shortcut=shortcut, pre_norm=ChannelNorm(inputs), conv1_1x1=nn.Conv2d(inputs, inner, 1),
            conv2_kxk=nn.Conv2d(inner, inner, 3, stride, 1, groups=inner), conv3_1x1=nn.Conv2d(inner, outputs, 1),
        )  # fmt: skip

    def forward(self, x):
        backbone = self.patch_embed.backbone
        x = backbone.stem.conv2(F.gelu(backbone.stem.norm1(backbone.stem.conv1(x))))
        for stage in backbone.stages:
            for number, block in enumerate(stage):
                shortcut = x if number else F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
                if hasattr(block.shortcut, "expand"):
                    shortcut = block.shortcut.expand(shortcut)
                hidden = F.gelu(block.conv1_1x1(block.pre_norm(x)))
                x = shortcut + block.conv3_1x1(F.gelu(block.conv2_kxk(hidden)))
        x = backbone.pool.proj(backbone.pool.norm(x)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block.attn.proj(attend(*block.attn.qkv(block.norm1(x)).chunk(3, -1), self.heads))
            normed = block.mlp.norm(block.norm2(x))
            x = x + block.mlp.w2(F.gelu(block.mlp.w0(normed)) * block.mlp.w1(normed))
        return x


MODELS = {
    "var": Var,
    "clip": lambda: TokenFlow(Clip(), widths=[32, 32, 64], ladder=(1, 2, 4), size=16, enhanced=True),
    "vitamin": lambda: TokenFlow(Vitamin(), widths=[32] * 4 + [64], ladder=(1, 2), size=32),
    # 14 pixels make four patches of 3; the pixel branch sees 16
    "siglip": lambda: TokenFlow(Siglip(), widths=[32, 32, 64], ladder=(1, 2, 3, 4), size=14),
}


def main():
    """Writes the file."""
    results = {}
    for name, build in MODELS.items():
        model = build().eval()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        weights = {key: torch.from_numpy(value) for key, value in random_weights(shapes).items()}
        model.load_state_dict(weights)
        with torch.no_grad():
            found = model(torch.from_numpy(random_pictures(model.size)))
        results[f"{name}/shapes"] = np.array(json.dumps(shapes))
        for part, value in found.items():
            results[f"{name}/{part}"] = value.numpy()
            print(name, part, tuple(value.shape), float(value.float().std()))
    np.savez_compressed(FILE, **results)


if __name__ == "__main__":
    main()
