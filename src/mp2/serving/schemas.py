"""The shapes of requests and responses, with their limits and examples: what ``/openapi.json`` shows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from mp2.tasks.spec import NAME

TEXT_CHARACTERS = 20_000
ROWS_PER_REQUEST = 256
UPLOAD_CHARACTERS = 2_000_000
EXAMPLES = 2_000
COLUMNS = 64
OPTIONS = 200
TASK_FILE_CHARACTERS = 16_384
DEADLINE_MS = 5_000
LONGEST_MS = 60_000


def _whole(text: str) -> str:
    """Refuse halves of characters: JSON can write them, UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone surrogate)") from None
    return text


Text = Annotated[str, StringConstraints(max_length=TEXT_CHARACTERS), AfterValidator(_whole)]
Column = Annotated[str, StringConstraints(max_length=200), AfterValidator(_whole)]
Scalar = Text | int | float | bool | None
# Lists stop at the first item that is wrong: all complaints about a large body would take minutes and memory.
Cells = Annotated[list[Scalar], Field(max_length=OPTIONS, fail_fast=True)]
Row = Annotated[dict[Column, Scalar | Cells], Field(max_length=COLUMNS)]
Input = Text | Row
Inputs = Annotated[list[Input], Field(min_length=1, max_length=ROWS_PER_REQUEST, fail_fast=True)]
Name = Annotated[str, StringConstraints(pattern=NAME)]
TimeoutMs = Annotated[
    int, Field(ge=1, le=LONGEST_MS, description="Milliseconds within which the answer is of use.")
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PredictBody(_Body):
    """Texts or rows of one task."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": ["味道很好，送得也快", "太难吃了"]},
                {"inputs": [{"text1": "怎么退款", "text2": "如何把钱退回来"}], "timeout_ms": 2000},
            ]
        }
    )
    inputs: Input | Inputs = Field(
        description="A text (tasks that read one), a row of columns, or a list of either."
    )
    timeout_ms: TimeoutMs = DEADLINE_MS


class MixedItem(_Body):
    """One input of a mixed request."""

    task: Annotated[str, StringConstraints(max_length=64), AfterValidator(_whole)]
    input: Input


class MixedBody(_Body):
    """Inputs of any number of tasks, answered in the same batches."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "requests": [
                        {"task": "reviews", "input": "味道很好"},
                        {"task": "topics", "input": "央行今天宣布降准"},
                    ]
                }
            ]
        }
    )
    requests: Annotated[list[MixedItem], Field(min_length=1, max_length=ROWS_PER_REQUEST, fail_fast=True)]
    timeout_ms: TimeoutMs = DEADLINE_MS


class Upload(_Body):
    """A file of examples, as text."""

    format: Literal["csv", "tsv", "json", "jsonl"]
    content: Annotated[
        str, StringConstraints(min_length=1, max_length=UPLOAD_CHARACTERS), AfterValidator(_whole)
    ]


Examples = Upload | Annotated[list[Row], Field(min_length=1, max_length=EXAMPLES, fail_fast=True)]
HeldBack = Annotated[
    float, Field(ge=0, le=0.5, description="Share of the examples kept apart for an honest score.")
]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
TaskFile = Annotated[str, StringConstraints(max_length=TASK_FILE_CHARACTERS), AfterValidator(_whole)]

_UPLOAD: dict[str, Any] = {
    "name": "reviews",
    "examples": {"format": "csv", "content": "text,label\n味道很好,好评\n送得太慢,差评\n..."},
}


class CheckBody(_Body):
    """Examples to check; nothing is tuned or kept."""

    model_config = ConfigDict(json_schema_extra={"examples": [_UPLOAD]})
    name: Name = "task"
    examples: Examples
    task_file: TaskFile | None = Field(None, description="Task file (YAML); else the columns say the task.")
    held_back: HeldBack = 0.25
    seed: Seed = 42


class TuneBody(CheckBody):
    """Examples to make a task of."""

    name: Name
    method: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="Method to tune with; else the one that suits the labels, which `/v1/check` names."
    )
    calibrate: bool = Field(
        False, description="First fit one number per label to the train rows, added to its score; then tune."
    )
    replace: bool = Field(False, description="Replace the task of this name if there is one.")


class Problem(BaseModel):
    """What is wrong: a stable ``type`` for programs, a message for people."""

    type: str
    message: str
    details: list[dict[str, Any]] = []


class ErrorBody(BaseModel):
    """Every error has this form."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"error": {"type": "unknown_task", "message": "no task 'reveiws'", "details": []}}]
        }
    )
    error: Problem


class Span(BaseModel):
    """``[start, end)`` characters of the context that was sent."""

    start: int
    end: int


class Prediction(BaseModel):
    """Label and option scores, or an answer and its span; in mixed requests perhaps an error instead."""

    task: str | None = None
    label: str | None = None
    index: int | None = None
    scores: dict[str, float] | None = None
    answer: str | None = None
    span: Span | None = None
    probability: float | None = None
    error: Problem | None = None


class PredictResponse(BaseModel):
    """Answers in the order of the inputs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "predictions": [
                        {
                            "label": "好评",
                            "index": 1,
                            "probability": 0.93,
                            "scores": {"差评": 0.07, "好评": 0.93},
                        }
                    ]
                }
            ]
        }
    )
    predictions: list[Prediction]


class TaskList(BaseModel):
    """A page of task names, sorted."""

    tasks: list[str]
    total: int


class Card(BaseModel):
    """What is known about a task: see ``docs/serving.md`` for the keys."""

    model_config = ConfigDict(extra="allow")
    name: str
    task: dict[str, Any]
    method: str


class CheckReport(BaseModel):
    """What an upload was understood to be."""

    usable: bool
    task: dict[str, Any] | None
    task_file: str | None
    method: str | None
    rows: int
    preview: list[str]
    labels: list[dict[str, Any]]
    split: dict[str, int] | None
    problems: list[dict[str, Any]]
    more_problems: int
    warnings: list[dict[str, Any]]


class JobSummary(BaseModel):
    """A tuning job and how it stands."""

    id: str
    name: str
    method: str
    seed: int
    held_back: float
    replace: bool
    created: float
    calibrate: bool
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    ended: float
    error: str
    ahead: int


class JobState(JobSummary):
    """The same with its progress so far and its result."""

    progress: list[dict[str, float]]
    result: dict[str, Any] | None


class JobList(BaseModel):
    """Jobs of the caller, the newest first."""

    jobs: list[JobSummary]
