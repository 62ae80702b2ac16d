"""Examples on disk: a TFDS dataset of array_record files, read and written without TensorFlow.

Any process can write a shard. The dataset exists once `finish` has renamed the shards.

Legend: N examples of a split.
"""

import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Example = Mapping[str, np.ndarray]  # column -> [length] int32
VERSION = "1.0.0"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_FORMAT = "array_record"


class Shard(NamedTuple):
    """A file of examples."""

    path: pathlib.Path
    examples: int  # how many
    digest: bytes  # SHA-256 of their columns in order


def digest(shards: Iterable[Shard]) -> str:
    """Hex digits that change with the examples of a split, from its shards in the order of the examples."""
    return hashlib.sha256(b"".join(shard.digest for shard in shards)).hexdigest()


def dataset_directory(directory: pathlib.Path, name: str) -> pathlib.Path:
    """The directory of the dataset `name` in a prepared directory."""
    return directory / name / VERSION


def write_shard(path: pathlib.Path, columns: Sequence[str], examples: Iterable[Example]) -> Shard:
    """Writes one array_record file of examples that can be read at random.

    Args:
      path: the file; its directory exists.
      columns: their names.
      examples: in the order of their ids.
    """
    # Imported here: it takes half a second.
    from array_record.python.array_record_module import ArrayRecordWriter

    features, count = _features(columns), 0
    content = hashlib.sha256(" ".join(columns).encode())
    writer = ArrayRecordWriter(str(path), "group_size:1")
    try:
        for example in examples:
            writer.write(features.serialize_example(features.encode_example(dict(example))))
            for column in columns:
                ids = np.asarray(example[column], "<i4")
                content.update(len(ids).to_bytes(4, "little") + ids.tobytes())
            count += 1
    finally:
        writer.close()
    return Shard(path, count, content.digest())


def finish(
    directory: pathlib.Path,
    name: str,
    columns: Iterable[str],
    shards: Mapping[str, list[Shard]],
    description: str,
) -> None:
    """Turns shards into a dataset: renames them and writes the metadata of TFDS.

    Args:
      directory: gets `name/1.0.0/`.
      name: of the dataset.
      columns: their names.
      shards: of each split, in the order of the examples.
      description: one line for the metadata of the dataset.
    """
    import tensorflow_datasets as tfds

    home = dataset_directory(directory, name)
    home.mkdir(parents=True, exist_ok=True)
    splits = []
    for split, files in shards.items():
        for number, shard in enumerate(files):
            shard.path.rename(home / f"{name}-{split}.{_FORMAT}-{number:05d}-of-{len(files):05d}")
        template = tfds.core.ShardedFileTemplate(
            data_dir=str(home), dataset_name=name, split=split, filetype_suffix=_FORMAT, template=_TEMPLATE
        )
        lengths = [shard.examples for shard in files]
        splits.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=0, filename_template=template))
    tfds.folder_dataset.write_metadata(
        data_dir=str(home),
        features=_features(columns),
        split_infos=splits,
        version=VERSION,
        filename_template=_TEMPLATE,
        check_data=False,
        description=description,
    )


def _features(columns: Iterable[str]) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({name: tfds.features.Tensor(shape=(None,), dtype=np.int32) for name in columns})
