"""The arguments and options that the law's commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Logs (verl's file or console logger, TensorBoard, W&B, CSV), folders of runs, or folders of those."
    ),
]
EntropyKey = Annotated[str | None, typer.Option(help="Key of the entropy, instead of the detected one.")]
ScoreKey = Annotated[str | None, typer.Option(help="Key of the score, or several with * (their mean).")]
StepKey = Annotated[str | None, typer.Option(help="Column of the training step, instead of the detected one.")]
Joining = Annotated[
    str, typer.Option("--join", help="Step of the entropy that goes with a score: same, next, or auto, by the keys.")
]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=RUN", help="Read RUN too, or only, and call it NAME; may be repeated."),
]
Example = Annotated[bool, typer.Option("--example", help="A synthetic run on the paper's curve of Qwen2.5-7B.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Also write to this file: .json, or a picture: .png, .pdf, .svg.")
]
Fraction = Annotated[str, typer.Option(help="How much of the points, by step, to fit; the paper's is 15%.")]
Robust = Annotated[bool, typer.Option("--robust", help="Give outliers less weight (Huber).")]
Pool = Annotated[bool, typer.Option("--pool", help="Fit one law to all runs, which differ only in their seed.")]
ToStep = Annotated[float | None, typer.Option("--to-step", help="Also say where the runs will stand at this step.")]
