"""The tasks that come with the package: one YAML file each in ``specs/``, read when asked for.

Decides which names and suites there are. The order of a suite is that of the paper's tables, so that position
and router row stay the same. The IFLYTEK subsets are made from the one file of that set.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from mp2.errors import TaskError, nearest
from mp2.tasks.source import DataSource, FileSource
from mp2.tasks.spec import TaskSpec, load_task

PAPER_SUITES = ("pretrain-38", "unseen-data-7", "unseen-task-7")
# The paper's 2-character labels of IFLYTEK; the task with n labels has the first n of them.
IFLYTEK_WORDS = (
    "打车 租车 政务 新闻 漫画 小说 技术 教辅 搞笑 杂志 求职 兼职 视频 音乐 直播"
    " 电台 职考 英语 艺术 民航 铁路 母婴 驾校 违章 租房 买房 菜谱 支付 保险 股票"
)
IFLYTEK_SIZES = (10, 15, 20, 25, 30)
IFLYTEK_SUITES = tuple(f"iflytek-{size}" for size in (*IFLYTEK_SIZES, 119))
SUITES = (*PAPER_SUITES, *IFLYTEK_SUITES, "extra")


@cache
def names() -> tuple[str, ...]:
    """Names of all tasks, in alphabetical order; reads no task file."""
    stems = {path.stem for path in _folder().glob("*.yaml")}
    return tuple(sorted(stems | {f"iflytek-{size}" for size in IFLYTEK_SIZES}))


@cache
def get(name: str) -> TaskSpec:
    """One task by name; reads its file only.

    Raises:
        TaskError: There is no such task; the message names the nearest one.
    """
    if name not in names():
        raise TaskError(f"no task {name!r} in the catalogue; {nearest(name, names())}")
    path = _folder() / f"{name}.yaml"
    if path.is_file():
        return load_task(path)
    return _iflytek(int(name.removeprefix("iflytek-")))


def suite(name: str) -> tuple[str, ...]:
    """Names of a suite's tasks, in the order of the paper's tables.

    Raises:
        TaskError: There is no such suite; the message names the nearest one.
    """
    if name not in SUITES:
        raise TaskError(f"no suite {name!r}; {nearest(name, SUITES)}")
    return _members()[name]


def is_file(name: str) -> bool:
    """Whether a name is that of a task file."""
    return name.endswith((".yaml", ".yml"))


def find(name: str) -> TaskSpec:
    """A task by its name in the catalogue, or a task file.

    Raises:
        TaskError: There is none, or the file is no task.
    """
    return load_task(name) if is_file(name) else get(name)


def tasks_of(name: str) -> tuple[TaskSpec, ...]:
    """The tasks of a suite, or the one task of that name or of that task file.

    Raises:
        TaskError: There is none, and the message names the nearest one; or the file is no task.
    """
    if is_file(name):
        return (load_task(name),)
    if name not in SUITES and name not in names():
        raise TaskError(f"no suite or task {name!r} in the catalogue; {nearest(name, (*SUITES, *names()))}")
    return tuple(map(get, suite(name) if name in SUITES else [name]))


@cache
def _members() -> dict[str, tuple[str, ...]]:
    tasks = [get(name) for name in names()]
    return {
        name: tuple(
            task.name
            for task in sorted(tasks, key=lambda task: _position(task, name))
            if task.data is not None and name in task.data.suites
        )
        for name in SUITES
    }


def _position(task: TaskSpec, suite: str) -> tuple[int, str]:
    """Place of a task within a suite: as in Table 8 or Table 2 of the paper, else by name."""
    if task.paper is None or suite not in PAPER_SUITES:
        return 0, task.name
    return (task.paper.id if suite == "pretrain-38" else task.paper.table2) or 0, task.name


def _folder() -> Path:
    return Path(str(files("mp2.tasks") / "specs"))


def _iflytek(size: int) -> TaskSpec:
    """The IFLYTEK task with the first ``size`` of the paper's label words; other rows are dropped."""
    base = get("iflytek")
    data = base.data
    assert data is not None
    words = IFLYTEK_WORDS.split()[:size]
    ids = {word: str(index) for index, word in enumerate(base.labels)}
    others = tuple(ids[word] for word in base.labels if word not in words)

    def narrowed(source: FileSource) -> FileSource:
        return source.model_copy(update={"drop": {"label": others}})

    update = {
        "suites": (f"iflytek-{size}",),
        "files": {name: tuple(map(narrowed, sources)) for name, sources in data.files.items()},
    }
    source: DataSource = data.model_copy(update=update)
    return TaskSpec.model_validate(
        base.model_dump(exclude_none=True)
        | {
            "name": f"iflytek-{size}",
            "description": f"{base.description} The paper's subset of {size} labels.",
            "labels": tuple(words),
            "coding": {ids[word]: word for word in words},
            "data": source.model_dump(exclude_none=True),
        }
    )
