"""FoundationVision/VAR's own transformer at the sizes of experiments/bench/against_torch.py, from a copy of its code.

Its model, blocks, quantizer and sampling loop are used as they are; the vision tokenizer around the quantizer is left
out, and so is making the inputs of training from codes. Nothing of it is copied here.
"""

import argparse
import importlib
import pathlib
import sys
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from experiments.bench.decoder_sizes import AdamW, Draw, Sizes, repeat, serve, training_codes

CLASSES = 1000


class VARSide:
    """See `decoder_sizes.Side`."""

    def __init__(self, options: argparse.Namespace, sizes: Sizes) -> None:
        torch.set_num_threads(len(options.cores))
        torch.manual_seed(0)
        self._sizes, self._settings = sizes, AdamW()
        quantizer, self._model = _build(pathlib.Path(options.path), sizes)
        cells, codes = sizes.cells, torch.from_numpy(training_codes(sizes)).long()
        with torch.no_grad():
            self._inputs = quantizer.idxBl_to_var_input(list(codes.split(cells, dim=1)))
        self._codes, self._classes = codes, torch.arange(sizes.rows) % CLASSES
        betas = (self._settings.beta1, self._settings.beta2)
        settings = {"lr": self._settings.learning_rate, "betas": betas, "weight_decay": self._settings.weight_decay}
        self._optimizer = torch.optim.AdamW(self._model.parameters(), **settings, eps=self._settings.eps, fused=True)

    def describe(self) -> dict[str, Any]:
        """Versions, threads, parameters."""
        count = sum(value.numel() for value in self._model.parameters())
        return {"torch": torch.__version__, "threads": torch.get_num_threads(), "parameters": count}

    def train(self, seconds: float) -> list[float]:
        """See `Side`."""
        self._model.train()
        return repeat(self._step, seconds)

    def sample(self, draw: Draw, seconds: float) -> list[float]:
        """See `Side`; always guided, with VAR's guidance that grows from scale to scale."""
        self._model.eval()
        top_p = draw.top_p if draw.top_p < 1 else 0.0
        classes = torch.arange(draw.batch) % CLASSES
        settings = {"cfg": draw.guidance - 1, "top_k": draw.top_k, "top_p": top_p}
        return repeat(lambda: self._model.autoregressive_infer_cfg(draw.batch, classes, 0, **settings), seconds)

    def _step(self) -> float:
        logits = self._model(self._classes, self._inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), self._codes.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def _build(path: pathlib.Path, sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    """VAR's quantizer and transformer."""
    if not (path / "models" / "var.py").exists():
        raise FileNotFoundError(f"{path} is no copy of FoundationVision/VAR: it has no models/var.py")
    sys.path.insert(0, str(path))
    # Its packages have common names; they are imported in this process alone.
    var, quant = importlib.import_module("models.var"), importlib.import_module("models.quant")
    quantizer = quant.VectorQuantizer2(sizes.codes, sizes.code_dim, using_znorm=False, v_patch_nums=sizes.ladder)
    quantizer.embedding.weight.data.normal_(std=sizes.code_dim**-0.5)
    for parameter in quantizer.parameters():
        parameter.requires_grad_(False)
    tokenizer = types.SimpleNamespace(
        Cvae=sizes.code_dim, vocab_size=sizes.codes, quantize=quantizer, fhat_to_img=lambda features: features
    )
    model = var.VAR(
        tokenizer,
        num_classes=CLASSES,
        depth=sizes.layers,
        embed_dim=sizes.width,
        num_heads=sizes.heads,
        mlp_ratio=4.0,
        norm_eps=sizes.norm_eps,
        patch_nums=sizes.ladder,
    )
    model.init_weights(init_std=-1)
    return quantizer, model


if __name__ == "__main__":
    serve(VARSide)
