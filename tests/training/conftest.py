import dataclasses

import pytest
import torch
from tiny_run import make_run


@pytest.fixture(autouse=True)
def one_thread():
    """The nets are tiny: a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run_parts():
    """Makes (config, data, recipe) of a tiny run: run_parts(task, method, **settings)."""
    return make_run


@pytest.fixture
def changed():
    """dataclasses.replace, for frozen recipes and data sets."""
    return dataclasses.replace
