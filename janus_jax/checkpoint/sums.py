"""Check sums of trees of arrays, computed where the arrays are."""

from typing import Any

import jax
import jax.numpy as jnp


def check_sums(items: dict[str, Any]) -> dict[str, int]:
    """A check sum of each named tree: of its 32-bit words, modulo 2^32, weighted by leaf.

    It doesn't depend on how arrays are split, and changes with any one word.
    """
    return {name: int(value) for name, value in jax.device_get(_sums(items)).items()}


@jax.jit
def _sums(items: dict[str, Any]) -> dict[str, jax.Array]:
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
