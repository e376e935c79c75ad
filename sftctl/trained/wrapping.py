"""Text that arrives in pieces, broken between words at the width of a terminal."""

from collections.abc import Callable

from sftctl.words import num_cells


class WordWrap:
    """Writes text so that no line is wider than `width` cells. A word is held until it ends.

    A word that is wider than a line is broken at the end of the line. A line can be broken between
    any two wide letters (Chinese, Japanese).
    """

    def __init__(self, width: int, write: Callable[[str], None]) -> None:
        self._width, self._write = max(2, width), write
        self._column, self._word, self._word_cells = 0, "", 0

    def add(self, text: str) -> None:
        """Take more of the text."""
        for letter in text:
            cells = num_cells(letter)
            if letter == "\n":
                self.flush()
                self._write("\n")
                self._column = 0
            elif letter.isspace():
                self.flush()
                if self._column < self._width:
                    self._write(letter)
                    self._column += 1
            else:
                if cells == 2 or self._word_cells + cells > self._width:
                    self.flush()
                self._word, self._word_cells = self._word + letter, self._word_cells + cells
                if cells == 2:
                    self.flush()

    def flush(self) -> None:
        """Write the word that is held, on a new line if it does not fit into this one."""
        if not self._word:
            return
        if self._column and self._column + self._word_cells > self._width:
            self._write("\n")
            self._column = 0
        self._write(self._word)
        self._column += self._word_cells
        self._word, self._word_cells = "", 0
