"""The command line: parse, call the pipeline, print. Results go to stdout, the rest to stderr."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from saelign.concepts_cli import add_concepts
from saelign.errors import SaelignError
from saelign.published_cli import add_published
from saelign.report_cli import add_report
from saelign.studies_cli import add_studies
from saelign.sweep_cli import add_sweep
from saelign.training_cli import add_train_sae

EXIT_ERROR = 1

EPILOGS = {
    "run": "examples:\n  saelign run study.yaml --out results\n  saelign run pythia-70m-vs-160m",
    "check": "example:\n  saelign check study.yaml",
    "show": "example:\n  saelign show results --matching one_to_one",
    "demo": "examples:\n  saelign demo\n  saelign demo --text book.txt --out book-demo",
    "doctor": "example:\n  saelign doctor",
}


STUDY_HELP = "a study file (YAML), or the name of one that ships (saelign studies)"
MODELS_FROM_HELP = "take models, SAEs and data sets from DIR/OWNER/NAME instead of the hub"
MEMORY_HELP = "memory it may take, such as 8GiB (default: most of what is free)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code: 0 done, 1 a clear error, 2 wrong usage.

    `doctor` gives 1 as well, after what it found, where no study can run.

    Args:
        arguments: Without the program's name; those of the process if None.
    """
    options = parser().parse_args(arguments)
    try:
        code: int | None = options.call(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads stdout (head, a pager) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except SaelignError as error:
        print(f"saelign: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("saelign: stopped; start it again, it goes on where it stopped", file=sys.stderr)
        return 130
    return code or 0


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    top = argparse.ArgumentParser(
        prog="saelign",
        description="Do two language models share features? Each score beside what chance gives.",
        epilog="example:\n  saelign demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=version())
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, call: Callable[[Any], int | None], told: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=told,
            description=f"{told[0].upper()}{told[1:]}.",
            epilog=EPILOGS[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        sub.set_defaults(call=call)
        return sub

    sub = command("run", run_command, "compare two models as a study file says")
    sub.add_argument("study", metavar="STUDY", help=STUDY_HELP)
    sub.add_argument("--out", metavar="DIR", help="where results go, instead of the study's folder")
    sub.add_argument("--memory", metavar="SIZE", help=MEMORY_HELP)
    sub.add_argument("--models-from", metavar="DIR", help=MODELS_FROM_HELP)

    sub = command(
        "check", check_command, "find out whether a study can run, without loading weights"
    )
    sub.add_argument("study", metavar="STUDY", help=STUDY_HELP)
    sub.add_argument("--out", metavar="DIR", help="where results would go")
    sub.add_argument("--memory", metavar="SIZE", help=MEMORY_HELP)
    sub.add_argument("--models-from", metavar="DIR", help=MODELS_FROM_HELP)

    sub = command("show", show_command, "print the tables of a finished run")
    sub.add_argument("run", metavar="RUN", help="a run's folder")
    sub.add_argument("--matching", metavar="NAME", help="only this matching")

    sub = command(
        "demo", demo_command, "compare the two small language models that come with saelign"
    )
    sub.add_argument("--out", metavar="DIR", help="where results go (default: saelign-demo)")
    sub.add_argument(
        "--text",
        metavar="FILE",
        help="read this text instead of the one that ships; - for standard input",
    )
    sub.add_argument(
        "--concepts", action="store_true", help="look into semantic subspaces too: minutes more"
    )
    sub.add_argument("--memory", metavar="SIZE", help=MEMORY_HELP)

    command("doctor", doctor_command, "tell what this machine can run and what it lacks")
    add_concepts(commands, progress_on_stderr)
    add_studies(commands)
    for add in (add_train_sae, add_sweep):
        add(
            commands,
            progress_on_stderr,
            memory_help=MEMORY_HELP,
            models_from_help=MODELS_FROM_HELP,
        )
    add_published(commands, progress_on_stderr)
    add_report(commands, progress_on_stderr)
    return top


def version() -> str:
    """The version, as `--version` prints it."""
    import saelign

    return f"saelign {saelign.__version__}"


def run_command(options: argparse.Namespace) -> None:
    """`saelign run`."""
    from saelign.study import load_study

    finish(load_study(options.study), options, models_from=options.models_from)


def demo_command(options: argparse.Namespace) -> None:
    """`saelign demo`."""
    from saelign.demo import demo_study

    if options.out is None:
        options.out = "saelign-demo-concepts" if options.concepts else "saelign-demo"
    finish(demo_study(text=options.text, concepts=options.concepts), options)


def finish(study: Any, options: argparse.Namespace, *, models_from: str | None = None) -> None:
    """Run a study, telling progress, and print what came of it."""
    from saelign.pipeline import run

    with progress_on_stderr() as progress:
        finished = run(
            study,
            out=options.out,
            memory=options.memory,
            models_from=models_from,
            progress=progress,
        )
    print_run(finished, as_json=options.json, matching=None if options.json else study.matching[0])
    if not options.json:
        for matching in study.matching[1:]:
            print(f"{matching}: saelign show {finished.folder} --matching {matching}")


def check_command(options: argparse.Namespace) -> None:
    """`saelign check`."""
    from saelign.plan import check
    from saelign.study import load_study

    plan = check(
        load_study(options.study),
        out=options.out,
        memory=options.memory,
        models_from=options.models_from,
    )
    summary = plan.summary()
    if options.json:
        print(json.dumps(summary, indent=2))
        return
    summary["takes"] = told_takes(summary["takes"])
    for key, value in {**summary, "verdict": "this study can run"}.items():
        print(f"{key.replace('_', ' '):>8}: {in_words(value)}")


def doctor_command(options: argparse.Namespace) -> int:
    """`saelign doctor`; 1 where no study can run."""
    from saelign.doctor import diagnose, diagnosis

    found = diagnose()
    # JSON asks for no other package: it is what an installation without rich can print.
    if options.json or not found["packages"].get("rich", {}).get("version"):
        print(json.dumps(found, indent=2))
    else:
        from rich.console import Console

        console = Console(soft_wrap=True, highlight=False)
        for part in diagnosis(found):
            console.print(part)
    return 0 if found["ready"] else EXIT_ERROR


def told_takes(takes: dict[str, Any]) -> str:
    """What a study takes, as `saelign check` prints it."""
    gib = {key: f"{takes[key] / 2**30:.1f} GiB" for key in takes if key.endswith("bytes")}
    times = [
        f"{name} {seconds / 60:.0f} min" if seconds >= 90 else f"{name} {seconds:.0f} s"
        for name, seconds in (
            ("collecting", takes["collect_seconds"]),
            ("comparing", takes["compare_seconds"]),
        )
    ]
    return (
        f"up to {gib['memory_bytes']} of memory (limit {gib['memory_limit_bytes']}), "
        f"{gib['disk_bytes']} of disk in the store, roughly {' and '.join(times)}"
    )


def in_words(value: Any) -> str:
    """A value of a summary as `saelign check` prints it."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {in_words(v)}" for key, v in value.items())
    if isinstance(value, list):
        between = ", " if value and isinstance(value[0], int) else "; "
        return between.join(map(in_words, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show_command(options: argparse.Namespace) -> None:
    """`saelign show`."""
    from saelign.errors import UnknownNameError
    from saelign.results import open_run

    run = open_run(options.run)
    matchings = list(run.scores["matching"].unique())
    if options.matching is not None and options.matching not in matchings:
        raise UnknownNameError.of("matching of this run", options.matching, matchings)
    print_run(run, as_json=options.json, matching=options.matching)


def print_run(run: Any, *, as_json: bool, matching: str | None) -> None:
    """Print a run's tables, or all its scores as JSON, to stdout."""
    if as_json:
        scores = run.scores if matching is None else run.scores[run.scores["matching"] == matching]
        content = {
            "folder": str(run.folder.resolve()),
            "warnings": run.info.get("warnings", []),
            # Not `to_json`: it rounds to ten decimals, which a small p does not survive.
            "scores": scores.astype(object).where(scores.notna(), None).to_dict(orient="records"),
        }
        print(json.dumps(content, indent=2))
        return
    from rich.console import Console

    from saelign.report import overview, subspace_overview

    console = Console(soft_wrap=True, highlight=False)
    for part in overview(run, matching=matching, width=console.width):
        console.print(part)
    for part in subspace_overview(run, matching=matching):
        console.print(part)
    folder = run.folder.resolve()
    print(f"\nresults: {folder}")
    first = matching or str(run.scores["matching"].iloc[0])
    drawn = sorted((folder / "figures").glob(f"correlation_{first}*.png"))
    start = f" (start with {drawn[0].name})" if drawn else ""
    print(f"figures: {folder / 'figures'}{start}")
    if (folder / "report.html").is_file():
        print(f"report: {folder / 'report.html'}")


class progress_on_stderr:  # noqa: N801 (reads as the function that it is used as)
    """Progress bars on a terminal, plain lines in a log: at most one every few seconds."""

    LOG_EVERY = 5.0

    def __enter__(self) -> Callable[[str, int, int], None]:
        self.started = time.monotonic()
        self.last = 0.0
        self.tasks: dict[str, Any] = {}
        self.bars = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

            self.bars = Progress(
                "{task.description:22}",
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self.bars.start()
        return self.tell

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def tell(self, what: str, done: int, total: int) -> None:
        """Show how far a stage has come."""
        if self.bars is not None:
            if what not in self.tasks:
                self.tasks[what] = self.bars.add_task(what, total=total)
            self.bars.update(self.tasks[what], completed=done, total=total)
            return
        now = time.monotonic()
        begins, ends = what not in self.tasks, done == total
        self.tasks[what] = True
        if begins or ends or now - self.last > self.LOG_EVERY:
            self.last = now
            elapsed = now - self.started
            print(f"[{elapsed:6.1f} s] {what}: {done:,} of {total:,}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
