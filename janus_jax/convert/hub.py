"""The metadata of a model card, which the Hugging Face Hub checks, and what a user says about the model for it."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import babel

from janus_jax.checkpoint import Loaded
from janus_jax.config import DataConfig
from janus_jax.convert.errors import ConvertError, library
from janus_jax.convert.scores import Score
from janus_jax.convert.values import shown

# The Hub refuses a card with another license. From https://huggingface.co/docs/hub/repositories-licenses, August 2026.
LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
    artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
    cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
    epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
    intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0
    postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2
    llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other
""".split()
# Data sources whose language codes are right by themselves: they choose the files, or the columns.
_CODES_CHOOSE = ("demo", "parallel", "tfds")


@dataclass(frozen=True)
class CardOptions:
    """What the user says about the model for its card; the command line has a flag for each."""

    license: str = ""  # of LICENSES; "": the card says that one must be chosen
    datasets: tuple[str, ...] = ()  # the names on the Hub of the training data
    repo_id: str = ""  # the model's name on the Hub, which the card's code loads; "": the name of the directory
    scores: Path | None = None  # a file for `scores_of_file`

    def check(self) -> None:
        """Raises ConvertError if the Hub would refuse one of them."""
        if self.license and self.license not in LICENSES:
            near = difflib.get_close_matches(self.license.lower(), LICENSES, n=1)
            raise ConvertError(
                f"--license={shown(self.license)}: not a name that the Hub knows{f'; did you mean {near[0]}?' if near else ';'} "
                "https://huggingface.co/docs/hub/repositories-licenses lists them"
            )
        validators = library("huggingface_hub.utils")
        names = [("repo_id", self.repo_id)] if self.repo_id else []
        for flag, name in [*names, *(("datasets", name) for name in self.datasets)]:
            try:
                validators.validate_repo_id(name)
            except validators.HFValidationError as error:
                raise ConvertError(
                    f"--{flag}: {shown(name)} is no name on the Hub; give OWNER/NAME, of letters, digits and - _ . only"
                ) from error


def languages(loaded: Loaded) -> dict[str, str]:
    """Code -> English name of the languages of source and target; {} where the config does not say them for certain."""
    codes, names = language_codes(loaded), babel.Locale("en").languages
    known = all(re.fullmatch("[a-z]{2,3}", code) and code in names for code in codes)
    return {code: names[code] for code in codes} if known else {}


def language_codes(loaded: Loaded) -> tuple[str, ...]:
    """The config's codes of source and target; () where it does not say them for certain."""
    data, default = loaded.config.data, DataConfig()
    codes = (data.source_lang, data.target_lang)
    chosen = data.source == "tsv" and codes != (default.source_lang, default.target_lang)
    # The config of an import describes no training.
    return codes if "from" not in loaded.about and (data.source in _CODES_CHOOSE or chosen) else ()


def metadata(name: str, options: CardOptions, codes: Sequence[str], parallel: bool, scores: Sequence[Score]) -> str:
    """The YAML at the top of a model card, without the lines around it.

    Args:
      name: the model's.
      options: of the user.
      codes: the languages of source and target; none: not known.
      parallel: whether the model has a parallel mode.
      scores: for the model index.
    """
    hub = library("huggingface_hub")
    task = "translation" if len(codes) == 2 else "text-generation"
    dataset = options.datasets[0] if len(options.datasets) == 1 else "custom"
    results = [
        hub.EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=score.split,
            dataset_split=score.split,
            metric_type=score.metric,
            metric_name=f"{score.name} ({score.decoding})" if score.decoding else score.name,
            metric_value=score.value,
        )
        for score in scores
    ]
    data = hub.ModelCardData(
        language=list(codes) or None,
        license=options.license or None,
        library_name="transformers",
        pipeline_tag=task,
        tags=["janus", "encoder-decoder", *(["non-autoregressive"] if parallel else [])],
        datasets=list(options.datasets) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()
