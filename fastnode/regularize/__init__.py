"""Regularisers: training losses that make vector fields cheap to solve."""

from fastnode.regularize.base import Regularizer
from fastnode.regularize.global_ import Global
from fastnode.regularize.local import Local
from fastnode.regularize.rnode import RNODE
from fastnode.regularize.schedules import Constant, Exponential, Inverse, Linear, Schedule
from fastnode.regularize.steer import STEER
from fastnode.regularize.taynode import TayNODE, total_derivative

__all__ = [
    "RNODE",
    "STEER",
    "Constant",
    "Exponential",
    "Global",
    "Inverse",
    "Linear",
    "Local",
    "Regularizer",
    "Schedule",
    "TayNODE",
    "total_derivative",
]
