"""Settings that hold for every test."""

import pytest
import torch

# The networks here are so small that a second thread slows them down.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory):
    """Hashes of files that the tests write do not land in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


# A described GPU (FakeTensorMode) counts as a device from then on. If the first backward pass came
# later, it would start threads, and torch refuses to train in a fork of such a process.
torch.ones((), requires_grad=True).backward()
