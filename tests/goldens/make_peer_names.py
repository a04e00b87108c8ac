"""Makes tests/goldens/peer_names.json: names and shapes of VAR's and TokenFlow's weights, from their own classes.

Needs torch, timm, transformers, einops and checkouts of both projects, initialised at
random (2 GB of memory); nothing is downloaded:

    python tests/goldens/make_peer_names.py --var VAR_CHECKOUT --tokenflow TOKENFLOW_CHECKOUT

An entry is a pattern and its shapes, each with the numbers that stand in the pattern's places.
"""

import argparse
import json
import pathlib
import re
import sys
import types
from unittest import mock

import packaging.version
import torch
import transformers.modeling_utils

FILE = pathlib.Path(__file__).parent / "peer_names.json"

TOKENFLOWS = (("clipb_224", False), ("vitamin_xlarge_256", True), ("siglip_384", False))


def var_shapes(checkout):
    """Of vae_ch160v4096z32."""
    sys.path.insert(0, str(checkout))
    from models.vqvae import VQVAE

    return shapes(VQVAE(vocab_size=4096, z_channels=32, ch=160, share_quant_resi=4))


def tokenflow_shapes(checkout):
    """Of every teacher, one of them with the enhanced pixel decoder, with 32,768 codes."""
    sys.path.insert(0, str(checkout))
    # asked for at import and not needed for names: versions of packages, CLIP's texts, helpers that are gone
    transformers.modeling_utils.get_parameter_device = transformers.modeling_utils.get_parameter_dtype = None
    sys.modules["pkg_resources"] = types.SimpleNamespace(packaging=packaging)
    for name in ("ftfy", "regex"):
        sys.modules.setdefault(name, mock.MagicMock())
    from tokenflow.tokenizer import vq_model

    replaced = {
        "clip": types.SimpleNamespace(load_clip_vision=clip_vision),
        "create_model": vitamin,
        "SiglipVisionModel": types.SimpleNamespace(from_pretrained=siglip),
    }
    found = {}
    with mock.patch.multiple(vq_model, **replaced):
        for teacher, enhanced in TOKENFLOWS:
            model = vq_model.TokenFlowFunc(codebook_size=32768, teacher=teacher, enhanced_decoder=enhanced)
            found[f"{teacher}{' enhanced' if enhanced else ''}"] = shapes(model)
    return found


def clip_vision(*_, **__):
    """The image tower of OpenAI's ViT-B/16, as TokenFlow leaves it."""
    from tokenflow.tokenizer.clip.model import VisionTransformer

    tower = VisionTransformer(224, 16, 768, 12, 12, 512)
    del tower.proj
    return tower


def vitamin(name, **_):
    """timm's model without its weights."""
    import timm

    return timm.create_model(name)


def siglip(_):
    """transformers' so400m image tower, under the prefix that it had when TokenFlow was trained."""
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipVisionModel

    sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    tower = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=384, patch_size=14))
    return torch.nn.ModuleDict({"vision_model": tower})


def shapes(model):
    """{pattern: [[shape, [numbers, ...]], ...]} of a state dict."""
    patterns = {}
    for name, tensor in model.state_dict().items():
        numbers = [int(number) for number in re.findall(r"(?<![\w])\d+(?![\w])", name)]
        entries = patterns.setdefault(re.sub(r"(?<![\w])\d+(?![\w])", "{}", name), {})
        entries.setdefault(tuple(tensor.shape), []).append(numbers)
    return {pattern: list(entries.items()) for pattern, entries in patterns.items()}


def main():
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--var", type=pathlib.Path, required=True)
    parser.add_argument("--tokenflow", type=pathlib.Path, required=True)
    options = parser.parse_args()
    names = {"var": var_shapes(options.var), **tokenflow_shapes(options.tokenflow)}
    entries = ",\n".join(
        f"{json.dumps(model)}: {{\n"
        + ",\n".join(
            f" {json.dumps(pattern)}: {json.dumps(found, separators=(',', ':'))}" for pattern, found in rows.items()
        )
        + "\n}"
        for model, rows in names.items()
    )
    FILE.write_text(f"{{\n{entries}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
