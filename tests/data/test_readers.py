"""Every format by an invented file, and every way in which a file can be broken."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from mp2.data import jsonfile
from mp2.data.readers import READERS, read_rows, read_table
from mp2.errors import DataError
from mp2.tasks.source import FileSource
from tests.data.hub_layout import write_parquet

CSV = 'text,label\n"晴，\n无风",0\n下雨,1\n'


def source(**keys: Any) -> FileSource:
    return FileSource.model_validate({"path": "x", **keys})


def write(folder: Path, content: str | bytes, name: str = "rows.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path, **keys: Any) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path, source(**keys))]


def lines(path: Path, **keys: Any) -> list[int | None]:
    return [where.line for where, _ in read_rows(path, source(**keys))]


def test_csv_with_quotes_and_line_ends_in_them(tmp_path: Path) -> None:
    path = write(tmp_path, CSV)
    assert rows(path, format="csv") == [{"text": "晴，\n无风", "label": "0"}, {"text": "下雨", "label": "1"}]
    assert lines(path, format="csv") == [2, 4]


def test_quotes_within_a_users_cell_are_not_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, 'text,label\n"晴"天,0\n"晴""天""",0\n有"风",1\n')
    path = path.rename(tmp_path / "own.csv")
    bad: list[DataError] = []
    assert [row["text"] for _, row in read_table(path, on_bad=bad.append)] == ['晴"天"', '有"风"']
    assert "own.csv:2: quotes inside a cell must be doubled" in str(bad[0])
    assert rows(path, format="csv")[0]["text"] == "晴天"  # public files are read as their makers read them


def test_a_file_of_bad_rows_alone_is_not_called_empty(tmp_path: Path) -> None:
    path = write(tmp_path, "text,label\n晴,0,1\n").rename(tmp_path / "own.csv")
    bad: list[DataError] = []
    assert list(read_table(path, on_bad=bad.append)) == []
    assert len(bad) == 1 and "expected 2 columns" in str(bad[0])


def test_lines_of_commas_below_a_table_are_no_rows(tmp_path: Path) -> None:
    assert rows(write(tmp_path, 'text,label\n晴,0\n,\n\n雨,\n,\n" ",\n'), format="csv") == [
        {"text": "晴", "label": "0"},
        {"text": "", "label": ""},  # within the table it is one: what is asked must be answered in its place
        {"text": "雨", "label": ""},
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tsv_with_and_without_header(tmp_path: Path, end: str) -> None:
    path = write(tmp_path, f'id\ttext{end}1\t"晴{end}{end}2\t雨{end}')
    assert rows(path, format="tsv") == [{"id": "1", "text": '"晴'}, {"id": "2", "text": "雨"}]
    assert rows(path, format="tsv", columns=("a", "b"))[0] == {"a": "id", "b": "text"}
    assert lines(path, format="tsv") == [2, 4]


def test_delimiters_of_several_characters_and_a_last_column_that_takes_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, "7_!_101_!_文化\n")
    assert rows(path, format="tsv", delimiter="_!_", columns=("id", "code", "name")) == [
        {"id": "7", "code": "101", "name": "文化"}
    ]
    path = write(tmp_path, "7,1,晴，热,\n")
    keys = {"delimiter": ",", "columns": ("id", "label", "text"), "rest": True}
    assert rows(path, format="tsv", **keys) == [{"id": "7", "label": "1", "text": "晴，热,"}]


def test_parquet_in_one_file_or_in_parts_with_classes_by_name(tmp_path: Path) -> None:
    table = [{"text": f"第{n}天", "label": n % 3 - 1, "more": {"from": ["台"]}} for n in range(5)]
    write_parquet(tmp_path / "a.parquet", table)
    keys = {"format": "parquet", "take": {"text": "text", "label": "label", "from": "more.from.0"}}
    assert rows(tmp_path / "a.parquet", **keys)[0] == {"text": "第0天", "label": -1, "from": "台"}
    assert lines(tmp_path / "a.parquet", format="parquet") == [1, 2, 3, 4, 5]
    write_parquet(tmp_path / "b.parquet", table[:2], classes=["晴", "雨"])
    assert [row["label"] for row in rows(tmp_path / "b.parquet", format="parquet")] == [-1, "晴"]
    assert [row["label"] for row in rows(tmp_path, format="parquet")][4:] == [0, -1, "晴"]
    recode = {"label": {"0": "晴", "1": "雨"}}
    both = [row["label"] for row in rows(tmp_path, format="parquet", recode=recode, drop={"label": "-1"})]
    assert both == ["晴", "雨", "晴", "晴"]


