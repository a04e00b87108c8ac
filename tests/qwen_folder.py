"""A folder like Qwen's: the golden checkpoint with a tokenizer.json of its size and a chat template."""

import pathlib
import shutil
import string

import tokenizers

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "qwen2_5"
SPECIALS = ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
            "<|im_start|>")  # fmt: skip
"""With ids from 80, as the checkpoint's config.json has them; its table has 90 rows, three more than there are ids."""
FIRST_SPECIAL = 80
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tokenizer():
    """One id a character, and the added tokens."""
    characters = ["?", *string.ascii_letters, *string.digits, " ", "\n", *".,:;!"]
    characters += [f"<unused{i}>" for i in range(FIRST_SPECIAL - len(characters))]
    vocabulary = {character: index for index, character in enumerate(characters)}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="?"))
    model.decoder = tokenizers.decoders.Fuse()
    model.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return model


def make(target, name="vl"):
    """Copies the golden `name` ("vl", "text") to `target` and adds the tokenizer's files."""
    folder = pathlib.Path(shutil.copytree(GOLDENS / name, target))
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
