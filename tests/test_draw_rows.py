"""The picture of the rows is that of the masks as they are now."""

import numpy as np

from benchmarks import draw_rows


def test_committed_picture_is_current(tmp_path):
    assert draw_rows.main([f"--output={tmp_path / 'rows.svg'}"]) == 0
    assert (tmp_path / "rows.svg").read_bytes() == draw_rows.PATH.read_bytes()


def test_picture_shows_the_rules():
    layout = draw_rows.row_layout_of_sentence()
    rows, columns = draw_rows.groups(layout, draw_rows.SENTENCE, draw_rows.names_of_sentence())
    matrix = draw_rows.attention_matrix(layout)
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
    # A loss reads the AR query rows, the NAR rows of masked tokens and the AUX query rows, and no others.
    scored = {group.name: [i for i, read in enumerate(group.scored) if read] for group in rows}
    assert scored == {
        "AR query": [0, 1, 2, 3, 4, 5], "AR content": [], "NAR visible + mask": list(draw_rows.MASKED), "AUX gold": [],
        "AUX query": [0, 1, 2],
    }  # fmt: skip
    picture = draw_rows.draw(layout, draw_rows.SENTENCE, draw_rows.names_of_sentence())
    assert picture.count("<circle") == layout.read_rows == 12