def test_parquet_that_is_cut_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, [{"text": "晴"}])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="not readable as Parquet: cut in the middle, or another format"):
        rows(path, format="parquet")
    with pytest.raises(DataError, match="no such file"):
        rows(tmp_path / "b.parquet", format="parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder has no \.parquet file"):
        rows(tmp_path / "empty", format="parquet")


def test_items_written_by_column_are_taken_apart(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "晴", "questions": {"q": ["一", "二"], "a": ["甲", "乙"]}}\n')
    keys = {"format": "jsonl", "each": "questions", "take": {"q": "questions.q", "a": "questions.a"}}
    assert rows(path, **keys) == [{"q": "一", "a": "甲"}, {"q": "二", "a": "乙"}]


def test_jsonl_splits_at_line_feeds_only(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "晴\u2028雨\x85雪"}\n\n{"text": "风"}\n')
    assert rows(path, format="jsonl") == [{"text": "晴\u2028雨\x85雪"}, {"text": "风"}]
    assert lines(path, format="jsonl") == [1, 3]


@pytest.mark.parametrize("chunk", [1, 5, 7, 1 << 20])
def test_json_arrays_are_streamed(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfile, "_CHUNK", chunk)
    items = [{"id": n, "text": '晴]},\\"' * n, "more": [1.25, None, True]} for n in range(5)]
    path = write(tmp_path, "\ufeff" + json.dumps(items, indent=1))
    assert rows(path, format="json") == items
    assert lines(path, format="json")[:2] == [2, 11]
    path = write(tmp_path, json.dumps({"version": 12, "other": {"data": []}, "data": items, "end": 0}))
    assert rows(path, format="json", at="data") == items


SQUAD = {
    "data": [
        {
            "title": "天气",
            "paragraphs": [
                {
                    "context": "今日天晴。",
                    "qas": [
                        {"question": "天气？", "answers": [{"text": "天晴", "answer_start": 2}]},
                        {
                            "question": "何日？",
                            "answers": [
                                {"text": "今日", "answer_start": 0},
                                {"text": "今", "answer_start": 0},
                            ],
                        },
                    ],
                }
            ],
        }
    ]
}


def test_nested_json_becomes_a_row_per_question(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(SQUAD))
    take = {
        "context": "paragraphs.context",
        "question": "paragraphs.qas.question",
        "answer": "paragraphs.qas.answers.*.text",
        "start": "paragraphs.qas.answers.*.answer_start",
    }
    found = rows(path, format="json", at="data", each="paragraphs.qas", take=take)
    assert found == [
        {"context": "今日天晴。", "question": "天气？", "answer": ["天晴"], "start": [2]},
        {"context": "今日天晴。", "question": "何日？", "answer": ["今日", "今"], "start": [0, 0]},
    ]


def test_lists_by_position(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        json.dumps(
            [[["男：早。", "女：早。"], [{"q": "谁？", "c": ["甲", "乙"]}, {"q": "啥？", "c": []}], "id"]]
        ),
    )
    take = {"document": "0", "question": "1.q", "options": "1.c"}
    found = rows(path, format="json", each="1", take=take, join={"document": " "})
    assert [row["question"] for row in found] == ["谁？", "啥？"]
    assert found[0] == {"document": "男：早。 女：早。", "question": "谁？", "options": ["甲", "乙"]}


