"""Embedding networks: timm features and a head. `python -m backbones` prints the size of every config."""
from .head import Head
from .network import EmbeddingNetwork, get_model, load_weights, read_weights

__all__ = ["EmbeddingNetwork", "Head", "get_model", "load_weights", "read_weights"]
