"""All commands as one: `janus-jax COMMAND ...`, the same as `python -m janus_jax COMMAND ...`.

Only the module of the chosen command is imported, so that help and mistakes come at once.
"""

import difflib
import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Sequence

import janus_jax

# Command -> its package, whose __main__.py runs it, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("janus_jax.data", "clean text, train a tokenizer, write a prepared dataset"),
    "train": ("janus_jax.train", "train a model, or resume a run"),
    "decode": ("janus_jax.decode", "generate an output for each line of a file"),
    "evaluate": ("janus_jax.evaluate", "score lines, or decode with a checkpoint and score"),
    "convert": ("janus_jax.convert", "import, export and average checkpoints"),
    "play": ("janus_jax.play", "try a checkpoint in the browser"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names with the others (default: those of the process).

    Returns:
      The exit status of the command; 2 if there is no such command.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        jax = importlib.metadata.version("jax")
        print(f"janus_jax {janus_jax.__version__} (jax {jax}, Python {platform.python_version()})")
        return 0
    if name not in COMMANDS:
        print(f"error: {_mistake(name)}; --help lists the commands", file=sys.stderr)
        return 2
    package, _ = COMMANDS[name]
    return importlib.import_module(f"{package}.__main__").main(rest)


def _help() -> str:
    lines = ["usage: janus-jax COMMAND [FLAGS]", "       janus-jax COMMAND --help | --help | --version", ""]
    lines += [f"  {name:<10}{text} (python -m {package})" for name, (package, text) in COMMANDS.items()]
    return "\n".join(lines)


def _mistake(name: str) -> str:
    if not name:
        return f"name a command: {', '.join(COMMANDS)}"
    # Whoever knows `python -m janus_jax.data` may look for `data`.
    names = {package.rpartition(".")[2]: command for command, (package, _) in COMMANDS.items()}
    names |= {command: command for command in COMMANDS}
    near = difflib.get_close_matches(name, names, n=1)
    return f"{' '.join(name.split())[:80]}: unknown command" + (f"; did you mean {names[near[0]]}?" if near else "")


if __name__ == "__main__":
    sys.exit(main())
