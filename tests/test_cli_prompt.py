"""Tests for L{domaeka.cli.prompt}."""

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from twisted.trial.unittest import SynchronousTestCase

from domaeka.cli.prompt import ERASE, LineEditor

UP, DOWN, RIGHT, LEFT, HOME, END, DELETE = (
    f"\x1b[{code}".encode() for code in ("A", "B", "C", "D", "H", "F", "3~")
)


class LineEditorTests(SynchronousTestCase):
    """Tests for L{LineEditor}."""

    def setUp(self) -> None:
        self.editor = LineEditor("> ", width=20)

    def typed(self, *keys: str | bytes) -> list[str]:
        """What is entered by some keys and Enter."""
        data = b"".join(key.encode() if isinstance(key, str) else key for key in (*keys, "\r"))
        return self.editor.feed(data)

    def test_lines(self) -> None:
        """Enter ends a line; an empty one is none; bytes may come one by one."""
        self.assertEqual(self.typed("안녕\r\r", "둘"), ["안녕", "둘"])
        entered = [self.editor.feed(bytes([byte])) for byte in "셋\n".encode()]
        self.assertEqual(entered[-1], ["셋"])

    def test_editing(self) -> None:
        """Keys move and delete whole characters, wide and joined ones included."""
        for keys, expected in (
            (("안녕하세여", b"\x7f", "요"), "안녕하세요"),
            (("나다", HOME, "가", END, "라"), "가나다라"),
            (("가다", LEFT, "나", RIGHT, "라"), "가나다라"),
            (("가x나", LEFT, LEFT, DELETE), "가나"),
            (("버릴 말", b"\x15", "남길 말"), "남길 말"),
            (("하나 둘 셋", b"\x17"), "하나 둘 "),
            (("가나다", LEFT, LEFT, b"\x0b"), "가"),
            (("가", b"\x01", "나", b"\x05", "다"), "나가다"),
            (("e\u0301x", LEFT, LEFT, b"\x04"), "x"),
            (("가", b"\x1b[200~", "나", b"\x1bOC", b"\x00\x1b[99;99;99x", "다"), "가나다"),
        ):
            self.assertEqual(self.typed(*keys), [expected], keys)

    def test_history(self) -> None:
        """What was entered comes back with the arrow keys."""
        self.typed("하나")
        self.typed("둘")
        self.assertEqual(self.typed(UP, UP, UP), ["하나"])
        self.assertEqual(self.typed(UP, UP, DOWN, DOWN, "새로"), ["새로"])

    def test_ends(self) -> None:
        """Ctrl-C ends it, and so does Ctrl-D in an empty line."""
        self.editor.feed("가".encode() + b"\x04")
        self.assertFalse(self.editor.ended)
        self.editor.feed(b"\x15\x04")
        self.assertTrue(self.editor.ended)
        self.setUp()
        self.assertEqual(self.editor.feed(b"x\x03y\r"), [])
        self.assertTrue(self.editor.ended)

    @settings(max_examples=100)
    @given(st.text("가나ab 👋\u0301"), st.integers(0, 10), st.integers(5, 30))
    def test_never_wraps(self, text: str, left: int, width: int) -> None:
        """However long the line is, what is drawn stays within the terminal's width."""
        editor = LineEditor("아주 긴 방 이름> ", width)
        editor.feed(text.encode() + LEFT * left)
        drawn = editor.draw().removeprefix(ERASE).split("\x1b[")[0]
        self.assertLess(cell_len(drawn), width)
