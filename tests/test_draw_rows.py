"""The picture of the rows is that of the masks as they are now."""

import numpy as np

from benchmarks import draw_rows


def test_committed_picture_is_current(tmp_path):
    assert draw_rows.main([f"--output={tmp_path / 'rows.svg'}"]) == 0
    assert (tmp_path / "rows.svg").read_bytes() == draw_rows.PATH.read_bytes()


def test_picture_shows_the_rules():
    rows, columns = draw_rows.groups()
    matrix = draw_rows.attention_matrix()
    assert matrix.shape == tuple(sum(len(group.tokens) for group in drawn) for drawn in (rows, columns))
    ends = np.cumsum([0, *(len(group.tokens) for group in columns)])
    starts = np.cumsum([0, *(len(group.tokens) for group in rows)])
    blocks = {
        (row.name, column.name): matrix[starts[i] : starts[i + 1], ends[j] : ends[j + 1]]
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    }
    for name in ("AR query", "AR content"):
        np.testing.assert_array_equal(blocks[name, "AR content"], np.tri(6, dtype=bool))
    assert blocks["NAR visible + mask", "NAR visible + mask"].all()
    assert not blocks["NAR visible + mask", "AUX gold"].any()
    np.testing.assert_array_equal(blocks["AUX gold", "AUX gold"], np.tri(3, dtype=bool))
    np.testing.assert_array_equal(blocks["AUX query", "AUX gold"], np.tri(3, k=-1, dtype=bool))
