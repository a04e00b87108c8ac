"""Makes qwen2_5/: random checkpoints as transformers writes them, and their logits; needs torch and transformers >= 5.

    python tests/goldens/make_qwen2_5.py

qwen2_5/text (Qwen2, tied head, one float32 file) and qwen2_5/vl (Qwen2.5-VL, a head of its own, bfloat16 in several
shards, with a vision tower); logits.npz has tokens, positions (different on each axis) and float32 logits, of vl with
its token table for a head, too. All parameters are random, norms and biases too, so that none can be left out.
"""

import pathlib
import shutil

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

OUT = pathlib.Path(__file__).with_name("qwen2_5")
SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 80,
    "eos_token_id": 81,
}
SECTIONS = [1, 1, 2]
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "window_size": 8,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [0],
}
VISION_IDS = {"image_token_id": 84, "video_token_id": 85, "vision_start_token_id": 82, "vision_end_token_id": 83}
ROWS, LENGTH = 2, 12


def randomise(model, generator):
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            is_scale = "norm" in key and key.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + float(is_scale))
    return model.eval()


def text_model(generator):
    rope = {"rope_type": "default", "rope_theta": 50.0}
    config = Qwen2Config(**SIZES, rms_norm_eps=1e-5, rope_parameters=rope, tie_word_embeddings=True)
    return randomise(Qwen2ForCausalLM(config), generator)


def vision_language_model(generator):
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": SECTIONS}
    text = {**SIZES, "rms_norm_eps": 1e-6, "rope_parameters": rope}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=VISION, **VISION_IDS, tie_word_embeddings=False)
    return randomise(Qwen2_5_VLForConditionalGeneration(config), generator)


def logits(model, tokens, positions):
    """Float32 logits; `positions` [3, B, S], or [B, S] for a text model."""
    with torch.no_grad():
        return model(input_ids=tokens, position_ids=positions, attention_mask=torch.ones_like(tokens)).logits


def main():
    generator = torch.Generator().manual_seed(0)
    shutil.rmtree(OUT, ignore_errors=True)
    tokens = torch.randint(0, SIZES["vocab_size"], (ROWS, LENGTH), generator=generator)
    positions = torch.randint(0, 40, (3, ROWS, LENGTH), generator=generator)
    text = text_model(generator)
    text.save_pretrained(OUT / "text")
    arrays = {"tokens": tokens, "positions": positions, "text": logits(text, tokens, positions[0])}
    vision_language_model(generator).to(torch.bfloat16).save_pretrained(OUT / "vl", max_shard_size="30KB")
    # Read again: in the model that was cast, the frequencies of the positions are rounded, too.
    vl = Qwen2_5_VLForConditionalGeneration.from_pretrained(OUT / "vl", dtype=torch.float32).eval()
    arrays["vl"] = logits(vl, tokens, positions)
    with torch.no_grad():
        vl.lm_head.weight.copy_(vl.model.language_model.embed_tokens.weight)
    arrays["vl_tied"] = logits(vl, tokens, positions)
    small = {torch.float32: np.float32, torch.int64: np.int32}
    np.savez_compressed(OUT / "logits.npz", **{name: a.numpy().astype(small[a.dtype]) for name, a in arrays.items()})
    for file in OUT.rglob("generation_config.json"):
        file.unlink()


if __name__ == "__main__":
    main()
