"""Many clients on one server, which is killed and restarted: every prediction is the right one."""

import threading
import time
from collections.abc import Callable
from itertools import islice

import numpy as np

from robometer_gym import RobometerRewardModel
from robometer_gym.models.remote import RemoteRewardModel
from robometer_gym.reward_model import Prediction, RewardModel
from robometer_gym.serve.limits import Limits
from tests.serve.schedules import Schedule
from tests.serve.servers import ChecksumModel, ServerProcess, read_metrics

CLIENTS = 64


def run_clients(
    url: str,
    batches: int,
    expected: Callable[[int], RewardModel],
    compare: Callable[[Prediction, Prediction], None],
    *,
    clients: int = CLIENTS,
    meanwhile: Callable[[Callable[[], int]], None] = lambda done: None,
    timeout: float = 60.0,
) -> None:
    """Predict drawn schedules in threads, and compare every prediction with a local one.

    Args:
        url: of the server.
        batches: how many calls of `predict` each client makes.
        expected: the local model of a client.
        compare: raises for predictions that differ.
        clients: one thread each; pairs of them share a RemoteRewardModel.
        meanwhile: called in this thread, with a function that counts the calls so far.
        timeout: of each call.
    """
    errors: list[BaseException] = []
    done = [0] * clients
    shared = [RemoteRewardModel(url, timeout=timeout) for _ in range(clients // 2)]

    def run(client: int) -> None:
        remote, local = shared[client // 2], expected(client)
        schedule = Schedule(seed=client)
        try:
            for clips in islice(schedule, batches):
                for mine, other in zip(remote.predict(clips), local.predict(clips), strict=True):
                    compare(mine, other)
                for stream in schedule.ended:
                    remote.release(stream)
                schedule.ended = []
                done[client] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()

    def count() -> int:
        if errors:
            raise errors[0]
        return sum(done)

    meanwhile(count)
    for thread in threads:
        thread.join()
    for remote in shared:
        remote.close()
    assert not errors, errors[0]
    assert sum(done) == clients * batches


def compare_bits(mine: Prediction, other: Prediction) -> None:
    assert mine.progress.tobytes() == other.progress.tobytes()
    assert mine.success.tobytes() == other.success.tobytes()


def kills(server: ServerProcess, times: int, calls: int) -> Callable[[Callable[[], int]], None]:
    """Return a function that kills and restarts the server, spread evenly over all calls."""

    def kill(done: Callable[[], int]) -> None:
        for number in range(1, times + 1):
            while done() < number * calls // (times + 1):
                time.sleep(0.005)
            server.restart()
        assert done() < calls  # the last kill was in the middle, too

    return kill


def test_no_number_changes_while_the_server_is_killed_and_evicts():
    """An agent would learn from another episode's rewards after a restart of the server."""
    limits = Limits(streams=60, stored_bytes=400_000, batch=32)  # of about 200 streams
    with ServerProcess(limits=limits) as server:
        run_clients(
            server.url,
            60,
            lambda client: ChecksumModel(verify=False),
            compare_bits,
            meanwhile=kills(server, 10, CLIENTS * 60),
        )
        metrics = read_metrics(server)
    assert metrics["robometer_evicted_streams_total"] > 0
    assert metrics["robometer_forgotten_frames_total"] > 0
    assert metrics["robometer_failed_batches_total"] == 0
    assert metrics["robometer_batch_clips_sum"] > 2 * metrics["robometer_batch_clips_count"]


def test_the_network_gives_the_same_numbers_over_http():
    """The reward would depend on where the model runs, and on which clips share its batch."""
    local = RobometerRewardModel.from_pretrained("demo")

    def compare(mine: Prediction, other: Prediction) -> None:
        np.testing.assert_allclose(mine.progress, other.progress, rtol=0, atol=1e-5)
        np.testing.assert_allclose(mine.success, other.success, rtol=0, atol=1e-5)

    limits = Limits(streams=60, stored_bytes=400_000)
    with ServerProcess("demo", limits=limits) as server:
        run_clients(
            server.url,
            4,
            lambda client: local,
            compare,
            meanwhile=kills(server, 10, CLIENTS * 4),
        )
