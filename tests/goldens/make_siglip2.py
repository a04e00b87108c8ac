"""Makes siglip2.npz: transformers' Siglip2 on random weights and several shapes; needs torch and transformers >= 5.

    python tests/goldens/make_siglip2.py

Two tiny models, "a" with a position table smaller than most of its grids and "b" with a larger one. For each:
"a/weights/NAME" (as safetensors files name them), inputs and features. All parameters are random, norms and biases
too, so that none can be left out unnoticed. Then patch grids and resized, cut pictures of the image processor.
"""

import pathlib

import numpy as np
import torch
from transformers import Siglip2Config, Siglip2Model
from transformers.models.siglip2.image_processing_siglip2 import (
    convert_image_to_patches,
    get_image_size_for_max_num_patches,
)

OUT = pathlib.Path(__file__).with_name("siglip2.npz")
PATCH = 4
SIZES = {
    "a": {"vision": (24, 2, 3, 40), "text": (16, 2, 4, 20), "cells": 9},
    "b": {"vision": (16, 1, 2, 24), "text": (24, 1, 2, 16), "cells": 49},
}
"""Width, layers, heads and MLP width of the towers; cells of the square position table."""
SHAPES = {
    "a": [(4, 6), (2, 3), (1, 5), (8, 3), (3, 3), (12, 2)],
    "b": [(2, 3), (5, 4), (7, 1), (3, 6), (1, 1), (2, 10)],
}
"""Rows and columns. No single column whose rows are resized too: there torch's antialiased resize on CPU is wrong (the
line 1, 11, 21 becomes 1, 1, 1, 1, 1, 1), seen with torch 2.15; our tests compare such shapes with jax.image.resize."""
PATCHES = {"a": 24, "b": 22}
VOCABULARY, TOKENS = 30, 7


def tower(sizes, **more):
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip(names, sizes), **more)


def model_arrays(name, generator):
    sizes = SIZES[name]
    width = sizes["vision"][0]
    text = tower(sizes["text"], vocab_size=VOCABULARY, max_position_embeddings=TOKENS, projection_size=width)
    vision = tower(sizes["vision"], patch_size=PATCH, num_patches=sizes["cells"])
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            is_scale = "norm" in key and key.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + float(is_scale))
    shapes = torch.tensor(SHAPES[name])
    mask = (torch.arange(PATCHES[name]) < shapes.prod(dim=1, keepdim=True)).to(torch.int32)
    values = torch.rand((len(shapes), PATCHES[name], 3 * PATCH**2), generator=generator) * 2 - 1
    tokens = torch.randint(0, VOCABULARY, (len(shapes), TOKENS), generator=generator)
    with torch.no_grad():
        out = model(tokens, pixel_values=values, pixel_attention_mask=mask, spatial_shapes=shapes)
    arrays = {f"weights/{key}": value for key, value in model.state_dict().items()}
    return arrays | {
        "values": values,
        "shapes": shapes,
        "tokens": tokens,
        "vision_features": out.vision_model_output.last_hidden_state,
        "pooled": out.vision_model_output.pooler_output,
        "text_features": out.text_model_output.last_hidden_state,
        "images": out.image_embeds,
        "texts": out.text_embeds,
        "logits": out.logits_per_image,
    }


def grids(generator):
    """Rows of (height, width, patch, budget, rows, columns)."""
    sizes = [(480, 640), (1, 1), (1, 5000), (3000, 2), (1024, 1024), (16, 16), (17, 16), (1080, 1920), (100, 99)]
    sizes += torch.randint(1, 3000, (20, 2), generator=generator).tolist()
    rows = []
    for height, width in sizes:
        for patch, budget in ((16, 256), (16, 1024), (14, 100)):
            target = get_image_size_for_max_num_patches(height, width, patch, budget)
            rows.append((height, width, patch, budget, target[0] // patch, target[1] // patch))
    return torch.tensor(rows)


def cut_picture(generator):
    image = torch.rand((3, 37, 22), generator=generator) * 2 - 1
    size = get_image_size_for_max_num_patches(37, 22, PATCH, 24)
    resized = torch.nn.functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    return {"picture": image.permute(1, 2, 0), "picture_patches": convert_image_to_patches(resized, PATCH)}


def main():
    generator = torch.Generator().manual_seed(0)
    arrays = {f"{name}/{key}": value for name in SIZES for key, value in model_arrays(name, generator).items()}
    arrays |= {"grids": grids(generator), **cut_picture(generator)}
    small = {torch.float32: np.float32, torch.int64: np.int32}
    np.savez_compressed(OUT, **{name: value.numpy().astype(small[value.dtype]) for name, value in arrays.items()})


if __name__ == "__main__":
    main()
