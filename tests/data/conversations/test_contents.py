"""Contents: parts of text and of reasoning are read, what is not text is refused."""

from typing import Any

import pytest

from sftctl.data.ledger import BadRow
from tests.toys.data import read

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
HELLO = {"type": "text", "text": "Hello"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "hm"},
        {"type": "thinking", "text": "hm"},
        {"type": "reasoning", "text": "hm"},
        {"type": "reasoning", "reasoning": "hm", "text": None},
        {"thought": True, "text": "hm"},
    ],
)
def test_a_part_of_reasoning_is_reasoning(part: dict[str, Any]) -> None:
    row = {"messages": [USER, {"role": "assistant", "content": [part, HELLO]}]}
    assert read(row).messages[1] == ANSWER | {"reasoning_content": "hm"}


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text", None])
def test_parts_of_text_are_joined(kind: str | None) -> None:
    parts = [{"type": kind, "text": "Hel"}, {"type": kind, "text": "lo"}]
    assert read({"messages": [USER, {"role": "assistant", "content": parts}]}).messages[1] == ANSWER


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"type": "image_url", "image_url": {"url": "a"}}, "image_url"),
        ({"type": "image", "text": None}, "image"),
        ({"type": "tool_use", "id": "1", "name": "f", "input": {}}, "tool_use"),
        ({"type": "input_audio", "text": "x"}, "input_audio"),
        ({"functionCall": {"name": "f"}}, "functionCall"),
        ({"inlineData": {"mimeType": "image/png"}}, "inlineData"),
    ],
)
def test_a_part_that_is_not_text_is_refused_with_its_type(part: Any, named: str) -> None:
    with pytest.raises(BadRow) as caught:
        read({"messages": [USER | {"content": [part, HELLO]}, ANSWER]})
    assert caught.value.reason == "not_text"
    assert f"part of type '{named}'" in caught.value.message


@pytest.mark.parametrize(
    "key",
    ["image", "images", "video", "videos", "audio", "audios", "Image", "IMAGES", "img", "img_path"]
    + ["image_file", "image_base64", "image_url", "picture", "photo", "pic", "screenshot", "wav"]
    + ["pixel_values", "audio_paths", "multi_modal_data", "mm_data", "video_bytes", "attachments"],
)
@pytest.mark.parametrize("value", ["a.jpg", ["a.jpg"], {"bytes": "x"}, True])
def test_filled_media_next_to_the_text_are_refused(key: str, value: Any) -> None:
    for row in ({"messages": [USER, ANSWER], key: value}, {"messages": [USER | {key: value}]}):
        with pytest.raises(BadRow) as caught:
            read(row)
        assert caught.value.reason == "not_text"
        assert f"{key!r} is filled" in caught.value.message
    empties: list[Any] = [None, [], "", {}, False]
    for empty in empties:
        row = {"messages": [USER | {key: empty}, ANSWER], key: empty}
        assert read(row).messages == (USER, ANSWER)


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"instruction": "Hi", "output": ["d", "e"]}, "output"),
        ({"instruction": ["a", "b"], "output": ["d", "e"]}, "instruction"),
        ({"prompt": "Hi", "completion": ["d"]}, "completion"),
        ({"question": "Hi", "answer": ["d", "e"]}, "answer"),
        ({"system": ["S"], "messages": [USER, ANSWER]}, "system"),
        ({"conversations": [{"from": "human", "value": ["d", "e"]}]}, "value"),
        ({"messages": [USER, ANSWER | {"content": ["d", "e"]}]}, "content"),
        ({"messages": [USER | {"content": ["d", HELLO, "e"]}, ANSWER]}, "content"),
        ({"instruction": {"0": "a"}, "output": {"0": "b"}}, "instruction"),
    ],
)
def test_several_texts_are_not_one(row: dict[str, Any], key: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(row)
    assert caught.value.reason == "bad_shape"
    assert f"{key!r} is " in caught.value.message


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"degrees": 12, "town": "Jéna"}, '{"degrees": 12, "town": "Jéna"}'),
        ([1, 2], "[1, 2]"),
        ([{"id": 1}], '[{"id": 1}]'),
        ([], "[]"),
        (12.5, "12.5"),
        (True, "true"),
        ([{"type": "text", "text": "12"}], "12"),
        ("12", "12"),
    ],
)
def test_a_tools_result_that_is_not_text_becomes_its_json(result: Any, text: str) -> None:
    turns = [USER, {"role": "tool", "content": result}, ANSWER]
    assert read({"messages": turns}).messages[1] == {"role": "tool", "content": text}
