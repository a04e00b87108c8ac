"""What the makers say of TPU chips: FLOP/s, memory and bandwidths. None of it was measured here.

Sources, read in November 2026: Google's pages on each generation (https://docs.cloud.google.com/tpu/docs/v5p and the
like; the table that compares v5p, v6e and TPU7x is on .../tpu7x), and "How to Scale Your Model", part 2
(https://jax-ml.github.io/scaling-book/tpus) for what the pages on v4 leave out.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation; figures are a chip's, in FLOP/s, bytes and bytes/s."""

    peak_flops: float
    """Dense bfloat16 FLOP/s."""
    hbm_bandwidth: float
    ici_bandwidth: float
    """What a chip can send to its neighbours on all links together (half of Google's bidirectional figure)."""
    torus_axes: int
    """Dimensions of the torus its links make, two links each."""
    wraps_at: int
    """Chips along a dimension of a slice must be a multiple of this for its ends to be joined; else one of the two
    directions of a ring is missing, and with it half of the dimension's bandwidth."""
    dcn_bandwidth: float
    """What a chip can send to other slices: its share of its host's network."""
    hbm_limit: int
    """Bytes that the TPU compiler (libtpu 0.0.42.1) lets a program have on one device."""
    devices: int = 1
    """JAX devices a chip, in topologies that programs are compiled for."""
    device_kinds: tuple[str, ...] = ()
    """`Device.device_kind`, here and on the machine itself."""
    megacore: bool = False
    """On the machine itself JAX shows the chip's two cores as one device, in such topologies as two."""
    simulated: bool = False
    """No such machine exists."""

    @property
    def peak_flops_of_device(self) -> float:
        """FLOP/s of a device as JAX shows it on the machine itself: what a run's MFU divides by."""
        return self.peak_flops / (1 if self.megacore else self.devices)


CHIPS = {
    "v4": Chip(
        275e12, 1228e9, 270e9, 3, 4, 6.25e9, int(15.25 * GIB), devices=2, device_kinds=("TPU v4",), megacore=True
    ),
    "v5e": Chip(197e12, 819e9, 200e9, 2, 16, 3.125e9, int(15.75 * GIB), device_kinds=("TPU v5 lite", "TPU v5e")),
    "v5p": Chip(459e12, 2765e9, 600e9, 3, 4, 6.25e9, int(95.74 * GIB), device_kinds=("TPU v5", "TPU v5p")),
    "v6e": Chip(918e12, 1638e9, 400e9, 2, 16, 12.5e9, int(31.25 * GIB), device_kinds=("TPU v6 lite", "TPU v6e")),
    "tpu7x": Chip(2307e12, 7380e9, 600e9, 3, 4, 12.5e9, int(94.75 * GIB), devices=2, device_kinds=("TPU7x",)),
    "cpu": Chip(1e12, 100e9, 10e9, 1, 1, 1e9, 16 * GIB, simulated=True),
}
"""Generation, as in names of topologies -> chip. "cpu" stands for simulated devices and has round numbers of no
machine, for trying out the command and in tests."""

SOURCE = (
    "https://docs.cloud.google.com/tpu/docs (each generation's page) and https://jax-ml.github.io/scaling-book/tpus"
)

PEAK_FLOPS = {kind: chip.peak_flops_of_device for chip in CHIPS.values() for kind in chip.device_kinds}
"""Dense bfloat16 FLOP/s of TPU devices by `Device.device_kind`."""
