"""The pages agree with the checkout (links, file names, the tree) and keep their limits."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT, WRITTEN, prose_of, text_of

LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
PACKAGES = {path.name for path in (ROOT / "janus_jax").iterdir() if path.is_dir()}
# Files that tools write, and files that every package has.
IGNORED = {"__pycache__", "__init__.py", "__main__.py"}


@pytest.mark.parametrize("page", WRITTEN)
def test_links_lead_somewhere(page):
    for link in LINK.findall(text_of(page)):
        assert (PAGES[page].parent / link).exists(), link


def test_every_page_is_linked_from_the_readme_and_the_index():
    for start in ("README.md", "index.md"):
        linked = {link.rsplit("/")[-1] for link in LINK.findall(text_of(start))}
        assert set(PAGES) - {"README.md", "index.md"} <= linked, start


@pytest.mark.parametrize("page", WRITTEN)
def test_files_that_it_names_exist(page):
    names = re.findall(r"`((?:configs|tests|janus_jax|notebooks|benchmarks|launch|docs)/[\w./*]+)", text_of(page))
    names += [
        f"janus_jax/{name}"
        for name in re.findall(r"`(\w+/[\w/]+\.py)", text_of(page))
        if name.split("/")[0] in PACKAGES
    ]
    for name in names:
        assert any(ROOT.glob(name)), name


@pytest.mark.parametrize("page", WRITTEN)
def test_lines_are_short(page):
    long = [number for number, line in enumerate(text_of(page).splitlines(), 1) if len(line) > 120]
    assert not long, f"lines {long} have more than 120 characters"


def test_the_readme_is_short():
    lines = text_of("README.md").splitlines()
    assert len(lines) <= 150
    blocks = re.findall(r"^```bash\n(.*?)^```$", text_of("README.md"), re.MULTILINE | re.DOTALL)
    assert blocks == ["./launch/quickstart.sh\n./launch/test.sh\n"], "its two commands"


@pytest.mark.parametrize("page", WRITTEN)
def test_nothing_is_left_to_fill_in(page):
    assert not re.findall(r"TODO|TBD|FIXME|XXX|\?\?\?", text_of(page))
    # Names in code have backquotes; other names in capitals are placeholders.
    assert not re.findall(r"\b[A-Z]{4,}_[A-Z]{4,}\b", re.sub(r"`[^`]*`", "", prose_of(page)))


def tree_of(page, title):
    """The indented tree of a section as {directory: names in it}, without directories whose files are not listed."""
    part = re.search(rf"^## {title}\n(.*?)^## ", text_of(page), re.MULTILINE | re.DOTALL)[1]
    tree, above = {}, []
    for line in part.splitlines():
        if not (shown := re.match(r"    ( *)([\w.]+/?)(?:  |$)", line)):
            continue
        depth, name = len(shown[1]) // 2, shown[2]
        del above[depth:]
        tree.setdefault("/".join(above) or ".", set()).add(name.rstrip("/"))
        above.append(name.rstrip("/"))
    return tree


def test_the_tree_of_the_architecture_is_the_tree():
    tree = tree_of("architecture.md", "Where things are")
    assert {".", "janus_jax", "janus_jax/model", "janus_jax/objective", "janus_jax/decode"} <= set(tree)
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert tree.pop(".") == top & {"janus_jax", "configs", "launch", "notebooks", "benchmarks", "docs", "tests"}
    for folder, shown in tree.items():
        real = {path.name for path in (ROOT / folder).iterdir()} - IGNORED
        assert shown == real, f"{folder}: not in the tree {real - shown}, not in the checkout {shown - real}"


def test_the_walk_through_touches_at_most_nine_files():
    part = text_of("architecture.md").split("## Add a family of rows\n")[1].split("\n## ")[0]
    assert 1 <= len(re.findall(r"^\| \d+ \| `", part, re.MULTILINE)) <= 9


def test_sections_of_the_method_keep_their_numbers():
    titles = re.findall(r"^## (\d+)\. (.+)$", text_of("method.md"), re.MULTILINE)
    assert titles == [
        ("1", "The idea"), ("2", "Rows"), ("3", "Network"), ("4", "Masks of the target"), ("5", "Loss"),
        ("6", "Pretraining"), ("7", "Decoding"), ("8", "CTC and glancing"),
        ("9", "Correction of own tokens"), ("10", "A parallel half beside a finished AR model"), ("11", "DAG rows"),
    ]  # fmt: skip


def test_the_code_cites_sections_that_exist():
    sections = {int(number) for number in re.findall(r"^## (\d+)\. ", text_of("method.md"), re.MULTILINE)}
    cited = []
    for folder in ("janus_jax", "configs", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            cited += [(path, int(number)) for number in re.findall(r"docs/method\.md, sections? (\d+)", text)]
            assert not re.search(r"\bMETHOD (?:section|says)", text), f"{path}: cite docs/method.md, section N"
    assert len(cited) >= 10
    assert {number for _, number in cited} <= sections
