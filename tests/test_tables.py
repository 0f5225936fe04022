"""Tables: the same numbers give the same output."""

import numpy as np
import pandas as pd

from fraudlib import tables

FRAME = pd.DataFrame({"flagged": [3, 4], "share": [0.5, np.nan]}, index=["easy", "hard"])


def test_outputs_repeat() -> None:
    """HTML and text of two tables of the same frame are equal: no random identifier, no address."""
    one, two = (tables.show(FRAME.copy(), "Recall (simulated sample)") for _ in range(2))
    assert one._repr_html_() == two._repr_html_()
    assert repr(one) == repr(two)


def test_formats() -> None:
    """Floating numbers take the format, whole ones stay whole, what is missing is blank, the caption is there."""
    html = tables.show(FRAME, "Recall (simulated sample)", "{:.1%}")._repr_html_()
    for part in ("50.0%", ">3<", "Recall (simulated sample)", "easy"):
        assert part in html
    assert "nan" not in html
    assert "easy" not in tables.show(FRAME, "Recall", index=False)._repr_html_()
    assert "nan" not in repr(tables.show(FRAME, "Recall")).lower()
