"""Networks by name, as an architecture writes them."""

from __future__ import annotations

from policies.models.mlp import FilmMlpOptions
from policies.models.network import NetworkOptions
from policies.models.transformer import TransformerOptions
from policies.models.unet import UnetOptions

__all__ = ["NETWORKS"]

NETWORKS: dict[str, type[NetworkOptions]] = {
    "mlp": FilmMlpOptions,
    "transformer": TransformerOptions,
    "unet1d": UnetOptions,
}
