"""Windows by configuration and by signal, read back by JAX's own parser of the files that xprof reads."""

import io
import os
import signal
import threading

import jax

from nextflow_jax.training.loop import train
from nextflow_jax.training.profile import FOLDER, ProfileConfig, Profiler
from tests.training.toy import ToyTask, toy_experiment


class Asking(ToyTask):
    """Sends this process SIGUSR1 while it makes a batch."""

    def batches(self, start, part, num_parts):
        for index, batch in enumerate(super().batches(start, part, num_parts)):
            if index == 8:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield batch


def steps_in(file):
    """The step numbers that the annotations of a profile carry."""
    events = [
        e for plane in jax.profiler.ProfileData.from_file(file).planes for line in plane.lines for e in line.events
    ]
    return [dict(event.stats)["step_num"] for event in events if event.name == "train"]


def test_windows_are_written_while_the_run_goes_on(tmp_path):
    said, before = io.StringIO(), signal.getsignal(signal.SIGUSR1)
    settings = toy_experiment(steps=20, profile=ProfileConfig(steps=(3,), length=2))
    state = train(settings, Asking(seconds=0.01), tmp_path, jax.devices()[:1], said)
    assert int(state.step) == 20 and signal.getsignal(signal.SIGUSR1) is before
    assert said.getvalue().count("profile of 2 steps from step") == 2
    configured, asked = sorted(
        (steps_in(str(file)) for file in (tmp_path / FOLDER).rglob("*.xplane.pb")), key=lambda steps: steps[0]
    )
    assert configured == [3, 4] and len(asked) == 2 and asked[0] > 4


def test_a_window_that_cannot_be_written_costs_the_profile_alone(tmp_path, monkeypatch):
    def full(_):
        raise RuntimeError("no space left")

    monkeypatch.setattr(jax.profiler, "start_trace", full)
    said = []
    profiler = Profiler(ProfileConfig(steps=(1, 2)), tmp_path, said.append)
    assert profiler.due(1) and not profiler.due(3)
    profiler.open(1)
    assert not profiler.ends_with(10) and said == ["no profile from step 1 on: no space left"]


def test_only_the_chosen_processes_have_the_configured_windows(tmp_path):
    for processes, mine in (((0,), True), ((), True), ((1, 2), False)):
        assert Profiler(ProfileConfig((5,), processes=processes), tmp_path, print).due(5) == mine


def test_outside_of_the_main_thread_no_handler_is_set(tmp_path):
    def enter():
        with Profiler(ProfileConfig(), tmp_path, print):
            handlers.append(signal.getsignal(signal.SIGUSR1))

    handlers = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGUSR1)]


def test_faults_name_what_is_wrong():
    assert [fault.field for fault in ProfileConfig(steps=(0,), length=0).faults()] == ["length", "steps"]
    assert not list(ProfileConfig(steps=(4, 100)).faults())
