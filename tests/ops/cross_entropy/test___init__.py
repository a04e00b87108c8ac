import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.ops import cross_entropy
from tests.ops.cross_entropy.cases import case


def test_auto_fuses_only_many_logits(monkeypatch):
    hidden, head, targets = case()
    used = []
    for name, real in list(cross_entropy.IMPLEMENTATIONS.items()):
        spy = lambda *x, name=name, real=real, **y: used.append(name) or real(*x, **y)  # noqa: E731
        monkeypatch.setitem(cross_entropy.IMPLEMENTATIONS, name, spy)
    cross_entropy.linear_cross_entropy(hidden, head, targets)
    monkeypatch.setattr(cross_entropy, "PLAIN_LOGITS", targets.size * head.shape[1] - 1)
    cross_entropy.linear_cross_entropy(hidden, head, targets)
    assert used == ["reference", "fused"]


def test_unknown_implementation():
    with pytest.raises(UserError, match="cross-entropy implementation 'quick' is not known"):
        cross_entropy.linear_cross_entropy(*case(), implementation="quick")
