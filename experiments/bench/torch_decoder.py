"""A plain, well-written next-scale transformer in PyTorch: what experiments/bench/against_torch.py compares with.

The same function as nextflow_jax's decoder with the same weights: RMSNorm, multi-scale 3D RoPE, SwiGLU, residual scale
inputs resized bilinearly, one head over text, specials and codes. Queries, keys and values are one product, gate and up
another; attention is scaled_dot_product_attention, AdamW the fused one. PyTorch is imported in this file and in
experiments/bench/torch_var.py only.
"""

import argparse
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.bench.decoder_sizes import BOI, SPECIALS, AdamW, Draw, Sizes, prompts, repeat, serve, training_codes

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [rows, heads, slots, head size], allocated for a whole document."""


class Block(nn.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.head_size = sizes.heads, sizes.head_size
        inner = sizes.heads * sizes.head_size
        self.attention_norm = nn.RMSNorm(sizes.width, eps=sizes.norm_eps)
        self.qkv = nn.Linear(sizes.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, sizes.width, bias=False)
        self.mlp_norm = nn.RMSNorm(sizes.width, eps=sizes.norm_eps)
        self.gate_up = nn.Linear(sizes.width, 2 * sizes.mlp_width, bias=False)
        self.down = nn.Linear(sizes.mlp_width, sizes.width, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
        start: int = 0,
        causal: bool = False,
    ) -> Tensor:
        """x [rows, S, width]; with a cache, its positions go to slots from `start` on and see all up to their last."""
        rows, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(rows, length, 3, self.heads, self.head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        if cache is not None:
            keys, values = cache
            keys[:, :, start : start + length] = k
            values[:, :, start : start + length] = v
            k, v = keys[:, :, : start + length], values[:, :, : start + length]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    """The transformer over one picture schedule; everything that depends on the schedule alone is a buffer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.codes = nn.Embedding(sizes.codes, sizes.code_dim)
        self.connector = nn.Linear(sizes.code_dim, sizes.width)
        self.scales = nn.Embedding(len(sizes.ladder), sizes.width)
        self.scale_count_gain = nn.Parameter(torch.empty(sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width, eps=sizes.norm_eps)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        scale = torch.repeat_interleave(torch.arange(len(sizes.ladder)), torch.tensor(sizes.cells))
        self.register_buffer("scale", scale)
        self.register_buffer("positions", picture_positions(sizes))
        self.register_buffer("mask", scale[:, None] >= scale)
        self.register_buffer("count_encoding", sinusoid(len(sizes.ladder), sizes.width))
        resizes = [resize_matrix(a, b) for a, b in zip(sizes.ladder, sizes.ladder[1:])]
        self.register_buffer("resize", torch.block_diag(*resizes))
        for k, matrix in enumerate(resizes):
            self.register_buffer(f"resize_{k}", matrix)
        self.boi = sizes.text_size + BOI
        self.cached_blocks = list(self.blocks)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits [rows, tokens, vocabulary] of every code of pictures, from <boi> and the scales before its own."""
        seen = codes[:, : -self.sizes.cells[-1]]
        vision = self.connector(self.resize @ self.codes(seen)) + self.scales(self.scale[1:])
        begin = self.tokens.weight[self.boi].expand(len(codes), 1, -1)
        x = torch.cat([begin, vision], dim=1) + self.count_encoding * self.scale_count_gain
        rotation = make_rotation(self.positions, self.sizes)
        for block in self.blocks:
            x = block(x, rotation, mask=self.mask)
        return self.head(self.norm(x))

    @torch.inference_mode()
    def generate(self, prompt: Tensor, draw: Draw) -> Tensor:
        """Codes [batch, tokens] of pictures after prompts [rows, P]; guided: rows are both halves, guided first."""
        sizes, encoding = self.sizes, self.count_encoding * self.scale_count_gain
        rows, length = prompt.shape
        shape = (rows, sizes.heads, length + sizes.tokens, sizes.head_size)
        cache = [(torch.empty(shape), torch.empty(shape)) for _ in self.blocks]
        begin = self.tokens.weight[self.boi].expand(rows, 1, -1) + encoding
        x = torch.cat([self.tokens(prompt), begin], dim=1)
        text = torch.arange(length + 1.0)[:, None].expand(-1, 3)
        x = self._cached(x, make_rotation(text, sizes), cache, 0, causal=True)[:, -1:]
        rotations = make_rotation(self.positions + torch.tensor([length, 0.0, 0.0]), sizes)
        drawn, offset = [], 1
        for k, cells in enumerate(sizes.cells):
            if k:
                features = getattr(self, f"resize_{k - 1}") @ self.codes(drawn[-1].repeat(rows // len(drawn[-1]), 1))
                x = self.connector(features) + self.scales.weight[k] + encoding
                rotation = tuple(part[offset : offset + cells] for part in rotations)
                x = self._cached(x, rotation, cache, length + offset)
                offset += cells
            drawn.append(self._draw(x, draw))
        return torch.cat(drawn, dim=1)

    def _cached(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], cache: Cache, start: int, causal: bool = False
    ) -> Tensor:
        for block, slots in zip(self.cached_blocks, cache):
            x = block(x, rotation, cache=slots, start=start, causal=causal)
        return self.norm(x)

    def _draw(self, x: Tensor, draw: Draw) -> Tensor:
        logits = F.linear(x, self.head.weight[self.sizes.text_size + SPECIALS :])
        if draw.guided:
            guided, unguided = logits.chunk(2)
            logits = unguided + draw.guidance * (guided - unguided)
        if draw.temperature == 0:
            return logits.argmax(dim=-1)
        return sample(logits / draw.temperature, draw.top_k, draw.top_p)


def sample(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """One draw for each distribution [..., V], filtered by top-k, then top-p. Sorts the survivors of top-k alone."""
    flat, places = logits.flatten(0, -2), None
    if top_k or top_p < 1:
        flat, places = flat.topk(min(top_k or flat.shape[-1], flat.shape[-1]), dim=-1)
    probabilities = flat.softmax(dim=-1)
    if top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    drawn = torch.multinomial(probabilities, 1)
    drawn = drawn if places is None else places.gather(-1, drawn)
    return drawn.view(logits.shape[:-1])


def picture_positions(sizes: Sizes) -> Tensor:
    """(time, row, column) [tokens, 3] of <boi> at time 0 and the scales after it; each grid spans `rope_extent`."""
    parts = [torch.zeros(1, 3)]
    for time, side in enumerate(sizes.ladder[1:], start=1):
        cell = sizes.rope_extent / side * (torch.arange(side) + 0.5)
        row, column = torch.meshgrid(cell, cell, indexing="ij")
        parts.append(torch.stack([torch.full_like(row, time), row, column], dim=-1).view(-1, 3))
    return torch.cat(parts)


def make_rotation(positions: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, head size / 2]; frequencies turn with time, row and column in sections."""
    half = sizes.head_size // 2
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes.rope_sections))
    frequency = sizes.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = positions[:, axis] * frequency.float()
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns pairs (x[i], x[i + half]) of x [rows, heads, S, head size]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def resize_matrix(side_from: int, side_to: int) -> Tensor:
    """The bilinear resize of square grids as a matrix [side_to ** 2, side_from ** 2]."""
    unit = torch.eye(side_from**2).view(-1, 1, side_from, side_from)
    resized = F.interpolate(unit, size=(side_to, side_to), mode="bilinear", align_corners=False)
    return resized.flatten(1).T.contiguous()


