"""The decoder written a second time, in plain float64 NumPy, one row at a time: the reference of tests."""

import numpy as np


def rms_norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotate(x, positions, base, sections):
    """x [S H A] turned pair by pair as complex numbers."""
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    axis_of = [0] * sections[0] + [1] * sections[1] + [2] * sections[2]
    for i in range(half):
        z[..., i] *= np.exp(1j * positions[:, axis_of[i]] * base ** (-2 * i / (2 * half)))[:, None]
    return np.concatenate([z.real, z.imag], -1)


def gelu(x):
    """The tanh form, as flax has it."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def embed(config, p, row):
    out = np.zeros((len(row["tokens"]), config.width))
    for i in range(len(out)):
        scale, count = row["scale_index"][i], row["num_scales"][i]
        if scale > 0:
            x = sum(w * p["codes"][c] for c, w in zip(row["vision_ids"][i], row["vision_weights"][i]))
            x = x[config.input_dims]
            if "hidden" in p["connector"]:
                x = gelu(x @ p["connector"]["hidden"]["kernel"] + p["connector"]["hidden"]["bias"])
            out[i] = x @ p["connector"]["out"]["kernel"] + p["connector"]["out"]["bias"]
            if config.scale_embeddings:
                out[i] += p["scales"][scale - 1]
        else:
            out[i] = p["tokens"][row["tokens"][i]]
        if config.scale_count_encoding and count > 0:
            half = config.width // 2
            angle = count * 10000.0 ** (-np.arange(half) / (half - 1))
            out[i] += np.concatenate([np.sin(angle), np.cos(angle)]) * p["scale_count_gain"]
    return out


def attention(config, p, x, row):
    def project(name):
        y = np.einsum("sd,dha->sha", x, p[name]["kernel"])
        return y + p[name]["bias"] if config.attention_bias else y

    q, k, v = project("query"), project("key"), project("value")
    if config.qk_norm:
        q = rms_norm(q, p["query_norm"]["scale"], config.norm_eps)
        k = rms_norm(k, p["key_norm"]["scale"], config.norm_eps)
    q = rotate(q, row["positions"], config.rope_base, config.rope_sections)
    k = rotate(k, row["positions"], config.rope_base, config.rope_sections)
    out = np.zeros_like(q)
    for h in range(config.heads):
        g = h // (config.heads // config.kv_heads)
        for i in range(len(x)):
            seen = slice(row["attend_start"][i], row["attend_end"][i])
            out[i, h] = softmax(k[seen, g] @ q[i, h] / np.sqrt(config.head_size)) @ v[seen, g]
    return np.einsum("sha,had->sd", out, p["out"]["kernel"])


def logits(config, variables, row):
    """Logits [S V] of one row of `Sequence` arrays."""
    params = variables["params"]
    x = embed(config, params["embedding"], row)
    for layer in range(config.layers):
        p = _map(lambda a, layer=layer: a[layer], params["layers"])
        x = x + attention(config, p["attention"], rms_norm(x, p["attention_norm"]["scale"], config.norm_eps), row)
        y = rms_norm(x, p["mlp_norm"]["scale"], config.norm_eps)
        gate = y @ p["mlp"]["gate"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ p["mlp"]["up"]["kernel"])) @ p["mlp"]["down"]["kernel"]
    x = rms_norm(x, params["final_norm"]["scale"], config.norm_eps)
    return x @ (params["embedding"]["tokens"].T if config.tied_head else params["head"]["kernel"])


def to_float64(tree):
    return _map(lambda a: np.asarray(a, np.float64), tree)


def _map(function, tree):
    return {k: _map(function, v) for k, v in tree.items()} if isinstance(tree, dict) else function(tree)
