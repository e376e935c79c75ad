"""Break text that arrives in pieces between words, at the width of a terminal."""

from collections.abc import Callable

from sftctl.words import num_cells


class WordWrap:
    """Writes text with lines of at most `width` cells. A word is written only when it is complete.

    A word that is wider than a line is broken. A line may also be broken after any wide letter
    (Chinese, Japanese).
    """

    def __init__(self, width: int, write: Callable[[str], None]) -> None:
        self._width, self._write = max(2, width), write
        self._column, self._word, self._word_cells = 0, "", 0

    def add(self, text: str) -> None:
        """Add the next piece of the text."""
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
        """Write the pending word, on a new line if it does not fit on this line."""
        if not self._word:
            return
        if self._column and self._column + self._word_cells > self._width:
            self._write("\n")
            self._column = 0
        self._write(self._word)
        self._column += self._word_cells
        self._word, self._word_cells = "", 0