def sinusoid(value: int, width: int) -> Tensor:
    """Sines, then cosines, of a number at width / 2 frequencies from 1 down to 1 / 10000."""
    half = width // 2
    angle = value * torch.exp(-np.log(1e4) * torch.arange(half, dtype=torch.float64) / (half - 1)).float()
    return torch.cat([angle.sin(), angle.cos()])


def make_optimizer(model: nn.Module, settings: AdamW) -> torch.optim.AdamW:
    """The fused AdamW, with decay on the matrices of linear layers."""
    decayed = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    others = [value for value in model.parameters() if all(value is not other for other in decayed)]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.eps, fused=True)


class TorchSide:
    """See `decoder_sizes.Side`."""

    def __init__(self, options: argparse.Namespace, sizes: Sizes) -> None:
        torch.set_num_threads(len(options.cores))
        torch.manual_seed(0)
        self._sizes, self._settings, self._compiled = sizes, AdamW(), options.compile
        self._model = Decoder(sizes)
        self._forward: Any = self._model
        if options.compile:
            self._forward = torch.compile(self._model, dynamic=False)
            # A program a scale and batch: compiled for one block, whose code all blocks share.
            torch._dynamo.config.recompile_limit = 64
            self._model.cached_blocks = [torch.compile(block, dynamic=False) for block in self._model.blocks]
        self._optimizer = make_optimizer(self._model, self._settings)
        self._codes = training_codes(sizes)

    def describe(self) -> dict[str, Any]:
        """Versions, threads, parameters."""
        count = sum(value.numel() for value in self._model.parameters())
        return {"torch": torch.__version__, "threads": torch.get_num_threads(), "parameters": count}

    def load(self, path: str) -> None:
        """Takes our weights (`our_decoder.OurSide.save`) and forgets the optimizer's state."""
        with np.load(path) as arrays:
            self._model.load_state_dict(from_ours({name: arrays[name] for name in arrays}), strict=False)
        self._optimizer = make_optimizer(self._model, self._settings)

    def logits(self, path: str) -> None:
        """Writes the training batch's logits."""
        with torch.no_grad():
            np.savez(path, logits=self._model(torch.from_numpy(self._codes)).numpy())

    def losses(self, steps: int) -> list[float]:
        """The loss before each of some training steps."""
        return [float(self._step()) for _ in range(steps)]

    def codes(self, draw: Draw) -> list[list[int]]:
        """The codes of one sampled batch."""
        return self._sample(draw).tolist()

    def train(self, seconds: float) -> list[float]:
        """See `Side`."""
        return repeat(lambda: float(self._step()), seconds)

    def sample(self, draw: Draw, seconds: float) -> list[float]:
        """See `Side`."""
        return repeat(lambda: self._sample(draw), seconds)

    def _step(self) -> Tensor:
        codes = torch.from_numpy(self._codes).long()
        targets = codes + self._sizes.text_size + SPECIALS
        loss = F.cross_entropy(self._forward(codes).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _sample(self, draw: Draw) -> np.ndarray:
        guided, unguided = prompts(self._sizes, draw.batch)
        rows = np.concatenate([guided, unguided]) if draw.guided else guided
        return self._model.generate(torch.from_numpy(rows).long(), draw).numpy()


def from_ours(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Our parameters, "a/b/c" -> array with the layers stacked, under this file's names."""

    def matrix(name: str, layer: int, outputs: int = 1) -> Tensor:
        """A kernel [inputs, outputs] as PyTorch's [outputs, inputs]; the last `outputs` dimensions are outputs."""
        kernel = arrays[f"layers/{name}/kernel"][layer]
        return torch.from_numpy(kernel.reshape(int(np.prod(kernel.shape[: kernel.ndim - outputs])), -1).T.copy())

    state = {
        "tokens.weight": arrays["embedding/tokens"],
        "codes.weight": arrays["embedding/codes"],
        "connector.weight": arrays["embedding/connector/out/kernel"].T,
        "connector.bias": arrays["embedding/connector/out/bias"],
        "scales.weight": arrays["embedding/scales"],
        "scale_count_gain": arrays["embedding/scale_count_gain"],
        "norm.weight": arrays["final_norm/scale"],
        "head.weight": arrays["head/kernel"].T,
    }
    state = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    for i in range(len(arrays["layers/attention_norm/scale"])):
        block = {
            "attention_norm.weight": torch.from_numpy(arrays["layers/attention_norm/scale"][i].copy()),
            "mlp_norm.weight": torch.from_numpy(arrays["layers/mlp_norm/scale"][i].copy()),
            "qkv.weight": torch.cat([matrix(f"attention/{name}", i, 2) for name in ("query", "key", "value")]),
            "out.weight": matrix("attention/out", i),
            "gate_up.weight": torch.cat([matrix(f"mlp/{name}", i) for name in ("gate", "up")]),
            "down.weight": matrix("mlp/down", i),
        }
        state |= {f"blocks.{i}.{name}": value for name, value in block.items()}
    return state


if __name__ == "__main__":
    serve(TorchSide)
