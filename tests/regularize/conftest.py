import embedded_step_cases
import pytest


@pytest.fixture
def reference():
    return embedded_step_cases.reference_step


@pytest.fixture
def first_step():
    return embedded_step_cases.reference_first_step


@pytest.fixture
def field():
    return embedded_step_cases.make_field()


@pytest.fixture
def y0():
    return embedded_step_cases.make_state()


@pytest.fixture
def gradients():
    return embedded_step_cases.parameter_gradients
