"""Other systems for `benchmarks/decode.py --peer`: an encoder-decoder of equal size with random weights.

    pip install torch==2.13.0 transformers ctranslate2
    python benchmarks/decode.py --peer=transformers

The model is a BART of the benchmark's shape (single-stream decoder, cached keys and values). Hugging Face runs it in
PyTorch, and CTranslate2 runs the converted model. Every output has the full length. `Peer` runs this file in a process.
It reads lines "beams batch" from standard input, decodes one batch for each line and prints its seconds.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

NAMES = ("transformers", "ctranslate2")
SOURCE, TARGET, VOCAB = 28, 27, 10_000  # as in benchmarks/decode.py
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Run = Callable[[int, int], object]  # beams, batch


class Peer:
    """A peer in its own process, so that its threads and ours never wait for each other."""

    def __init__(self, name: str):
        """Starts the process.

        Args:
          name: one of NAMES.

        Raises:
          RuntimeError: the process does not start; its own error is on standard error.
        """
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._line()

    def seconds(self, beams: int, batch: int) -> float:
        """Seconds of one batch."""
        self._process.stdin.write(f"{beams} {batch}\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} did not start; pip install torch==2.13.0 transformers ctranslate2")
        return line.strip()


def make_bart():
    """A BART of the benchmark's shape in PyTorch with random weights."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=VOCAB, d_model=512, encoder_layers=6, decoder_layers=6,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=1024, decoder_ffn_dim=1024,
        activation_function="relu", scale_embedding=True, max_position_embeddings=1024,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


def sources(batch: int) -> np.ndarray:
    """Random token ids [batch, SOURCE] between bos and eos."""
    ids = np.random.default_rng(0).integers(5, VOCAB, (batch, SOURCE))
    ids[:, 0], ids[:, -1] = 0, 2
    return ids


def transformers_run() -> tuple[str, Run]:
    """Version and run of Hugging Face `generate`."""
    import torch
    import transformers

    model, steps = make_bart(), TARGET - 1

    def run(beams: int, batch: int) -> object:
        with torch.inference_mode():
            return model.generate(
                torch.from_numpy(sources(batch)),
                num_beams=beams,
                do_sample=False,
                max_new_tokens=steps,
                min_new_tokens=steps,
            )

    return f"transformers {transformers.__version__}, torch {torch.__version__}", run


def ctranslate2_run() -> tuple[str, Run]:
    """Version and run of CTranslate2's `translate_batch` with the converted model."""
    import ctranslate2
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = make_bart()
    # The converter reads these settings, which BART's configuration no longer has.
    for name, value in (
        ("normalize_before", False), ("normalize_embedding", True), ("add_final_layer_norm", False),
        ("static_position_embeddings", False),
    ):  # fmt: skip
        setattr(model.config, name, value)
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(4, VOCAB))]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")),
        bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/hf")
        tokenizer.save_pretrained(f"{folder}/hf")
        ctranslate2.converters.TransformersConverter(f"{folder}/hf").convert(f"{folder}/ct2")
        translator = ctranslate2.Translator(
            f"{folder}/ct2", device="cpu", compute_type="float32", intra_threads=THREADS
        )
    steps = TARGET - 1

    def run(beams: int, batch: int) -> object:
        lines = [[words[i] for i in row] for row in sources(batch)]
        return translator.translate_batch(
            lines, beam_size=beams, max_batch_size=0, min_decoding_length=steps, max_decoding_length=steps
        )

    return f"ctranslate2 {ctranslate2.__version__}, float32", run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the peer that the first argument names; returns the exit status."""
    (name,) = sys.argv[1:] if argv is None else argv
    with contextlib.redirect_stdout(sys.stderr):
        version, run = {"transformers": transformers_run, "ctranslate2": ctranslate2_run}[name]()
    print(version, flush=True)
    for line in sys.stdin:
        beams, batch = map(int, line.split())
        with contextlib.redirect_stdout(sys.stderr):
            start = time.perf_counter()
            run(beams, batch)
            seconds = time.perf_counter() - start
        print(seconds, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
