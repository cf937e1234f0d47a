"""A real TransferQueue on a small Ray of its own."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def transfer_queue():
    """The module ``transfer_queue``, connected. For one test module: others ask whether Ray is running."""
    import ray
    import transfer_queue as tq
    from omegaconf import OmegaConf

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    backend = {"storage_backend": "SimpleStorage", "SimpleStorage": {"num_data_storage_units": 1}}
    tq.init(OmegaConf.create({"backend": backend}))
    yield tq
    tq.close()
    ray.shutdown()
