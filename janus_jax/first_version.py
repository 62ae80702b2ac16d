"""Settings of the first version of janus_jax, whose checkpoints and prepared datasets still load."""

from typing import Any

# config.decode was one flat group: each key, and where its value belongs now.
_DECODE = {
    "mode": ("mode",),
    "nbest": ("nbest",),
    "rules": ("rules",),
    "batch_tokens": ("batch_tokens",),
    "beam": ("ar.beam", "ctc.beam"),
    "lenpen": ("ar.lenpen",),
    "stop": ("ar.stop",),
    "max_length_a": ("ar.max_length_a",),
    "max_length_b": ("ar.max_length_b",),
    "min_length": ("ar.min_length",),
    "no_repeat_ngram": ("ar.no_repeat_ngram",),
    "sample": ("ar.sample",),
    "temperature": ("ar.temperature",),
    "top_k": ("ar.top_k",),
    "top_p": ("ar.top_p",),
    "seed": ("ar.seed",),
    "passes": ("nar.passes",),
    "length_beam": ("nar.length_beam",),
    "lengths": ("nar.lengths",),
    "mask_schedule": ("nar.mask_schedule",),
    "early_stop": ("nar.early_stop",),
    "merge_repeats": ("nar.merge_repeats",),
    "rerank": ("nar.rerank", "ctc.rerank"),
    "blank_penalty": ("ctc.blank_penalty",),
    "ctc_tokens": ("ctc.tokens",),
    "draft": ("speculative.draft", "infill.draft"),
    "draft_from": ("speculative.draft_from",),
    "draft_passes": ("speculative.draft_passes", "infill.draft_passes"),
    "draft_lengths": ("speculative.draft_lengths",),
    "accept_top": ("speculative.accept_top", "infill.accept_top"),
    "accept_gap": ("speculative.accept_gap", "infill.accept_gap"),
}
_RULES = {"sound": "default"}


def migrate_first_version(raw: dict[str, Any]) -> dict[str, Any]:
    """A config, as nested dicts, with the keys of today; one that has them already comes back as it is.

    Args:
      raw: what `to_json` wrote, of the first version or of this one.
    """
    decode = raw.get("decode")
    if not isinstance(decode, dict) or "beam" not in decode:
        return raw
    migrated: dict[str, Any] = {}
    for key, value in decode.items():
        value = _RULES.get(value, value) if key == "rules" else value
        for place in _DECODE.get(key, (key,)):  # an unknown key is for `resolve` to name
            *groups, name = place.split(".")
            group = migrated
            for part in groups:
                group = group.setdefault(part, {})
            group[name] = value
    return {**raw, "decode": migrated}
