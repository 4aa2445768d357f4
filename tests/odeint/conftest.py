from __future__ import annotations

import pytest
from odeint_cases import Net


@pytest.fixture
def make_net():
    return Net
