"""Makes tests/goldens/weight_files/: small torch checkpoints of every kind that the reader has to take or refuse.

Needs torch:  python tests/goldens/make_weight_files.py
"""

import argparse
import collections
import pathlib
import pickle

import torch

FOLDER = pathlib.Path(__file__).parent / "weight_files"


class Malicious:
    """Unpickles to a call; the call leaves a file behind when it is run."""

    def __reduce__(self):
        return eval, ("open('weight_file_was_executed', 'w')",)


def weights():
    """One tensor of every kind; the tests know the values."""
    grid = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    shared = torch.arange(10, dtype=torch.float32)
    return collections.OrderedDict(
        float32=grid,
        float16=grid.half(),
        bfloat16=grid.bfloat16(),
        float64=grid.double(),
        int64=torch.tensor(7),
        int32=grid.int(),
        uint8=grid.byte(),
        boolean=grid > 5,
        transposed=grid.t(),
        expanded=torch.tensor([[1.0], [2.0]]).expand(2, 3),
        empty=torch.zeros(0, 3),
        head=shared[:4],
        tail=shared[6:],
        parameter=torch.nn.Parameter(torch.full((2,), 0.5)),
    )


def main():
    """Writes all files."""
    FOLDER.mkdir(exist_ok=True)
    everything = weights()
    torch.save(everything, FOLDER / "zip.pth")
    torch.save(everything, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    training = {
        "model": {"weight": torch.tensor([1.0, 2.0])},
        "ema": {"weight": torch.tensor([3.0, 4.0])},
        "trainer": {"vae_local": {"weight": torch.tensor([5.0, 6.0])}},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "steps": 12,
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(training, FOLDER / "training.pt")
    torch.save(torch.nn.Linear(1, 1), FOLDER / "module.pt")
    torch.save({"weight": torch.ones(2), "attack": Malicious()}, FOLDER / "malicious.pt")
    torch.save(
        {"weight": torch.ones(2), "attack": Malicious()},
        FOLDER / "malicious_legacy.pt",
        _use_new_zipfile_serialization=False,
    )
    (FOLDER / "plain_pickle.bin").write_bytes(pickle.dumps({"weight": [1.0, 2.0]}, protocol=2))


if __name__ == "__main__":
    main()
