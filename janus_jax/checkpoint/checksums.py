"""Checksums: of trees of numbers, computed where the numbers are, and of bytes."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def byte_checksums(assets: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each array of bytes, in hex digits."""
    return {name: hashlib.sha256(np.asarray(data).tobytes()).hexdigest() for name, data in assets.items()}


def check_bytes(assets: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Compares arrays of bytes with the checksums in a checkpoint's metadata; older checkpoints have none.

    Raises:
      ValueError: one differs, or is absent.
    """
    actual = byte_checksums(assets)
    wrong = sorted(name for name, value in about.get("asset_sums", {}).items() if actual.get(name) != value)
    if wrong:
        raise ValueError(f"the bytes of {' and '.join(wrong)} differ from those that were saved")


def checksums(items: dict[str, Any]) -> dict[str, int]:
    """The checksum of each named tree: the sum of its 32-bit words, weighted by leaf, modulo 2^32.

    It doesn't depend on how arrays are split over devices, and it changes with any single word.
    """
    if all(map(_is_in_memory, jax.tree.leaves(items))):
        return {name: _sum_by_numpy(tree) for name, tree in items.items()}
    return {name: int(value) for name, value in jax.device_get(_sums_by_devices(items)).items()}


def _is_in_memory(leaf: Any) -> bool:
    """Whether the leaf is in the host's memory. NumPy can then sum it, and nothing must be compiled."""
    dtype = getattr(leaf, "dtype", None)
    if not isinstance(dtype, np.dtype) or dtype.itemsize not in (2, 4) or not dtype.isnative:
        return False  # JAX converts it or refuses it
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())


def _sum_by_numpy(tree: Any) -> int:
    """The sum that `_sums_by_devices` computes."""
    total = 0
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        array = np.ascontiguousarray(leaf).reshape(-1)
        words = array.view(np.uint16 if array.itemsize == 2 else np.uint32)
        total += int(words.sum(dtype=np.uint32)) * (2 * i + 1)
    return total % 2**32


@jax.jit
def _sums_by_devices(items: dict[str, Any]) -> dict[str, jax.Array]:
    def words(leaf: jax.Array) -> jax.Array:
        if leaf.dtype.itemsize == 2:
            return jax.lax.bitcast_convert_type(leaf, jnp.uint16).astype(jnp.uint32)
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32)

    return {
        name: sum(
            (words(leaf).sum(dtype=jnp.uint32) * jnp.uint32(2 * i + 1) for i, leaf in enumerate(jax.tree.leaves(tree))),
            start=jnp.uint32(0),
        )
        for name, tree in items.items()
    }
