"""Tables of the notebooks: a caption that says what the numbers are, and the same output whenever they are the same."""

import re
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler


@dataclass(frozen=True, repr=False)
class Table:
    """A frame to look at, as HTML in a notebook and as text elsewhere; blank where a value is missing.

    Attributes
    ----------
    number : format of floating numbers; whole numbers and text are shown as they are.
    index : whether the rows' names are shown.
    """

    frame: pd.DataFrame
    caption: str
    number: str = "{:.3f}"
    index: bool = True

    def _formats(self) -> dict[Any, Any]:
        floats = [name for name in self.frame.columns if pd.api.types.is_float_dtype(self.frame[name])]
        return dict.fromkeys(floats, self.number)

    def _repr_html_(self) -> str:
        # pandas' own identifier is random: it would change the kept output with every run.
        name = re.sub(r"\W+", "-", self.caption.lower()).strip("-")
        styler = Styler(self.frame, uuid=name, caption=self.caption, cell_ids=False)
        styler = styler.format(self._formats(), na_rep="")
        return str((styler if self.index else styler.hide(axis="index")).to_html())

    def __repr__(self) -> str:
        formats = {name: number.format for name, number in self._formats().items()}
        text = self.frame.to_string(index=self.index, na_rep="", formatters=formats)
        return f"{self.caption}\n{text}"


def show(frame: pd.DataFrame, caption: str, number: str = "{:.3f}", *, index: bool = True) -> Table:
    """Table of a frame; see `Table`."""
    return Table(frame, caption, number, index)