def test_of_several_sheets_the_one_with_cells_is_read_and_of_two_none(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    second = book.create_sheet("词")
    for cells in (["名"], ["晴"]):
        second.append(cells)
    book.save(tmp_path / "a.xlsx")
    assert rows(tmp_path / "a.xlsx", format="xlsx") == [{"名": "晴"}]
    book.active["A1"] = "名"
    book.save(tmp_path / "b.xlsx")
    with pytest.raises(DataError, match=r"b\.xlsx: 2 sheets have cells, 'Sheet', '词'; keep one"):
        rows(tmp_path / "b.xlsx", format="xlsx")
    assert rows(tmp_path / "b.xlsx", format="xlsx", sheet="词") == [{"名": "晴"}]
    book.active.sheet_state = "hidden"  # lists that cells choose from lie there
    book.create_chartsheet("图").add_chart(openpyxl.chart.BarChart())
    book.active = 1
    book.save(tmp_path / "c.xlsx")
    assert rows(tmp_path / "c.xlsx", format="xlsx") == [{"名": "晴"}]


@pytest.mark.parametrize("format_", ["csv", "tsv"])
def test_a_blank_line_is_a_row_of_one_column_alone(tmp_path: Path, format_: str) -> None:
    path = write(tmp_path, "\ntext\n晴\n\n雨\n\n")
    assert rows(path, format=format_) == [{"text": "晴"}, {"text": ""}, {"text": "雨"}]
    assert lines(path, format=format_) == [3, 4, 5]
    cells = "text,label\n晴,0\n\n雨,1\n".replace(",", "\t" if format_ == "tsv" else ",")
    assert lines(write(tmp_path, cells), format=format_) == [2, 4]


def test_reviews(tmp_path: Path) -> None:
    first = '\ufeff<review id="0">\r\n\r\n好 & 便宜 <3\r\n第二行\r\n</review>\r\n'
    path = write(tmp_path, first + '<review id="1"  label="0">差</review>\n')
    assert rows(path, format="reviews", constant={"from": "shop"}) == [
        {"id": "0", "text": "好 & 便宜 <3\n第二行", "from": "shop"},
        {"id": "1", "label": "0", "text": "差", "from": "shop"},
    ]


def test_xlsx(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for cells in ([None], ["名", "值"], ["晴", 1.0], [None, None], ["雨", None], [None, " "]):
        book.active.append(cells)
    book.save(tmp_path / "map.xlsx")
    assert rows(tmp_path / "map.xlsx", format="xlsx") == [
        {"名": "晴", "值": "1"},
        {"名": "雨", "值": ""},
    ]
    book.active.delete_rows(1)
    bold = openpyxl.styles.Font(bold=True)
    book.active["C1"].font = book.active["E3"].font = bold  # formatted and empty: no columns
    book.save(tmp_path / "map.xlsx")
    assert len(rows(tmp_path / "map.xlsx", format="xlsx")) == 2
    book.active["D2"] = "阴"
    book.save(tmp_path / "more.xlsx")
    with pytest.raises(DataError, match=r"more.xlsx:2: expected 2 columns \(名, 值\), got 4"):
        rows(tmp_path / "more.xlsx", format="xlsx")
    with pytest.raises(DataError, match=r"no sheet 'Labels'; valid: Sheet"):
        rows(tmp_path / "map.xlsx", format="xlsx", sheet="Labels")
    stream = openpyxl.Workbook(write_only=True)  # says nothing of its size, and leaves empty ends out
    sheet = stream.create_sheet()
    for line in (["名", "值"], ["晴", 1], ["雨"]):
        sheet.append(line)
    stream.save(tmp_path / "stream.xlsx")
    assert rows(tmp_path / "stream.xlsx", format="xlsx") == [{"名": "晴", "值": "1"}, {"名": "雨", "值": ""}]
    with pytest.raises(DataError, match=r"not a readable .xlsx workbook"):
        rows(write(tmp_path, "text", "bad.xlsx"), format="xlsx")


def test_a_workbook_that_is_damaged_or_named_as_a_table(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for n in range(50):
        book.active.append([f"文{n}", "晴"])
    book.save(tmp_path / "whole.xlsx")
    with (
        zipfile.ZipFile(tmp_path / "whole.xlsx") as whole,
        zipfile.ZipFile(tmp_path / "cut.xlsx", "w") as cut,
    ):
        for name in whole.namelist():
            content = whole.read(name)
            cut.writestr(name, content[: len(content) // 2] if name.endswith("sheet1.xml") else content)
    with pytest.raises(DataError, match=r"cut\.xlsx:\d+: the sheet is cut or damaged"):
        rows(tmp_path / "cut.xlsx", format="xlsx", columns=("text", "label"))
    (tmp_path / "whole.xlsx").rename(tmp_path / "whole.csv")
    with pytest.raises(DataError, match=r"whole\.csv: this is an Excel workbook; name it \.xlsx"):
        list(read_table(tmp_path / "whole.csv"))


def test_a_folder_per_label(tmp_path: Path) -> None:
    for label, text in (("C3-Art", "画"), ("C39-Sports", "球")):
        (tmp_path / label).mkdir()
        write(tmp_path / label, text.encode("gb18030"), "1.txt")
    found = rows(tmp_path, format="folders", encoding="gb18030")
    assert found == [
        {"label": "C3-Art", "name": "1.txt", "text": "画"},
        {"label": "C39-Sports", "name": "1.txt", "text": "球"},
    ]


def test_compressed_files_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    assert len(rows(write(tmp_path, gzip.compress(CSV.encode())), format="csv")) == 2
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/rows.csv", CSV)
    assert len(rows(path, format="csv")) == 2
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.csv", CSV)
    assert len(rows(path, format="csv", member="other.csv")) == 2
    with pytest.raises(DataError, match=r"no single member; valid: a/rows.csv, other.csv"):
        rows(path, format="csv")
    with pytest.raises(DataError, match=r"no member 'othr.csv'; did you mean 'other.csv'"):
        rows(path, format="csv", member="othr.csv")
    plain = path.read_bytes()  # with the flag of a password in both of its places
    locked = plain.replace(b"PK\x03\x04\x14\0\0", b"PK\x03\x04\x14\0\1")
    locked = locked.replace(b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\1")
    with pytest.raises(DataError, match=r"other.csv: cannot be unpacked: .* encrypted"):
        rows(write(tmp_path, locked, "locked.zip"), format="csv", member="other.csv")


def test_encodings_and_byte_order_marks(tmp_path: Path) -> None:
    assert rows(write(tmp_path, CSV.encode("gb18030")), format="csv", encoding="gb18030")[1]["text"] == "下雨"
    assert rows(write(tmp_path, CSV.encode("utf-8-sig")), format="csv")[1]["text"] == "下雨"
    with pytest.raises(DataError, match="unknown encoding 'utf9'"):
        rows(write(tmp_path, CSV), format="csv", encoding="utf9")


def test_rewriting(tmp_path: Path) -> None:
    path = write(
        tmp_path, '{"text": ".聽著{%#雨#%}", "words": "甲,乙", "keys": ["丙", "丁"], "label": "1"}\n'
    )
    keys: dict[str, Any] = {
        "replace": {r"^\.": "", r"\{%(.*?)%\}": r"\1"},
        "convert": "tw2s",
        "split": {"words": ","},
        "join": {"keys": "，"},
    }
    assert rows(path, format="jsonl", **keys) == [
        {"text": "听着#雨#", "words": ["甲", "乙"], "keys": "丙，丁", "label": "1"}
    ]


def test_recoding_makes_no_column_that_the_file_lacks(tmp_path: Path) -> None:
    path = write(tmp_path, "text,lable\n晴,0\n")
    assert rows(path, format="csv", recode={"label": {"0": "晴"}}) == [{"text": "晴", "lable": "0"}]


def test_dropped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    path = write(tmp_path, "晴\t-\n雨\t1\n \t1\n")
    left_out: list[tuple[str, int | None]] = []
    spec = source(format="tsv", columns=("text", "label"), drop={"label": "-", "text": ""})
    keep = [*read_rows(path, spec, on_left_out=lambda reason, where: left_out.append((reason, where.line)))]
    assert len(keep) == 1
    assert left_out == [("label is '-'", 1), ("text is empty", 3)]
    spec = source(format="tsv", columns=("text", "label"), drop={"label": tuple("-234567")})
    assert [*read_rows(path, spec, on_left_out=lambda reason, where: left_out.append((reason, where.line)))]
    assert left_out[2:] == [("label is one of 7 values", 1)]


BROKEN: list[tuple[str, str | bytes, dict[str, Any], str]] = [
    ("empty", "", {"format": "csv"}, "the file has no rows"),
    ("header only", "text,label\n", {"format": "csv"}, "the file has no rows"),
    ("empty array", "[]", {"format": "json"}, "the file has no rows"),
    ("empty json", "", {"format": "json"}, "the file is empty"),
    (
        "gb18030",
        "text,label\n晴,1\n".encode("gb18030"),
        {"format": "csv"},
        ":2: not valid utf-8: byte 0xc7 at column 1; perhaps GB18030 or Big5: save the file as UTF-8",
    ),
    (
        "gb18030 json",
        '[\n{"t": "晴天"}]'.encode("gb18030"),
        {"format": "json"},
        ":2: not valid utf-8: byte 0xc7 at column 10; perhaps GB18030",
    ),
    (
        "utf-8",
        "晴朗\t1\n雨\t1\n",
        {"format": "tsv", "encoding": "ascii"},
        ":1: expected ascii, but this is UTF-8",
    ),
    ("utf-16", "text\n".encode("utf-16"), {"format": "csv"}, ":1: expected utf-8, but this is UTF-16"),
    ("bytes", b"text\n\xff\xff\n", {"format": "csv"}, ":2: not valid utf-8: byte 0xff at column 1"),
    (
        "cut character",
        "text\n晴天".encode()[:-1],
        {"format": "tsv"},
        ":2: the file ends in the middle of a char",
    ),
    (
        "ragged csv",
        "text,label\n晴,0\n晴,热,1\n",
        {"format": "csv"},
        ":3: expected 2 columns (text, label), got 3",
    ),
    ("ragged tsv", "text\tlabel\n\n晴\n", {"format": "tsv"}, ":3: expected 2 columns (text, label), got 1"),
    ("name twice", "text,text\n1,2\n", {"format": "csv"}, ":1: the header names 'text' twice"),
    ("no name", "text,\n1,2\n", {"format": "csv"}, ":1: column 2 of the header has no name"),
    (
        "open quote",
        'text,label\n晴,0\n"雨,1\n雪,1\n',
        {"format": "csv"},
        ":3: the file ends within quotes that open here",
    ),
    (
        "open quote, and another later",
        'text,label\n"晴,0\n雨,1\n"雪",1\n热,0\n',
        {"format": "csv"},
        ":2: quotes that open here hold 3 lines and close within a cell",
    ),
    (
        "open quote, and one within a cell",
        'text,label\n"晴,0\n雨,1\n雪"天,1\n',
        {"format": "csv"},
        ":2: quotes that open here hold 3 lines and close within a cell",
    ),
    ("cut jsonl", '{"text": "晴"}\n{"text": "雨', {"format": "jsonl"}, ":2: not valid JSON"),
    (
        "long number",
        '{"a": %s}\n' % ("1" * 5000),
        {"format": "jsonl"},
        ":1: not readable JSON: Exceeds the limit",
    ),
    (
        "long number",
        '[{"a": 1},\n%s]' % ("1" * 5000),
        {"format": "json"},
        ":2: not readable JSON: Exceeds the",
    ),
    ("old Mac", "text,label\r晴,0\r", {"format": "csv"}, ":1: lines end in a carriage return alone"),
    ("deep", "[" * 99_999 + "\n", {"format": "jsonl"}, ":1: not readable JSON: maximum recursion"),
    ("deep", "[" * 99_999, {"format": "json"}, ":1: not readable JSON: maximum recursion"),
    ("no object", "[1]\n", {"format": "jsonl"}, ":1: expected an object with a key per column, got list"),
    ("cut json", '[{"a": 1},\n{"a"', {"format": "json"}, ":2: the JSON ends too early: the file is cut"),
    ("cut array", '[{"a": 1}', {"format": "json"}, ":1: expected ',' or ']' in the array, got the end"),
    ("wrong json", '[{"a": 1},\n{"a": 01}]' + " " * 40, {"format": "json"}, ":2: not valid JSON"),
    ("object", '{"a": 1}', {"format": "json"}, ":1: expected an array of rows, got '{'"),
    ("lines", '{"a": 1}\n{"a": 2}\n', {"format": "json"}, "; a file with an object per line is .jsonl"),
    (
        "two arrays",
        '[{"a": 1}]\n[{"a": 2}]\n',
        {"format": "json"},
        ":2: expected one array of rows and no more",
    ),
    ("no key", '{"date": [1]}', {"format": "json", "at": "data"}, "no key 'data'; did you mean 'date'?"),
    (
        "no array",
        '{"data": {}}',
        {"format": "json", "at": "data"},
        "expected an array under 'data' of rows, got '{'",
    ),
    ("no path", '{"a": {}}\n', {"format": "jsonl", "take": {"x": "a.b"}}, ":1: the row has no 'b' where"),
    (
        "open review",
        '<review id="0">\n好\n',
        {"format": "reviews"},
        ":1: the review that opens here is never closed",
    ),
    ("cut gzip", gzip.compress(CSV.encode() * 99)[:-9], {"format": "csv"}, "is cut in the middle or damaged"),
    ("cut zip", b"PK\x03\x04" + b"0" * 50, {"format": "csv"}, "is cut in the middle or damaged"),
]


@pytest.mark.parametrize(
    ("content", "keys", "says"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_broken_files(tmp_path: Path, content: str | bytes, keys: dict[str, Any], says: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        rows(path, **keys)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)


CUT: list[tuple[str, dict[str, Any]]] = [
    ("text,label\n晴,0\n雨", {"format": "csv"}),
    ("晴\t0\n雨", {"format": "tsv", "columns": ("text", "label")}),
    ('{"text": "晴"}\n{"text": "雨', {"format": "jsonl"}),
    ('<review id="0">\n好\n</review>\n<review id="1">\n', {"format": "reviews"}),
]


@pytest.mark.parametrize(("content", "keys"), CUT, ids=[keys["format"] for _, keys in CUT])
def test_a_cut_is_no_bad_row_but_the_end_of_the_file(
    tmp_path: Path, content: str, keys: dict[str, Any]
) -> None:
    path, errors = write(tmp_path, content), list[DataError]()
    with pytest.raises(DataError, match=r"rows.txt:\d: .*: the file is cut"):
        [*read_rows(path, source(**keys), on_bad=errors.append)]
    assert not errors


def test_a_last_line_without_an_end_may_be_whole(tmp_path: Path) -> None:
    assert rows(write(tmp_path, "text,label\n晴,0"), format="csv") == [{"text": "晴", "label": "0"}]
    assert rows(write(tmp_path, '{"text": "晴"}'), format="jsonl") == [{"text": "晴"}]


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'text,label\n"晴,0\n' + "雨,1\n" * 60_000)
    with pytest.raises(
        DataError, match=r":2: a quote that opens here is not closed, or a cell has more than 131"
    ):
        rows(path, format="csv")


def test_bad_rows_may_be_collected(tmp_path: Path) -> None:
    path = write(tmp_path, "text\tlabel\n晴\t0\n坏\n雨\t1\n\t\t\t\n雪\t1\t2\n")
    bad: list[DataError] = []
    found = [row["text"] for _, row in read_rows(path, source(format="tsv"), on_bad=bad.append)]
    assert found == ["晴", "雨"]
    assert [str(error).partition(": ")[0] for error in bad] == [f"{path}:3", f"{path}:6"]


def test_absent_files_name_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, CSV, "train.csv")
    with pytest.raises(DataError, match=r"no such file; did you mean 'train.csv'\?"):
        rows(tmp_path / "trian.csv", format="csv")
    with pytest.raises(DataError, match="nor the folder"):
        rows(tmp_path / "no" / "train.csv", format="csv")
    with pytest.raises(DataError, match="cannot be read"):
        rows(tmp_path, format="csv")


def test_a_users_table_is_read_by_its_extension(tmp_path: Path) -> None:
    tables = {
        "a.csv": CSV,
        "b.tsv": "text\tlabel\n晴\t0\n雨\t1\n",
        "c.jsonl": '{"text": "晴"}\n{"text": "雨"}\n',
        "d.json": '[{"text": "晴"}, {"text": "雨"}]',
        "e.CSV.gz": gzip.compress(CSV.encode()),
    }
    for name, content in tables.items():
        assert len(list(read_table(write(tmp_path, content, name)))) == 2
    bad: list[DataError] = []
    path = write(tmp_path, '{"text": "晴\\ud83d"}\n{"text": "雨"}\n', "half.jsonl")
    assert [row for _, row in read_table(path, on_bad=bad.append)] == [{"text": "雨"}]
    assert str(bad[0]) == f"{path}:1: half a character (a lone surrogate)"
    with pytest.raises(DataError, match="cannot tell the format from the name; did you mean 'json'"):
        list(read_table(write(tmp_path, CSV, "a.jsn")))


@pytest.mark.parametrize(
    "first",
    [
        "1,今天下雨\n",
        "今天下雨了，路上行人都没有带伞，公交车也晚点了，大家都在站台上等着，一直等到天黑，,0\n",
    ],
)
def test_a_table_without_a_header_is_refused(tmp_path: Path, first: str) -> None:
    with pytest.raises(DataError, match=r"a.csv:1: expected a header line"):
        list(read_table(write(tmp_path, first + first, "a.csv")))


@pytest.mark.parametrize(
    ("name", "header"), [("a.csv", "text;label"), ("a.csv", "text\tlabel"), ("a.tsv", "文本，标签")]
)
def test_a_header_with_another_delimiter_is_told(tmp_path: Path, name: str, header: str) -> None:
    with pytest.raises(DataError, match=rf"{name}:1: one column only, .*a comma stands between columns in"):
        list(read_table(write(tmp_path, f"{header}\n晴\n", name)))


def test_every_format_of_the_schema_has_a_reader() -> None:
    annotation = FileSource.model_fields["format"].annotation
    assert set(READERS) == set(getattr(annotation, "__args__", ()))
