"""Notices that a machine of Google's is about to be taken away, which its metadata server has and no signal brings.

A pod that GKE drains and a job that SLURM stops are told by SIGTERM. A TPU VM, or any other VM of Compute Engine, is
not: maintenance and the preemption of a Spot machine appear as values on a server that each machine sees at the same
address (https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice,
https://docs.cloud.google.com/compute/docs/instances/create-use-spot). JAX does not look there: its preemption service
(`jax_enable_preemption_service`, XLA's `SigtermNotifier`) knows SIGTERM alone.
"""

import http.client
import os
import threading
import urllib.request
from collections.abc import Callable

HOST_VARIABLE = "GCE_METADATA_HOST"
"""Environment variable with another HOST[:PORT] of the server; Google's own libraries read it, too."""

POLL_SECONDS = 1.0
"""Spot machines have some 30 seconds in all."""

_HOST = "metadata.google.internal"
_TIMEOUT_SECONDS = 2.0
_NOTICES = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}
"""Keys of the server, and the value of each that means the end. A machine that migrates alive runs on."""


class Notices:
    """Reads the notices of this machine. A server that does not answer is not a notice, and is told of once.

    Args:
      say: tells the user.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._failed = False
        # A proxy of the environment knows nothing of this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def standing(self) -> str | None:
        """The notice that stands now, as `key: value`; None when there is none."""
        for key, end in _NOTICES.items():
            if self._read(key) == end:
                return f"{key}: {end}"
        return None

    def watch(self, tell: Callable[[str], None]) -> None:
        """Looks every `POLL_SECONDS`, in a thread of its own, and calls `tell` there with the first notice."""
        threading.Thread(target=self._watch, args=(tell,), name="nextflow_jax-maintenance", daemon=True).start()

    def _watch(self, tell: Callable[[str], None]) -> None:
        pause = threading.Event()
        while not (notice := self.standing()):
            pause.wait(POLL_SECONDS)
        tell(notice)

    def _read(self, key: str) -> str:
        host = os.environ.get(HOST_VARIABLE, _HOST)
        url = f"http://{host}/computeMetadata/v1/instance/{key}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                return answer.read(100).decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            if not self._failed:
                self._failed = True
                self._say(f"{url} does not answer ({error}): notices of maintenance may be missed")
            return ""
