"""The batcher: one request's failure, of whatever kind, leaves the server to the others."""

import asyncio
from typing import Any

import numpy as np
import pytest

from robometer_gym import Clip, LazyRewardModel
from robometer_gym.serve.batcher import Batcher
from robometer_gym.serve.limits import Limits
from robometer_gym.serve.metrics import Metrics
from robometer_gym.testing import ScriptedRewardModel

CLIP = Clip(np.full((1, 8, 8, 3), 9, np.uint8), "open the drawer")


class Panic(BaseException):
    """As native code raises, outside of Exception."""


@pytest.mark.parametrize("error", [StopIteration(), Panic("a lock was poisoned"), SystemExit(3)])
def test_an_error_that_no_future_takes_leaves_the_server_running(error):
    """One bad request would end all predictions, while /ready still reports success."""
    broken = {"now": True}

    class Model(ScriptedRewardModel):
        def predict(self, clips: Any) -> Any:
            if broken["now"]:
                raise error
            return super().predict(clips)

    async def run() -> float:
        batcher = Batcher(LazyRewardModel(Model(progress=0.25)), Limits(), Metrics())
        worker = asyncio.create_task(batcher.run(lambda error: None))
        with pytest.raises(RuntimeError, match=type(error).__name__):
            await batcher.predict([CLIP], 60.0)
        broken["now"] = False
        (prediction,) = await batcher.predict([CLIP], 60.0)
        worker.cancel()
        batcher.close()
        return float(prediction.progress[-1])

    assert asyncio.run(run()) == 0.25
