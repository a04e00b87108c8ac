"""Whether transformers loads what we export and computes the same: two commands, for two environments.

    python -m tests.goldens.check_hf_folder write DIR     ours: exports the golden checkpoints, random rows added
    python tests/goldens/check_hf_folder.py load DIR      torch and transformers >= 5: loads them, compares logits

DIR/text and DIR/vl_as_text are Qwen2 (AutoModelForCausalLM), DIR/vl a Qwen2.5-VL. Tokens and our float32 logits lie in
DIR/expected.npz; text positions, as generation has them.
"""

import pathlib
import sys

import numpy as np

CASES = {"text": ("text", False), "vl_as_text": ("vl", False), "vl": ("vl", True)}
"""Folder -> (golden, whether its layout is the source's)."""
ROWS, LENGTH = 2, 24


def write(out):
    """Exports every case and computes its logits."""
    import jax
    import jax.numpy as jnp

    from nextflow_jax.convert.hf_folder import save_folder
    from nextflow_jax.convert.qwen2_5 import open_checkpoint
    from nextflow_jax.models.decoder import Decoder, DecoderInputs
    from nextflow_jax.text import load_text_tokenizer
    from tests import qwen_folder
    from tests.convert.test_hf_folder import config_of, imported

    arrays = {"tokens": np.random.default_rng(1).integers(0, 80, (ROWS, LENGTH)).astype(np.int32)}
    steps = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
    inputs = DecoderInputs.zeros(ROWS, LENGTH)._replace(
        tokens=jnp.asarray(arrays["tokens"]),
        positions=jnp.repeat(steps[..., None], 3, axis=-1).astype(jnp.float32),
        attend_end=steps + 1,
    )
    for name, (golden, like_source) in CASES.items():
        folder = qwen_folder.make(out / "sources" / name, golden)
        config = config_of(folder)
        params = jax.tree.map(lambda array: array * np.float32(1.001), imported(folder, config))
        source = open_checkpoint(folder) if like_source else None
        save_folder(out / name, config, params, load_text_tokenizer(folder), 128, source, shard_bytes=40_000)
        logits, _ = jax.jit(Decoder(config).apply)({"params": params}, inputs)
        arrays[name] = np.asarray(logits[..., : config.vocabulary.text_size])
    np.savez(out / "expected.npz", **arrays)


def load(out):
    """Loads every case and prints its maximal difference."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    expected = np.load(out / "expected.npz")
    for name in CASES:
        auto = AutoModelForImageTextToText if name == "vl" else AutoModelForCausalLM
        model, info = auto.from_pretrained(out / name, output_loading_info=True)
        tokens = torch.from_numpy(expected["tokens"]).long()
        with torch.no_grad():
            logits = model(tokens).logits.float().numpy()
        tokenizer = AutoTokenizer.from_pretrained(out / name)
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "a sun"}], tokenize=False)
        missing = {kind: sorted(names) for kind, names in info.items() if names}
        print(
            f"{name}: {type(model).__name__}, {model.dtype}, max abs error {np.abs(logits - expected[name]).max():.2e}"
        )
        print(f"  loading: {missing or 'nothing missing, nothing unexpected'}")
        print(f"  {type(tokenizer).__name__}: {len(tokenizer)} ids, {chat!r}")


if __name__ == "__main__":
    {"write": write, "load": load}[sys.argv[1]](pathlib.Path(sys.argv[2]))
