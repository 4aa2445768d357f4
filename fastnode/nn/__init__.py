"""Modules: vector fields, neural ODEs, and their training with and without simulation."""

from fastnode.nn.block import ODEBlock
from fastnode.nn.cnf import CNF
from fastnode.nn.fields import ConvField, MLPField
from fastnode.nn.node import EncodedODE, NeuralODE
from fastnode.nn.recipe_book import recipe
from fastnode.nn.recipes import Recipe
from fastnode.nn.simfree import LossModule, LossParts, SimulationFreeNODE

__all__ = [
    "CNF",
    "ConvField",
    "EncodedODE",
    "LossModule",
    "LossParts",
    "MLPField",
    "NeuralODE",
    "ODEBlock",
    "Recipe",
    "SimulationFreeNODE",
    "recipe",
]
